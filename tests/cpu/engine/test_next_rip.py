"""nRIP: where the instruction ends that exited, whatever its prefixes; zero where none was intercepted."""

from __future__ import annotations

import pytest

from cbit.cpu.engine.control_block import REQUIRED, At, Intercept
from cpu.engine.worlds import CODE, DATA, GDT, INTR, NPF, Guest, assemble

VMRUN, VMMCALL = int(Intercept.VMRUN), int(Intercept.VMMCALL)


def left(source: str, *, intercepts: int = 0, reads: int = 0, writes: int = 0) -> tuple[int, int]:
    """Run what is intercepted at once; return exit code and how far behind it nRIP is."""
    g = Guest()
    g.set("Q", At.INTERCEPTS, int(REQUIRED) | VMRUN | VMMCALL | intercepts)
    g.set("H", 0x000, reads)
    g.set("H", 0x002, writes)
    g.program(source)
    return g.run().code, g.get(At.NEXT_RIP) - CODE


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("cpuid", 0x72),
        (".byte 0x66, 0x0f, 0xa2", 0x72),
        ("rdmsr", 0x7C),
        (".byte 0x48, 0x0f, 0x32", 0x7C),
        (".byte 0xf3, 0x2e, 0x67, 0x4f, 0x0f, 0x30", 0x7C),
        ("hlt", 0x78),
        (".byte 0xf3, 0xf4", 0x78),
        ("vmmcall", 0x81),
        (".byte 0x48, 0x0f, 0x01, 0xd9", 0x81),
        ("vmrun rax", 0x80),
        ("in eax, 0x60", 0x7B),
        ("outsb", 0x7B),
        (".byte 0xf3, 0x66, 0xef", 0x7B),
    ],
)
def test_it_is_behind_the_instruction_and_its_prefixes(source: str, code: int) -> None:
    assert (code, len(assemble(source, CODE))) == left(source)


@pytest.mark.parametrize(
    ("source", "bit"),
    [
        ("wbinvd", 0x29),
        (".byte 0xf3, 0x0f, 0x09", 0x29),
        ("invd", 0x16),
        ("rdtsc", 0x0E),
        ("pushfq", 0x10),
        ("iretq", 0x14),
        ("int 0x30", 0x15),
        ("pause", 0x17),
        ("invlpg [rax]", 0x19),
        ("invlpg [rax + rcx*8 + 0x12345]", 0x19),
        ("invlpg fs:[r13 + 1]", 0x19),
        (f"sgdt [rip + {DATA}]", 7),
        ("sidt [rcx*4 + 5]", 6),
        ("sldt [esp + 8]", 8),
    ],
)
def test_operands_in_memory_count(source: str, bit: int) -> None:
    assert (0x60 + bit, len(assemble(source, CODE))) == left(source, intercepts=1 << bit)


@pytest.mark.parametrize("source", ["mov rbx, cr4", "mov r9, cr4", "mov cr4, r9"])
def test_a_move_of_a_control_register_has_one_operand(source: str) -> None:
    found = left(source, reads=1 << 4, writes=1 << 4)
    assert (0x14 if "cr4," in source else 0x04, len(assemble(source, CODE))) == found


@pytest.mark.parametrize("source", ["invlpg [bp + 0x1234]", "invlpg [0x1234]", "invlpg [bx + si + 1]"])
def test_16_bit_addresses_are_shorter(source: str) -> None:
    g = Guest()
    g.set("Q", At.INTERCEPTS, g.get(At.INTERCEPTS) | 1 << 0x19)
    g.write(GDT + 0x18, (0x00CF9B000000FFFF).to_bytes(8, "little"))
    code = assemble(source, 0x50000, 32)
    g.write(0x50000, code)
    g.program("push 0x18; push 0x50000; retfq")
    assert 0x79 == g.run().code
    assert len(code) == g.get(At.NEXT_RIP) - 0x50000


def test_no_instruction_no_next_one() -> None:
    g = Guest()
    g.program("cpuid; again: jmp again")
    g.run()
    g.skip(2)
    assert (INTR, 0) == (g.run(blocks=10).code, g.get(At.NEXT_RIP))
    g.nested.map(DATA, 0, flags=0)
    g.program(f"mov rax, [{DATA}]")
    assert (NPF, 0) == (g.run().code, g.get(At.NEXT_RIP))


def test_an_instruction_in_two_pages_ends_in_the_second() -> None:
    g = Guest()
    at = CODE + 0x1000 - 1
    g.program("cpuid", at=at)
    assert (0x72, at + 2) == (g.run().code, g.get(At.NEXT_RIP))
