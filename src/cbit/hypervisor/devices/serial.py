"""16550A serial port at 0x3F8, line 4: the guest's console.

    offset    0        1      2        3     4     5     6     7
    read      RBR/DLL  IER/DLM  IIR    LCR   MCR   LSR   MSR   SCR
    write     THR/DLL  IER/DLM  FCR    LCR   MCR   -     -     SCR

What is sent is at the other end at once, so the transmitter is always empty.

Source: National Semiconductor PC16550D data sheet.
Not modelled: modem lines that change, errors on the line, the pace of the line.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import Ports
from cbit.spec.acpi.board import SERIAL_BASE, SERIAL_LINE

FIFO_SIZE: Final = 16
_TRIGGER: Final = (1, 4, 8, 14)


class Console(Protocol):
    """The other end of the line."""

    def write(self, byte: int, /) -> None:
        """Take a byte that the guest sent."""
        ...

    def read(self) -> bytes:
        """What was typed since the last call; never waits."""
        ...


# Plain numbers, not flags: what a guest prints goes through here, character by character.
_RECEIVED_ENABLE: Final = 1 << 0  # IER
_THR_EMPTY_ENABLE: Final = 1 << 1
_LINE_STATUS_ENABLE: Final = 1 << 2
_MODEM_STATUS_ENABLE: Final = 1 << 3
_DATA_READY: Final = 1 << 0  # LSR
_OVERRUN: Final = 1 << 1
_TRANSMITTER_EMPTY: Final = 1 << 5 | 1 << 6  # holding register, and shift register
_DTR: Final = 1 << 0  # MCR
_RTS: Final = 1 << 1
_OUT1: Final = 1 << 2
_OUT2: Final = 1 << 3  # in a PC: connects the interrupt to its line
_LOOP: Final = 1 << 4

_NOTHING: Final = 0x01  # causes in IIR
_THR_EMPTY: Final = 0x02
_RECEIVED: Final = 0x04
_LINE_STATUS: Final = 0x06
_TIMEOUT: Final = 0x0C
_MODEM_STATUS: Final = 0x00
_FIFOS: Final = 0xC0
_DLAB: Final = 0x80
_CONNECTED: Final = 0xB0  # carrier, data set ready, clear to send


class Serial:
    """The chip.

    Mutable.

    Attributes:
        sent: bytes that left it.
    """

    def __init__(self, console: Console, interrupts: Interrupts) -> None:
        self._console = console
        self._interrupts = interrupts
        self._received: deque[int] = deque()
        self._waiting = bytearray()  # typed, and no room yet
        self._ier = 0
        self._fifo = False
        self._trigger = 1
        self._lcr = 0
        self._mcr = 0
        self._scratch = 0
        self._divisor = 0
        self._overrun = 0
        self._modem_changes = 0
        self._thr_was_emptied = False
        self._line = False
        self.sent = 0

    def attach(self, ports: Ports) -> None:
        """Answer at 0x3F8 … 0x3FF."""
        reads = (
            self._read_data,
            self._read_ier,
            self._read_iir,
            lambda: self._lcr,
            lambda: self._mcr,
            self._read_lsr,
            self._read_msr,
            lambda: self._scratch,
        )
        writes = (
            self._write_data,
            self._write_ier,
            self._write_fcr,
            self._write_lcr,
            self._write_mcr,
            _ignore,
            _ignore,
            self._write_scratch,
        )
        for offset, (read, write) in enumerate(zip(reads, writes, strict=True)):
            ports.byte(SERIAL_BASE + offset, read, write)

    @property
    def listens(self) -> bool:
        """Whether the guest wants to hear of what is received: its driver is there."""
        return bool(self._ier & _RECEIVED_ENABLE)

    def poll(self) -> None:
        """Fetch what was typed, as much as there is room for."""
        typed = self._console.read()
        if typed:
            self._waiting += typed
        if self._waiting:
            self._fill()

    def _fill(self) -> None:
        """Let the line deliver what fits; the sender waits with the rest (as if RTS stopped it)."""
        if self._mcr & _LOOP:
            return  # the receiver listens to the transmitter alone
        room = (FIFO_SIZE if self._fifo else 1) - len(self._received)
        if room > 0 and self._waiting:
            self._received.extend(self._waiting[:room])
            del self._waiting[:room]
            self._settle()

    def _cause(self) -> int:
        """IIR's cause, in the chip's order of priority."""
        if not self._ier:
            return _NOTHING
        if self._ier & _LINE_STATUS_ENABLE and self._overrun:
            return _LINE_STATUS
        if self._ier & _RECEIVED_ENABLE and self._received:
            # MODEL CHOICE: the line has been idle for four characters as soon as nothing more was typed.
            full = not self._fifo or len(self._received) >= self._trigger
            return _RECEIVED if full else _TIMEOUT
        if self._ier & _THR_EMPTY_ENABLE and self._thr_was_emptied:
            return _THR_EMPTY
        if self._ier & _MODEM_STATUS_ENABLE and self._modem_changes:
            return _MODEM_STATUS
        return _NOTHING

    def _settle(self) -> None:
        high = bool(self._mcr & _OUT2) and not self._mcr & _LOOP and self._cause() != _NOTHING
        if high is not self._line:
            self._line = high
            self._interrupts.set_line(SERIAL_LINE, high=high)

    def _read_data(self) -> int:
        if self._lcr & _DLAB:
            return self._divisor & 0xFF
        byte = self._received.popleft() if self._received else 0
        self._settle()
        if self._waiting and not self._received:
            self._fill()  # the next characters come after the request for these has ended
        return byte

    def _write_data(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & _LOOP:
            self._loop(value)
        else:
            self.sent += 1
            self._console.write(value)
        again = self._thr_was_emptied
        self._thr_was_emptied = True
        if self._ier & _THR_EMPTY_ENABLE:
            if again and self._line and self._cause() == _THR_EMPTY:
                self._interrupts.pulse(SERIAL_LINE)  # the write ended the request; the byte left: a new one
            else:
                self._settle()
        elif self._mcr & _LOOP:
            self._settle()

    def _loop(self, value: int) -> None:
        if len(self._received) >= (FIFO_SIZE if self._fifo else 1):
            self._overrun = _OVERRUN
        else:
            self._received.append(value)

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & _DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = self._divisor & 0x00FF | value << 8
            return
        if value & ~self._ier & _THR_EMPTY_ENABLE:
            self._thr_was_emptied = True
        self._ier = value & 0x0F
        self._settle()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == _THR_EMPTY:
            self._thr_was_emptied = False
            self._settle()
        return cause | (_FIFOS if self._fifo else 0)

    def _write_fcr(self, value: int) -> None:
        enabled = bool(value & 1)
        if enabled is not self._fifo or (enabled and value & 0x02):
            self._received.clear()
        self._fifo = enabled
        self._trigger = _TRIGGER[value >> 6] if enabled else 1
        self._fill()
        self._settle()

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        before = self._read_msr_lines()
        self._mcr = value & 0x1F
        self._modem_changes |= (before ^ self._read_msr_lines()) >> 4
        self._fill()
        self._settle()

    def _read_lsr(self) -> int:
        status = _TRANSMITTER_EMPTY | self._overrun
        if self._received:
            status |= _DATA_READY
        if self._overrun:
            self._overrun = 0
            self._settle()
        return status

    def _read_msr_lines(self) -> int:
        if not self._mcr & _LOOP:
            return _CONNECTED
        mcr = self._mcr
        return (mcr & _RTS) << 3 | (mcr & _DTR) << 5 | (mcr & _OUT1) << 4 | (mcr & _OUT2) << 4

    def _read_msr(self) -> int:
        status = self._read_msr_lines() | self._modem_changes
        self._modem_changes = 0
        self._settle()
        return status

    def _write_scratch(self, value: int) -> None:
        self._scratch = value


def _ignore(value: int) -> None:
    """Take a write to a register that is read only."""
