from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


def test_a_port_of_nobody_reads_ones_and_is_counted() -> None:
    desk = Desk()
    assert [0xFF, 0xFFFF, 0xFFFFFFFF] == [desk.chipset.read(0x1234, size) for size in (1, 2, 4)]
    desk.chipset.write(0x1234, 4, 0)
    assert 4 == desk.chipset.ports.unassigned[0x1234]
    assert 2 == desk.chipset.ports.unassigned[0x1237]
