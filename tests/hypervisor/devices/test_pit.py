"""The 8254 by its data sheet: what it computes is what a counter would do that is stepped tick by tick."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices.clock import when
from cbit.hypervisor.devices.pit import HZ, Channel
from hypervisor.devices.worlds import Desk


class Stepped:
    """One counter, stepped; the count is loaded with the write, as the computed one has it."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.out = mode != 0
        self.count = self.initial = 0
        self.counting = False
        self.gate = True
        self.extra = False

    def load(self, n: int) -> None:
        self.initial, self.counting = n, True
        self.reload()

    def reload(self) -> None:
        self.count = self.initial
        if self.mode == 3 and self.initial % 2:
            self.count, self.extra = self.initial - 1, self.out

    def step(self) -> None:
        if not self.counting or not self.gate:
            return
        if self.mode == 3:
            if self.count == 2 and not self.extra:
                self.out = not self.out
                self.reload()
            elif self.count == 0:
                self.out, self.extra = False, False
                self.reload()
            else:
                self.count -= 2
            return
        if self.mode == 2 and self.count == 1:
            self.reload()
            self.out = True
            return
        self.count = (self.count - 1) % 0x10000
        if self.mode == 0 and self.count == 0:
            self.out = True
        elif self.mode == 2 and self.count == 1:
            self.out = False
        elif self.mode == 4:
            self.out = self.count != 0 or self.out is False


def start(mode: int, n: int) -> tuple[Channel, Stepped]:
    channel, stepped = Channel(gate=True), Stepped(mode)
    channel.control(0x30 | mode << 1, 0)
    channel.write(n & 0xFF, 0)
    channel.write(n >> 8, 0)
    stepped.load(n)
    return channel, stepped


@given(st.sampled_from([0, 2, 3]), st.integers(2, 40), st.integers(0, 200))
def test_counts_and_output_are_those_of_a_counter_that_is_stepped(mode: int, n: int, elapsed: int) -> None:
    channel, stepped = start(mode, n)
    for now in range(elapsed + 1):
        channel.latch(now)
        count = channel.read(now) | channel.read(now) << 8
        assert (stepped.count, stepped.out) == (count, channel.output(now)), now
        stepped.step()


@given(st.sampled_from([0, 2, 3]), st.integers(2, 40), st.integers(0, 100))
def test_the_next_rise_is_the_one_that_comes(mode: int, n: int, now: int) -> None:
    channel, stepped = start(mode, n)
    for _ in range(now):
        stepped.step()
    rise = None
    for tick in range(now + 1, now + 3 * n + 2):
        before = stepped.out
        stepped.step()
        if stepped.out and not before:
            rise = tick
            break
    assert rise == channel.next_rise(now)


def test_a_closed_gate_holds_the_output_of_modes_2_and_3_high() -> None:
    for mode in (2, 3):
        channel, _ = start(mode, 4)
        channel.set_gate(high=False, now=3)
        assert all(channel.output(now) for now in range(3, 20))
        channel.latch(10)
        assert channel.read(10) in (1, 2)  # where it stood


def test_a_count_written_while_the_gate_is_closed_waits_for_it() -> None:
    channel = Channel(gate=False)
    channel.control(0x30, 0)
    for byte in (9, 0):
        channel.write(byte, 0)
    assert not channel.output(1000)
    channel.set_gate(high=True, now=1000)
    channel.set_gate(high=True, now=1004)  # no change
    assert 1009 == channel.next_rise(1004)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_mode_4_strobes_once(n: int) -> None:
    channel, _ = start(4, n)
    assert [n] == [now for now in range(3 * n + 5) if not channel.output(now)]
    assert n + 1 == channel.next_rise(0)
    assert channel.next_rise(n + 1) is None


@pytest.mark.parametrize(("mode", "low"), [(1, range(10, 60)), (5, range(60, 61))])
def test_modes_1_and_5_wait_for_the_gate(mode: int, low: range) -> None:
    channel = Channel(gate=False)
    channel.control(0x10 | mode << 1, 0)
    channel.write(50, 0)
    assert all(channel.output(now) for now in range(10))
    channel.set_gate(high=True, now=10)
    assert list(low) == [now for now in range(10, 100) if not channel.output(now)]
    channel.set_gate(high=False, now=100)
    channel.set_gate(high=True, now=200)  # again
    assert [now + 190 for now in low] == [now for now in range(200, 300) if not channel.output(now)]


def test_a_closed_gate_stops_mode_0_and_restarts_mode_2() -> None:
    for mode, rest in ((0, 70), (2, 100)):
        channel, _ = start(mode, 100)
        channel.set_gate(high=False, now=30)
        assert mode == 2 or not channel.output(1000)
        assert channel.next_rise(1000) is None
        channel.set_gate(high=True, now=1000)
        assert 1000 + rest == channel.next_rise(1000)


def test_a_new_count_in_mode_2_waits_for_the_end_of_the_period() -> None:
    channel, _ = start(2, 100)
    for byte in (10, 0):
        channel.write(byte, 130)
    assert 200 == channel.next_rise(130)
    assert 210 == channel.next_rise(200)
    assert 220 == channel.next_rise(219)


@pytest.mark.parametrize(
    ("access", "written", "read"), [(1, [0x34], [0x34]), (2, [0x12], [0x12]), (3, [0x34, 0x12], [0x34, 0x12])]
)
def test_access_modes(access: int, written: list[int], read: list[int]) -> None:
    desk = Desk()
    desk.out(0x43, 0x80 | access << 4)
    desk.out(0x42, *written)  # the gate of channel 2 is closed: it stands
    assert read == [desk.inb(0x42) for _ in read]


def test_the_first_half_of_a_count_stops_mode_0() -> None:
    channel, _ = start(0, 5)
    assert channel.output(10)
    channel.write(3, 10)
    assert not channel.output(1000)
    channel.write(0, 1000)
    assert 1003 == channel.next_rise(1000)


def test_zero_is_the_longest_count_and_bcd_is_decimal() -> None:
    for bcd, longest in ((0, 65536), (1, 10000)):
        channel = Channel(gate=True)
        channel.control(0x34 | bcd, 0)
        channel.write(0, 0)
        channel.write(0, 0)
        assert longest == channel.next_rise(0)
    channel.write(0x00, 0)
    channel.write(0x15, 0)  # 1500
    channel.latch(10_001)
    assert 0x1499 == channel.read(10_001) | channel.read(10_001) << 8


def test_a_latched_count_waits_and_a_second_latch_is_ignored() -> None:
    desk = Desk()
    desk.out(0x43, 0x34)
    desk.out(0x40, 0x00, 0x10)
    desk.clock.ns = when(0x100, HZ)
    desk.out(0x43, 0x00)
    desk.clock.ns = when(0x200, HZ)
    desk.out(0x43, 0x00)
    assert 0x0F00 == desk.inb(0x40) | desk.inb(0x40) << 8
    assert 0x0E00 == desk.inb(0x40) | desk.inb(0x40) << 8  # runs on


def test_read_back_gives_status_then_count() -> None:
    desk = Desk()
    desk.out(0x43, 0x36)
    desk.out(0x43, 0xE2)  # status of channel 0
    assert 0xF6 == desk.inb(0x40)  # output high, no count yet, both bytes, mode 3
    desk.out(0x40, 0x00, 0x10)
    desk.out(0x43, 0xC2)  # count and status
    assert 0xB6 == desk.inb(0x40)
    assert 0x1000 == desk.inb(0x40) | desk.inb(0x40) << 8


@pytest.mark.parametrize(("mode", "hz"), [(2, 100), (3, 1000)])
def test_line_0_ticks(mode: int, hz: int) -> None:
    desk = Desk()
    desk.start_pics()
    n = HZ // hz
    desk.out(0x43, 0x30 | mode << 1)
    desk.out(0x40, n & 0xFF, n >> 8)
    desk.chipset.interrupts.acknowledge()  # the control word raised the output
    desk.out(0x20, 0x20)
    for tick in range(1, 11):
        due = desk.chipset.next_event_ns()
        assert when(tick * n, HZ) == due
        desk.until(due - 1)
        assert not desk.chipset.interrupts.pending
        desk.until(due)
        assert 0x20 == desk.chipset.interrupts.acknowledge()
        desk.out(0x20, 0x20)


def test_ticks_that_nobody_took_are_one_request() -> None:
    desk = Desk()
    desk.start_pics()
    desk.out(0x43, 0x34)
    desk.out(0x40, 0x00, 0x10)
    desk.chipset.interrupts.acknowledge()
    desk.out(0x20, 0x20)
    desk.until(10**9)
    assert 0x20 == desk.chipset.interrupts.acknowledge()
    desk.out(0x20, 0x20)
    assert not desk.chipset.interrupts.pending
    assert desk.clock.ns < (desk.chipset.next_event_ns() or 0)


def test_a_one_shot_fires_once() -> None:
    desk = Desk()
    desk.start_pics()
    desk.out(0x43, 0x38)
    desk.out(0x40, 0x00, 0x10)
    desk.chipset.interrupts.acknowledge()
    desk.out(0x20, 0x20)
    assert when(0x1001, HZ) == desk.chipset.next_event_ns()
    desk.until(10**9)
    assert 0x20 == desk.chipset.interrupts.acknowledge()
    assert desk.chipset.next_event_ns() is None


def test_linux_measures_time_with_channel_2_and_port_61() -> None:
    desk = Desk()
    desk.out(0x61, 0x01)
    desk.out(0x43, 0xB0)
    desk.out(0x42, 0xFF, 0xFF)
    assert not desk.inb(0x61) & 0x20
    desk.clock.ns = when(0xFFFF, HZ) - 1
    assert not desk.inb(0x61) & 0x20
    desk.clock.ns = when(0xFFFF, HZ)
    assert desk.inb(0x61) & 0x20
    assert 1 == desk.inb(0x61) & 0x0F


def test_a_write_only_port_reads_ones() -> None:
    assert 0xFF == Desk().inb(0x43)
