"""MOV to a control register: the engine refuses what the reference model refuses, and what hardware does."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.control import AddressRules, Controls
from cbit.cpu.engine.checks import C_BIT
from cbit.cpu.engine.control_block import At
from cbit.cpu.faults import GeneralProtection
from cbit.spec.errors import NotModelled
from cpu.engine.worlds import CODE, R8, RBX, RSI, TABLES, VMMCALL, Guest, assemble

GP_EXIT = 0x40 + 13
INTERCEPTED = 1 << 13 | 1 << 14 | 1 << 6 | 1 << 8
CR0, CR4, EFER = 0x8005_0033, 0x6A0, 0x1D01
CR_AT = {0: 0x558, 3: 0x550, 4: 0x548}
#: VME, PVI and UMIP: the reference has them, and the executing processor does not report them.
UNREPORTED = {0, 1, 11}
bits = st.sets(st.integers(0, 63), min_size=1, max_size=3)


@functools.cache
def guest(*, sev: bool) -> Guest:
    return Guest(sev=sev)


def move(g: Guest, number: int, value: int) -> bool:
    """Say whether MOV refuses, and see that it has done nothing, or what it was to do."""
    before = {0: CR0, 3: TABLES | g.c, 4: CR4}
    for register, was in before.items():
        g.set("Q", CR_AT[register], was)
    g.program(f"mov cr{number}, rsi; vmmcall")
    g.set("Q", 0x4D0, EFER)
    g.set("I", At.EXCEPTIONS, INTERCEPTED)
    g.context.registers[RSI] = value
    refused = g.run(blocks=10).code == GP_EXIT
    if refused:
        assert (0, CODE) == (g.get(At.EXIT_INFO_1), g.get(0x578))
    assert (before[number] if refused else value) == g.get(CR_AT[number])
    return refused


@given(sev=st.booleans(), number=st.sampled_from([3, 4]), flipped=bits)
def test_engine_and_reference_refuse_the_same(*, sev: bool, number: int, flipped: set[int]) -> None:
    g = guest(sev=sev)
    now = Controls(cr0=CR0, cr3=TABLES | g.c, cr4=CR4, efer=EFER)
    value = (now.cr3 if number == 3 else now.cr4) ^ sum(1 << bit for bit in flipped)
    unreported = number == 4 and not flipped.isdisjoint(UNREPORTED)
    rules = AddressRules(C_BIT, C_BIT) if sev else AddressRules(C_BIT + 1, None)
    try:
        now.moved(rules, **{f"cr{number}": value})
        refused = False
    except GeneralProtection:
        refused = True
    except NotModelled:
        refused = True  # no processor of the model reports it, so it is reserved
    assert (refused or unreported) is move(g, number, value)


@pytest.mark.parametrize(
    ("number", "value", "refused"),
    [
        (0, CR0 ^ 1 << 16, False),
        (0, CR0 | 1 << 32, True),
        (0, CR0 | 1 << 29, True),  # NW without CD
        (0, CR0 | 3 << 29, False),
        (0, CR0 & ~1, True),  # paging without protection
        (0, CR0 & ~(1 << 31), True),  # no paging in 64-bit code
        (3, TABLES | 1 << 39, False),
        (3, TABLES | 1 << 40, True),
        (3, TABLES | 1 << 63, True),
        (4, CR4 | 1 << 16, False),
        *((4, CR4 | 1 << bit, True) for bit in sorted(UNREPORTED)),
        (4, CR4 & ~(1 << 5), True),  # long mode without PAE
    ],
)
def test_a_value_that_the_processor_does_not_have_is_a_general_protection_fault(
    number: int, value: int, *, refused: bool
) -> None:
    assert refused is move(guest(sev=True), number, value)


@pytest.mark.parametrize(("value", "refused"), [(0xF, False), (0x10, True)])
def test_cr8_has_four_bits(value: int, *, refused: bool) -> None:
    g = Guest()
    g.program(f"mov eax, {value}; mov cr8, rax; vmmcall")
    g.set("I", At.EXCEPTIONS, INTERCEPTED)
    assert (GP_EXIT if refused else VMMCALL) == g.run().code


def test_an_intercept_comes_before_the_fault() -> None:
    g = Guest()
    g.program("mov rax, -1; mov cr3, rax; vmmcall")
    g.set("H", 0x002, 1 << 3)
    assert 0x13 == g.run().code


@pytest.mark.parametrize("number", [0, 3, 4])
def test_reading_a_control_register_can_be_intercepted(number: int) -> None:
    g = Guest()
    g.program(f"mov rbx, cr{number}; vmmcall")
    g.set("H", 0x000, 1 << number)
    assert (number, CODE) == (g.run().code, g.get(0x578))
    g.set("H", 0x000, 0)
    assert VMMCALL == g.run().code
    assert g.get(CR_AT[number]) == g.register(RBX)


def test_32_bit_code_moves_32_bits_whatever_lies_above_them() -> None:
    g = Guest()
    g.write(0x6000 + 0x18, (0x00CF9B000000FFFF).to_bytes(8, "little"))
    g.write(0x50000, assemble("mov eax, cr3; mov cr3, esi; mov ebx, eax; vmmcall", 0x50000, 32))
    g.program(f"mov rsi, {1 << 60 | TABLES}; mov r8, 1; push 0x18; push 0x50000; retfq")
    g.tables(tables_c=False)
    g.set("Q", 0x550, TABLES)
    assert (VMMCALL, 1) == (g.run().code, g.register(R8))
    assert TABLES == g.get(0x550)
