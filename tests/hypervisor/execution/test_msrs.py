"""Model-specific registers of a guest: values that hardware refuses are #GP, and time is the machine's."""

from __future__ import annotations

import pytest

from cbit.hypervisor.execution.monitor import run
from cbit.hypervisor.execution.msrs import TSC, GuestMsrs, NoSuchMsr
from cbit.hypervisor.host import Host
from hypervisor.execution.worlds import a_room

PAT, MTRR_CAP, MTRR_DEF_TYPE, FIXED, BASE, MASK, DEBUGCTL = 0x277, 0xFE, 0x2FF, 0x250, 0x200, 0x201, 0x1D9
UNCACHED_MINUS = 7


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (PAT, 0x0007_0406_0007_0406, 0xFF),
        (PAT, UNCACHED_MINUS, 2),
        (MTRR_DEF_TYPE, 0xC06, 0xFFFF_FFFF),
        (MTRR_DEF_TYPE, 0x800, 0x807),
        (FIXED, 0x0606_0606_0606_0606, UNCACHED_MINUS),
        (BASE, 0x40_0000_0006, 0x100),
        (BASE + 14, 0x1000, 1 << 40),
        (MASK, 0xFF_C000_0800, 1),
        (MASK + 14, 0, 1 << 52),
        (DEBUGCTL, 1, 1 << 6),
        (0x49, 1, 2),
    ],
)
def test_a_value_that_hardware_refuses_is_refused_and_changes_nothing(
    number: int, good: int, bad: int
) -> None:
    msrs = GuestMsrs()
    assert msrs.write(number, good, efer=0, paging=False) == 0
    with pytest.raises(NoSuchMsr):
        msrs.write(number, bad, efer=0, paging=False)
    assert msrs.read(number, efer=0) == good


def test_what_memory_type_ranges_there_are_cannot_be_written() -> None:
    msrs = GuestMsrs()
    with pytest.raises(NoSuchMsr):
        msrs.write(MTRR_CAP, msrs.read(MTRR_CAP, efer=0), efer=0, paging=False)


RDTSC = "rdtsc; mov esi, eax; mov edi, edx"
RDMSR = f"mov ecx, {TSC}; rdmsr"


def test_the_register_and_the_instruction_tell_one_time(host: Host) -> None:
    room = a_room(host, f"{RDTSC}; {RDMSR}; cli; hlt")
    run([room.monitor])
    state = room.vcpu.save_area()
    first, second = state.rdi << 32 | state.rsi, state.rdx << 32 | state.rax
    assert 0 < first <= second < first + 32 * 8
    room.end()


def test_time_goes_on_from_where_it_is_set(host: Host) -> None:
    room = a_room(host, f"mov ecx, {TSC}; mov edx, 5; mov eax, 1000; wrmsr; {RDTSC}; {RDMSR}; cli; hlt")
    run([room.monitor])
    state = room.vcpu.save_area()
    first, second = state.rdi << 32 | state.rsi, state.rdx << 32 | state.rax
    assert 5 << 32 | 1000 <= first <= second < (5 << 32 | 1000) + 32 * 16
    room.end()
