"""The MC146818 by its data sheet."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices.clock import NS
from hypervisor.devices.worlds import EPOCH, Desk

TIME = (0x32, 9, 8, 7, 4, 2, 0)
A, B, C, D = 10, 11, 12, 13


def get(desk: Desk, index: int) -> int:
    desk.out(0x70, index)
    return desk.inb(0x71)


def put(desk: Desk, index: int, value: int) -> None:
    desk.out(0x70, index)
    desk.out(0x71, value)


def bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def the_time(desk: Desk) -> str:
    return "".join(f"{get(desk, index):02x}" for index in TIME)


def set_time(desk: Desk, digits: str) -> None:
    put(desk, B, 0x82)
    for index, value in zip(TIME, bytes.fromhex(digits), strict=True):
        put(desk, index, value)
    put(desk, B, 0x02)


@given(st.integers(0, 7_000_000_000))
def test_it_tells_the_time_that_a_calendar_tells(seconds: int) -> None:
    desk = Desk()
    desk.until(seconds * NS)
    expected = datetime.fromtimestamp(EPOCH + seconds, UTC)
    assert expected.strftime("%Y%m%d%H%M%S") == the_time(desk)
    assert expected.isoweekday() % 7 + 1 == get(desk, 6)


def test_at_power_on() -> None:
    desk = Desk()
    assert "20231114221320" == the_time(desk)
    assert (0x26, 0x02, 0x00, 0x80) == tuple(get(desk, index) for index in (A, B, C, D))


@pytest.mark.parametrize(
    ("format_", "hour", "expected"),
    [
        (0x02, 0, 0x00),
        (0x02, 22, 0x22),
        (0x00, 0, 0x12),
        (0x00, 11, 0x11),
        (0x00, 12, 0x92),
        (0x00, 22, 0x90),
        (0x06, 22, 22),
        (0x04, 22, 0x80 | 10),
    ],
)
def test_hours_come_in_four_formats_and_are_understood_in_them(
    format_: int, hour: int, expected: int
) -> None:
    desk = Desk()
    set_time(desk, f"20240101{hour:02d}0000")
    put(desk, B, format_)
    assert expected == get(desk, 4)
    put(desk, 4, expected)
    put(desk, B, 0x02)
    assert bcd(hour) == get(desk, 4)


def test_it_can_be_set_and_runs_on() -> None:
    desk = Desk()
    desk.until(5 * NS)
    set_time(desk, "20240228235958")
    assert "20240228235958" == the_time(desk)
    desk.until(7 * NS)
    assert "20240229000000" == the_time(desk)


def test_while_set_holds_it_stands() -> None:
    desk = Desk()
    put(desk, B, 0x82)
    desk.until(100 * NS)
    assert "20231114221320" == the_time(desk)
    put(desk, B, 0x02)
    assert "20231114221320" == the_time(desk)
    desk.until(101 * NS)
    assert "20231114221321" == the_time(desk)


@pytest.mark.parametrize("digits", ["20241301000000", "20240230000000", "20240101000061", "202401010000ff"])
def test_nonsense_is_not_taken_over(digits: str) -> None:
    desk = Desk()
    set_time(desk, digits)
    assert "20231114221320" == the_time(desk)


def test_an_update_is_announced() -> None:
    desk = Desk()
    for ns, announced in (
        (0, False),
        (NS - 244_001, False),
        (NS - 244_000, True),
        (NS - 1, True),
        (NS, False),
    ):
        desk.until(ns)
        assert announced is bool(get(desk, A) & 0x80)


def test_memory_keeps_what_is_written_and_some_registers_do_not() -> None:
    desk = Desk()
    for index in (14, 0x31, 0x33, 0x7F):
        put(desk, index, 0xA5)
        assert 0xA5 == get(desk, index)
    put(desk, 0x80 | 14, 0x5A)  # bit 7 of the index is the NMI mask
    assert 0x5A == get(desk, 14)
    put(desk, C, 0xFF)
    put(desk, D, 0x00)
    assert (0, 0x80) == (get(desk, C), get(desk, D))
    assert 0xFF == desk.inb(0x70)


def a_desk(b: int) -> Desk:
    desk = Desk()
    desk.start_pics()
    put(desk, B, 0x02 | b)
    return desk


def interrupt(desk: Desk) -> bool:
    controller = desk.chipset.interrupts
    if not controller.pending:
        return False
    assert 0x28 == controller.acknowledge()
    desk.out(0xA0, 0x20)
    desk.out(0x20, 0x20)
    return True


@pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (10, 64), (15, 2)])
def test_periodic_interrupts_have_the_rate_of_register_a(rate: int, hz: int) -> None:
    desk = a_desk(0x40)
    put(desk, A, 0x20 | rate)
    ticks = 0
    while (due := desk.chipset.next_event_ns()) is not None and due <= NS:
        desk.until(due)
        assert interrupt(desk)
        ticks += 1
        assert 0xC0 == get(desk, C) & 0xC0
        assert not interrupt(desk)
    assert hz == ticks


def test_rate_0_and_a_stopped_divider_give_none() -> None:
    desk = a_desk(0x40)
    for a in (0x20, 0x66):
        put(desk, A, a)
        assert desk.chipset.next_event_ns() is None


def test_an_update_interrupts_each_second_until_it_is_read() -> None:
    desk = a_desk(0x10)
    assert NS == desk.chipset.next_event_ns()
    desk.until(NS)
    assert interrupt(desk)
    desk.until(2 * NS)
    assert not interrupt(desk)  # nobody has read register C
    assert 0x90 == get(desk, C) & 0x90
    assert 0 == get(desk, C) & 0x10
    desk.until(3 * NS)
    assert interrupt(desk)


@pytest.mark.parametrize(
    ("alarm", "seconds"),
    [
        ("221325", 5),
        ("221319", 86_399),
        ("221320", 86_400),
        ("ffff00", 40),
        ("ffffff", 1),
        ("ff1400", 40),
        ("23ff30", 2_830),
        ("00ff00", 6_400),
        ("10ff20", 42_420),
    ],
)
def test_an_alarm_comes_when_its_bytes_match(alarm: str, seconds: int) -> None:
    desk = a_desk(0x20)
    for index, value in zip((5, 3, 1), bytes.fromhex(alarm), strict=True):
        put(desk, index, value)
    assert seconds * NS == desk.chipset.next_event_ns()
    desk.until(seconds * NS - 1)
    assert not interrupt(desk)
    desk.until(seconds * NS)
    assert interrupt(desk)
    assert 0xA0 == get(desk, C) & 0xA0


@pytest.mark.parametrize("alarm", ["241320", "226020", "221360", "2213ab", "0a1320"])
def test_an_alarm_that_no_time_matches_never_comes(alarm: str) -> None:
    desk = a_desk(0x20)
    for index, value in zip((5, 3, 1), bytes.fromhex(alarm), strict=True):
        put(desk, index, value)
    assert desk.chipset.next_event_ns() is None


def test_flags_come_without_being_enabled_and_interrupt_nobody() -> None:
    desk = a_desk(0)
    desk.until(NS)
    assert 0x50 == get(desk, C)
    assert not interrupt(desk)
