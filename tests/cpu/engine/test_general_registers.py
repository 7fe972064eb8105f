"""Instructions of general registers that QEMU takes for SSE: they ask for none, and SSE itself still does."""

from __future__ import annotations

import pytest

from cpu.engine.worlds import CODE, DATA, HLT, RBX, Guest, assemble

CR4, NO_SSE = 0x548, 0xA0  # PAE and PGE, and not OSFXSR


def invalid_goes_to_rbx(g: Guest) -> None:
    """The handler of #UD leaves the address of the instruction there, and halts."""
    g.write(0x40000, assemble("mov rbx, [rsp]; hlt", 0x40000))
    g.gate(6, 0x40000)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("shlx rbx, rcx, rax", 0x1234 << 5),
        ("sarx ebx, ecx, eax", 0x1234 >> 5),
        ("shrx rbx, rcx, rax", 0x1234 >> 5),
        ("shlx ebx, dword ptr [rsi], eax", 0x51 << 5),
        ("fs shlx ebx, dword ptr [esi], eax", 0x51 << 5),
        ("movbe bx, [rsi]", 0x5100),
        ("adcx rbx, rcx", 0x1234),
        ("crc32 ebx, cx", 0xFFA1_C4C7),
        ("andn rbx, rax, rcx", 0x1234 & ~5),
        ("mulx r8, rbx, rcx", 0x1234 * 7),
    ],
)
@pytest.mark.parametrize("cr4", [NO_SSE, NO_SSE | 1 << 9], ids=["without SSE", "with SSE"])
def test_instructions_of_general_registers_ask_for_no_sse(source: str, result: int, cr4: int) -> None:
    g = Guest()
    g.set("Q", CR4, cr4)
    g.program(f"xor ebx, ebx; mov ecx, 0x1234; mov eax, 5; mov edx, 7; mov esi, {DATA}; {source}; hlt")
    g.write(DATA, b"\x51\0\0\0")
    assert (HLT, result) == (g.run().code, g.register(RBX))
    assert cr4 == g.get(CR4)


def test_they_work_in_32_bit_code_of_any_base() -> None:
    g = Guest(sev=False)
    g.set("Q", CR4, NO_SSE)
    g.segment(1, 0x10, 0xC9B, base=0x1000)
    g.write(CODE, assemble("mov ecx, 3; mov eax, 5; shlx ebx, ecx, eax; hlt", CODE, 32))
    g.set("Q", 0x578, CODE - 0x1000)
    assert (HLT, 3 << 5) == (g.run().code, g.register(RBX))


@pytest.mark.parametrize(
    "source",
    [
        "pshufb xmm0, xmm1",
        "addps xmm0, xmm1",
        "ptest xmm0, xmm1",
        ".byte 0xC4, 0xE2, 0x7D, 0xF7, 0xD9",  # SHLX of a vector
        ".byte 0xC4, 0xE1, 0x79, 0xF7, 0xD9",  # another map
        ".byte 0x66, 0x0F, 0x38, 0xF4, 0xC0",  # nothing
        ".byte 0x66, 0x0F, 0x38, 0xF7, 0xC0",
        "ud2",
    ],
)
def test_sse_and_what_does_not_exist_stay_invalid_without_sse(source: str) -> None:
    g = Guest()
    g.set("Q", CR4, NO_SSE)
    invalid_goes_to_rbx(g)
    g.program(f"mov rax, 0x20000; {source}")
    assert HLT == g.run().code
    assert CODE + 7 == g.register(RBX)


def test_sse_that_came_with_them_is_invalid_again_once_cr4_is_loaded() -> None:
    g = Guest()
    g.set("Q", CR4, NO_SSE)
    invalid_goes_to_rbx(g)
    g.program("shlx ecx, ecx, eax; mov rax, cr4; mov cr4, rax; addps xmm0, xmm1")
    assert HLT == g.run().code
    assert CODE + len(assemble("shlx ecx, ecx, eax; mov rax, cr4; mov cr4, rax", CODE)) == g.register(RBX)
