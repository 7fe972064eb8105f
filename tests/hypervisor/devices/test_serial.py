"""The 16550A by its data sheet, and by what Linux asks it to find out what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.acpi.board import SERIAL_BASE as BASE
from hypervisor.devices.worlds import Desk

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = (BASE + n for n in (0, 1, 2, 2, 3, 4, 5, 6, 7))
OUT2 = 0x08
NOTHING, THR_EMPTY, RECEIVED, LINE_STATUS, TIMEOUT, MODEM = 0x01, 0x02, 0x04, 0x06, 0x0C, 0x00


def a_desk(*, ier: int = 0, fcr: int = 0) -> Desk:
    desk = Desk()
    desk.start_pics()
    desk.out(MCR, OUT2)
    desk.out(FCR, fcr)
    desk.out(IER, ier)
    return desk


def type_at(desk: Desk, text: bytes) -> None:
    desk.line.typed += text
    desk.chipset.poll()


def interrupts(desk: Desk) -> bool:
    """Whether line 4 has an interrupt now; takes it."""
    controller = desk.chipset.interrupts
    if not controller.pending:
        return False
    assert 0x24 == controller.acknowledge()
    desk.out(0x20, 0x20)
    return True


def test_what_is_sent_arrives_at_once() -> None:
    desk = a_desk()
    desk.out(DATA, *b"hello\n")
    assert b"hello\n" == desk.line.sent
    assert 0x60 == desk.inb(LSR)
    assert 6 == desk.chipset.serial.sent


def test_registers_keep_what_they_can_keep() -> None:
    desk = a_desk()
    for port, kept in ((IER, 0x0F), (LCR, 0x7F), (MCR, 0x1F), (SCR, 0xFF)):
        desk.out(port, 0xFF if port != LCR else 0x7F)
        assert kept == desk.inb(port)


def test_the_divisor_is_behind_dlab() -> None:
    desk = a_desk(ier=1)
    desk.out(LCR, 0x83)
    desk.out(DATA, 0x34)
    desk.out(IER, 0x12)
    assert (0x34, 0x12) == (desk.inb(DATA), desk.inb(IER))
    desk.out(LCR, 0x03)
    assert 1 == desk.inb(IER)
    assert b"" == desk.line.sent


def test_read_only_registers_ignore_writes() -> None:
    desk = a_desk()
    desk.out(LSR, 0)
    desk.out(MSR, 0)
    assert (0x60, 0xB0) == (desk.inb(LSR), desk.inb(MSR))


def test_linux_finds_a_16550a() -> None:
    """What the kernel's driver does to tell the relatives of this chip apart."""
    desk = a_desk()
    desk.out(IER, 0)
    assert 0 == desk.inb(IER) & 0x0F
    desk.out(IER, 0x0F)
    assert 0x0F == desk.inb(IER) & 0x0F
    desk.out(MCR, 0x10 | 0x0A)  # loop, with OUT2 and RTS
    assert 0x90 == desk.inb(MSR) & 0xF0
    desk.out(MCR, OUT2)
    desk.out(LCR, 0xBF)
    desk.out(FCR, 0)  # an EFR would be here
    desk.out(LCR, 0)
    desk.out(FCR, 0x01)
    assert 0xC0 == desk.inb(IIR) & 0xC0
    desk.out(LCR, 0x80)
    desk.out(FCR, 0x21)  # a 16750 has 64 bytes
    assert 0xC0 == desk.inb(IIR) & 0xE0
    desk.out(LCR, 0)
    desk.out(IER, 0x40)  # an XScale has an enable bit here
    assert not desk.inb(IER) & 0x40


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_the_fifo_interrupts_at_its_level_and_below_it_when_the_line_is_idle(fcr: int, trigger: int) -> None:
    desk = a_desk(ier=1, fcr=fcr)
    type_at(desk, bytes(trigger))
    assert interrupts(desk)
    assert 0xC0 | RECEIVED == desk.inb(IIR)
    desk.inb(DATA)
    assert 0xC0 | (TIMEOUT if trigger > 1 else NOTHING) == desk.inb(IIR)
    for _ in range(trigger - 1):
        assert desk.inb(LSR) & 1
        desk.inb(DATA)
    assert 0xC0 | NOTHING == desk.inb(IIR)
    assert not desk.inb(LSR) & 1


@given(text=st.binary(max_size=60), fifo=st.booleans())
def test_no_typed_byte_is_lost_or_turned_around(text: bytes, fifo: bool) -> None:  # drawn
    desk = a_desk(ier=1, fcr=int(fifo))
    for byte in text:
        desk.line.typed.append(byte)
        if byte & 1:
            desk.chipset.poll()
    desk.chipset.poll()
    seen = bytearray()
    while desk.inb(LSR) & 1:
        seen.append(desk.inb(DATA))
    assert text == seen
    assert not desk.inb(LSR) & 2


def test_without_fifo_there_is_one_byte() -> None:
    desk = a_desk(ier=1)
    type_at(desk, b"ab")
    assert RECEIVED == desk.inb(IIR)
    assert interrupts(desk)
    assert ord("a") == desk.inb(DATA)
    assert interrupts(desk)  # the next one came in
    assert ord("b") == desk.inb(DATA)
    assert 0 == desk.inb(DATA)


def test_an_empty_transmitter_interrupts_when_enabled_and_after_each_byte() -> None:
    desk = a_desk()
    desk.out(IER, 0x02)
    assert interrupts(desk)
    assert THR_EMPTY == desk.inb(IIR)
    assert NOTHING == desk.inb(IIR)  # reading it has answered it
    assert not interrupts(desk)
    desk.out(DATA, 0x41)
    assert interrupts(desk)
    desk.out(DATA, 0x42)  # without looking at IIR: writing answers too, and the byte is gone at once
    assert interrupts(desk)
    desk.out(IER, 0)
    assert NOTHING == desk.inb(IIR)
    desk.out(IER, 0x02)
    assert THR_EMPTY == desk.inb(IIR)


def test_received_data_come_before_an_empty_transmitter() -> None:
    desk = a_desk(ier=0x03)
    type_at(desk, b"x")
    assert RECEIVED == desk.inb(IIR)
    desk.inb(DATA)
    assert THR_EMPTY == desk.inb(IIR)


def test_without_out2_the_line_stays_low() -> None:
    desk = a_desk(ier=0x02)
    assert interrupts(desk)
    desk.out(MCR, 0)
    desk.out(DATA, 0x41)
    assert not interrupts(desk)
    assert THR_EMPTY == desk.inb(IIR)


def test_loopback() -> None:
    desk = a_desk(ier=0x05)
    desk.out(MCR, 0x10)
    desk.out(DATA, 0x41)
    assert b"" == desk.line.sent
    type_at(desk, b"typed")
    assert 0x41 == desk.inb(DATA)
    assert not desk.inb(LSR) & 1  # what is typed waits outside
    desk.out(DATA, 1, 2)
    assert LINE_STATUS == desk.inb(IIR)
    assert desk.inb(LSR) & 2  # overrun, told once
    assert not desk.inb(LSR) & 2
    desk.inb(DATA)
    desk.out(MCR, OUT2)
    assert ord("t") == desk.inb(DATA)


@pytest.mark.parametrize(("mcr", "msr"), [(0x1, 0x20), (0x2, 0x10), (0x4, 0x40), (0x8, 0x80)])
def test_in_loopback_outputs_are_inputs(mcr: int, msr: int) -> None:
    desk = a_desk()
    desk.out(MCR, 0x10 | mcr)
    assert msr == desk.inb(MSR) & 0xF0


def test_modem_lines_that_change_are_told_once() -> None:
    desk = a_desk(ier=0x08)
    desk.out(MCR, 0x18)
    assert MODEM == desk.inb(IIR)
    assert 0x80 | 0x03 == desk.inb(MSR)  # clear-to-send and data-set-ready went
    assert 0x80 == desk.inb(MSR)
    assert NOTHING == desk.inb(IIR)


@pytest.mark.parametrize("fcr", [0x03, 0x00])
def test_the_fifo_is_emptied(fcr: int) -> None:
    desk = a_desk(fcr=1)
    type_at(desk, b"abc")
    desk.out(FCR, fcr)
    assert not desk.inb(LSR) & 1
