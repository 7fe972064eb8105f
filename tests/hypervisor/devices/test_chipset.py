from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices.ports import PortTaken
from cbit.hypervisor.devices.power import Power
from hypervisor.devices.worlds import Desk

ACCESS = st.tuples(
    st.one_of(
        st.sampled_from([*range(0x20, 0x22), *range(0x40, 0x44), 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92]),
        st.sampled_from([0xA0, 0xA1, 0x4D0, 0x4D1, *range(0x3F8, 0x400), *range(0x600, 0x60C)]),
        st.integers(0xCF8, 0xCFF),
        st.integers(0, 0xFFFF),
    ),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    st.sampled_from([0, 0, 1000, 10**6, 10**9 + 1, 10**13]),
)


@given(st.lists(ACCESS, max_size=60))
def test_nothing_that_a_guest_does_at_its_ports_raises(
    accesses: list[tuple[int, int, int | None, int]],
) -> None:
    desk = Desk()
    desk.start_pics()
    for port, size, value, step in accesses:
        if value is None:
            assert 0 <= desk.chipset.read(port, size) < 1 << 8 * size
        else:
            desk.chipset.write(port, size, value)
        desk.line.typed += b"x"
        desk.until(desk.clock.ns + step)
        due = desk.chipset.next_event_ns()
        assert due is None or due > desk.clock.ns
        if desk.chipset.interrupts.pending:
            assert 0 <= desk.chipset.interrupts.acknowledge() <= 0xFF
    assert desk.chipset.power_event in (None, *Power)


def test_a_port_has_one_owner() -> None:
    ports = Desk().chipset.ports
    with pytest.raises(PortTaken, match="0x3f8 belongs"):
        ports.byte(0x3F8, lambda: 0)
    with pytest.raises(PortTaken, match=r"0x5ff\.\.0x600"):
        ports.wide(range(0x5FF, 0x601), lambda port, size: 0, lambda port, size, value: None)
    assert 0xFF == ports.read(0x5FF, 1)


def test_a_port_may_be_written_alone() -> None:
    ports, seen = Desk().chipset.ports, list[int]()
    ports.byte(0x1000, None, seen.append)
    ports.write(0x1000, 1, 0x1FF)
    assert [0xFF] == seen
    assert 0xFF == ports.read(0x1000, 1)


def test_a_wide_access_to_byte_ports_is_cut_into_bytes_and_wraps_around() -> None:
    desk = Desk()
    desk.chipset.write(0x3FF, 1, 0xA5)
    assert 0xB0_60 == desk.chipset.read(0x3FD, 2)
    assert 0xFFA5 == desk.chipset.read(0x3FF, 2)
    assert 0xFFFF_FFFF == desk.chipset.read(0xFFFE, 4)


def test_a_port_of_nobody_reads_ones_and_is_counted() -> None:
    desk = Desk()
    assert [0xFF, 0xFFFF, 0xFFFFFFFF] == [desk.chipset.read(0x1234, size) for size in (1, 2, 4)]
    desk.chipset.write(0x1234, 4, 0)
    assert 4 == desk.chipset.ports.unassigned[0x1234]
    assert 2 == desk.chipset.ports.unassigned[0x1237]
