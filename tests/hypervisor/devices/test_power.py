"""How a guest ends, and ACPI's fixed hardware."""

from __future__ import annotations

import pytest

from cbit.hypervisor.devices.clock import when
from cbit.hypervisor.devices.power import PM_TIMER_HZ, Power
from cbit.spec.acpi import board
from cbit.trace import Trace
from hypervisor.devices.worlds import Desk

EVENT, ENABLE, CONTROL, TIMER = board.PM1A_EVENT, board.PM1A_EVENT + 2, board.PM1A_CONTROL, board.PM_TIMER
SLP_EN = 1 << 13
HALF = 1 << 23


@pytest.mark.parametrize(
    ("port", "size", "values", "event"),
    [
        (CONTROL, 2, [board.SLEEP_OFF << 10 | SLP_EN], Power.OFF),
        (CONTROL, 2, [board.SLEEP_OFF << 10, board.SLEEP_OFF << 10 | SLP_EN], Power.OFF),
        (CONTROL + 1, 1, [(board.SLEEP_OFF << 10 | SLP_EN) >> 8], Power.OFF),
        (CONTROL, 2, [board.SLEEP_OFF << 10], None),
        (CONTROL, 2, [3 << 10 | SLP_EN], None),
        (CONTROL, 2, [SLP_EN], None),
        (CONTROL, 1, [0xFF], None),
        (board.RESET_PORT, 1, [board.RESET_VALUE], Power.RESET),
        (board.RESET_PORT, 1, [0x02, 0x0E], Power.RESET),
        (board.RESET_PORT, 1, [0x02], None),
        (board.RESET_PORT, 4, [0x06], None),  # a register of one byte
        (board.RESET_PORT - 1, 4, [0x0600], None),  # PCI's address register
        (0x64, 1, [0xFE], Power.RESET),
        (0x64, 1, [0xFF], None),
        (0x64, 1, [0xAA], None),
        (0x92, 1, [0x03], Power.RESET),
        (0x92, 1, [0x02], None),
    ],
)
def test_what_ends_a_guest(port: int, size: int, values: list[int], event: Power | None) -> None:
    desk = Desk()
    for value in values:
        desk.chipset.write(port, size, value)
    assert event is desk.chipset.power_event


def test_the_keyboard_controller_s_output_port_resets_too() -> None:
    desk = Desk()
    desk.out(0x60, 0xFE)
    desk.out(0x64, 0xD1)
    assert desk.chipset.power_event is None
    desk.out(0x60, 0xFE)
    assert Power.RESET is desk.chipset.power_event
    desk = Desk()
    desk.out(0x64, 0xD1)
    desk.out(0x60, 0xDF)  # switches A20 on
    desk.out(0x60, 0xFE)
    assert desk.chipset.power_event is None


def test_nobody_types_at_the_keyboard() -> None:
    desk = Desk()
    assert (0, 0) == (desk.inb(0x64), desk.inb(0x60))


def test_the_first_request_stands() -> None:
    desk = Desk()
    desk.out(board.RESET_PORT, 0x06)
    desk.chipset.write(CONTROL, 2, board.SLEEP_OFF << 10 | SLP_EN)
    assert Power.RESET is desk.chipset.power_event


def test_who_watches_is_told_how() -> None:
    trace = Trace()
    desk = Desk(trace=trace)
    with trace.recorded() as events:
        desk.chipset.write(CONTROL, 2, 1 << 10 | SLP_EN)
        desk.out(0x64, 0xFE)
    assert ["sleep ignored", "power reset"] == [event.what for event in events]
    assert "8042" in events[1].why


def test_acpi_mode_is_on_and_cannot_be_left() -> None:
    desk = Desk()
    desk.chipset.write(CONTROL, 2, 0)
    assert 1 == desk.chipset.read(CONTROL, 2)
    desk.chipset.write(CONTROL, 2, 7 << 10)
    assert 7 << 10 | 1 == desk.chipset.read(CONTROL, 2)


@pytest.mark.parametrize("ns", [0, 1, 10**9, 4_686_000_000, 10**12])
def test_the_timer_runs_at_its_rate_and_has_24_bits(ns: int) -> None:
    desk = Desk()
    desk.until(ns)
    assert ns * PM_TIMER_HZ // 10**9 % (1 << 24) == desk.chipset.read(TIMER, 4)
    desk.chipset.write(TIMER, 4, 0)
    assert ns * PM_TIMER_HZ // 10**9 % (1 << 24) == desk.chipset.read(TIMER, 4)


def test_the_timer_s_top_bit_interrupts_and_stays_until_cleared() -> None:
    desk = Desk()
    desk.start_pics()
    desk.out(0x4D1, 0x02)
    assert desk.chipset.next_event_ns() is None
    desk.chipset.write(ENABLE, 2, 1)
    due = when(HALF, PM_TIMER_HZ)
    assert due == desk.chipset.next_event_ns()
    desk.until(due - 1)
    assert not desk.chipset.interrupts.pending
    desk.until(due)
    assert 0x29 == desk.chipset.interrupts.acknowledge()
    assert 1 == desk.chipset.read(EVENT, 2)
    desk.chipset.write(EVENT, 2, 1)
    assert 0 == desk.chipset.read(EVENT, 2)
    desk.out(0xA0, 0x20)
    desk.out(0x20, 0x20)
    assert not desk.chipset.interrupts.pending
    assert when(2 * HALF, PM_TIMER_HZ) == desk.chipset.next_event_ns()


def test_the_power_button_interrupts_if_enabled() -> None:
    desk = Desk()
    desk.start_pics()
    desk.chipset.power.press_button()
    assert not desk.chipset.interrupts.pending
    desk.chipset.write(ENABLE, 2, 1 << 8)
    assert 0x29 == desk.chipset.interrupts.acknowledge()
    assert 1 << 8 == desk.chipset.read(EVENT, 2)


def test_enables_read_back_and_status_is_cleared_by_ones() -> None:
    desk = Desk()
    desk.chipset.write(ENABLE, 2, 0xFFFF)
    assert 0x0521 == desk.chipset.read(ENABLE, 2)
    desk.chipset.power.press_button()
    desk.chipset.write(EVENT, 4, 0x0001_0001)  # clears the timer alone, and leaves one enable
    assert 0x0001_0100 == desk.chipset.read(EVENT, 4)
