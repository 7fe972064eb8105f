"""The engine's small decoder against the system's assembler."""

from __future__ import annotations

import pytest

from cbit.cpu.engine.instructions import Instruction, Machine, Op, decode
from cpu.engine.worlds import assemble

RIP = 0x1234_5678
BASES = (0x100, 0x200, 0x300, 0x400, 0x5_0000_0000, 0x6000)


def machine(*, long: bool = True) -> Machine:
    return Machine(rip=RIP, long=long, register=lambda number: 0x1000 * (number + 1), base=BASES.__getitem__)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("clflush [rax]", 0x1000),
        ("clflush [rsi]", 0x7000),
        ("clflush [r9]", 0xA000),
        ("clflush [rbp]", 0x6000),
        ("clflush [r13]", 0xE000),
        ("clflush [rsp]", 0x5000),
        ("clflush [r12 + 8]", 0xD008),
        ("clflush [rdi - 0x40]", 0x7FC0),
        ("clflush [rdi + 0x12345678]", 0x1234_D678),
        ("clflush [rax + rbx*4 + 0x10]", 0x1010 + 0x4000 * 4),
        ("clflush [r8 + r12*8]", 0x9000 + 0xD000 * 8),
        ("clflush [rbx*2 + 0x100]", 0x100 + 0x4000 * 2),
        ("clflush [0x7000]", 0x7000),
        ("clflush [rip + 0x10]", RIP + 7 + 0x10),
        ("clflush fs:[rax]", 0x5_0000_1000),
        ("clflush gs:[rax]", 0x7000),
        ("clflush [eax - 0x2000]", 0xFFFF_F000),
        ("clflushopt [rax]", 0x1000),
        ("clwb [rdx + 1]", 0x3001),
    ],
)
def test_the_operand_of_a_line_flush(source: str, address: int) -> None:
    code = assemble(source)
    assert Instruction(Op.FLUSH_LINE, len(code), address) == decode(code.ljust(15, b"\x90"), machine())
    for short in range(len(code)):
        assert decode(code[:short], machine()) is None


@pytest.mark.parametrize(
    ("source", "address"),
    [("clflush [eax]", 0x1400), ("clflush [ebp]", 0x6300), ("clflush es:[eax]", 0x1100)],
)
def test_segments_count_outside_64_bit_code(source: str, address: int) -> None:
    code = assemble(source, 0, 32)
    assert Instruction(Op.FLUSH_LINE, len(code), address) == decode(code, machine(long=False))


@pytest.mark.parametrize(
    ("source", "op"), [("wbinvd", Op.WBINVD), ("invd", Op.INVD), ("rdmsr", Op.MSR), ("wrmsr", Op.MSR)]
)
def test_instructions_without_an_operand(source: str, op: Op) -> None:
    assert Instruction(op, 2) == decode(assemble(source), machine())


@pytest.mark.parametrize(
    "source", ["nop", "sfence", "mfence", "xsaveopt [rax]", "fxsave [rax]", "ldmxcsr [rax]", "cpuid", "ud2"]
)
def test_everything_else_is_somebody_elses(source: str) -> None:
    assert decode(assemble(source), machine()) is None


def test_prefixes_without_end_are_nothing() -> None:
    assert decode(b"\x66" * 15, machine()) is None
    assert decode(b"", machine()) is None
