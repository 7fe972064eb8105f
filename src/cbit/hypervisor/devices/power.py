"""How a guest ends: ACPI power management, the reset register, the keyboard controller's reset, fast reset.

    0x600 PM1a status   0x602 enable   0x604 control   0x608 PM timer   0xCF9 reset   0x64, 0x92 older resets

SCI is line 9, level-triggered.  Hardware is in ACPI mode from the start: there is no SMI (SMI_CMD 0).

Source: ACPI specification 6.4, chapter 4 (fixed hardware); Intel 82371SB (0xCF9); IBM PC AT (8042, 0x92).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from cbit.hypervisor.devices.clock import GuestClock, ticks, when
from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import Ports
from cbit.spec.acpi.board import PM1A_EVENT, PM_TIMER, RESET_PORT, SCI, SLEEP_OFF
from cbit.trace import SILENT, Trace

PM_TIMER_HZ: Final = 3_579_545

_SCI_EN: Final = 1 << 0
_SLP_EN: Final = 1 << 13
_TIMER_BITS: Final = 24
_HALF: Final = 1 << _TIMER_BITS - 1


class Power(Enum):
    """What a guest asked for."""

    OFF = "off"
    RESET = "reset"


_TIMER: Final = 1 << 0  # PM1 status and enable
_GLOBAL_LOCK: Final = 1 << 5  # nobody else takes the lock: never set
_POWER_BUTTON: Final = 1 << 8
_RTC: Final = 1 << 10  # the clock wakes nobody: never set
_ENABLES: Final = _TIMER | _GLOBAL_LOCK | _POWER_BUTTON | _RTC


class PowerControl:
    """The registers above.

    Mutable.

    Attributes:
        event: what the guest asked for; the first request stands.
        due_ns: when ``advance`` has something to do next; None: never.
    """

    def __init__(self, clock: GuestClock, interrupts: Interrupts, trace: Trace = SILENT) -> None:
        self._clock = clock
        self._interrupts = interrupts
        self._trace = trace
        self._status = 0
        self._enable = 0
        self._control = _SCI_EN
        self._half = 0  # how often the timer's top bit had changed when we looked
        self._reset = 0
        self._command_byte_next = False
        self._fast = 0
        self.event: Power | None = None
        self.due_ns: int | None = None

    def attach(self, ports: Ports) -> None:
        """Answer at all of them."""
        ports.wide(range(PM1A_EVENT, PM_TIMER + 4), self._read, self._write)
        ports.byte(RESET_PORT, lambda: self._reset, self._write_reset)
        ports.byte(0x60, lambda: 0, self._write_keyboard)
        ports.byte(0x64, lambda: 0, self._command_keyboard)  # no byte to read, ready to take one
        ports.byte(0x92, lambda: self._fast, self._write_fast)

    def advance(self) -> None:
        """Raise SCI if the timer's top bit has changed."""
        if self.due_ns is not None and self._clock.ns >= self.due_ns:
            self._settle()

    def press_button(self) -> None:
        """Press the power button: the guest's operating system may shut down."""
        self._status |= _POWER_BUTTON
        self._settle()

    def request(self, event: Power, how: str) -> None:
        """End the guest."""
        if self.event is None:
            self.event = event
            self._trace.emit("hypervisor.devices", f"power {event.value}", how)

    @property
    def _ticks(self) -> int:
        return ticks(self._clock.ns, PM_TIMER_HZ)

    def _settle(self) -> None:
        half = self._ticks // _HALF
        if half != self._half:
            self._half = half
            self._status |= _TIMER
        self.due_ns = when((half + 1) * _HALF, PM_TIMER_HZ) if self._enable & _TIMER else None
        self._interrupts.set_line(SCI, high=bool(self._status & self._enable))

    def _read(self, port: int, size: int) -> int:
        if port == PM_TIMER and size == 4:
            return self._ticks & (1 << _TIMER_BITS) - 1
        self._settle()
        registers = (
            self._status
            | self._enable << 16
            | self._control << 32
            | (self._ticks & (1 << _TIMER_BITS) - 1) << 64
        )
        return registers >> 8 * (port - PM1A_EVENT) & (1 << 8 * size) - 1

    def _write(self, port: int, size: int, value: int) -> None:
        self._settle()
        for i in range(size):
            self._write_byte(port - PM1A_EVENT + i, value >> 8 * i & 0xFF)
        self._settle()

    def _write_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        if offset < 2:
            self._status &= ~(value << shift)  # a one clears
        elif offset < 4:
            self._enable = self._enable & ~(0xFF << shift) | value << shift & _ENABLES
        elif offset < 6:
            control = self._control & ~(0xFF << shift) | value << shift
            self._control = control & ~_SLP_EN | _SCI_EN  # SLP_EN reads as zero
            if control & _SLP_EN and shift:
                self._sleep(control >> 10 & 7)

    def _sleep(self, kind: int) -> None:
        if kind == SLEEP_OFF:
            self.request(Power.OFF, "ACPI: S5")
        else:
            self._trace.emit("hypervisor.devices", "sleep ignored", "only S5 exists", SLP_TYP=kind)

    def _write_reset(self, value: int) -> None:
        if value & 4 and not self._reset & 4:
            self.request(Power.RESET, f"port {RESET_PORT:#x}")
        self._reset = value & 0x0E

    def _write_keyboard(self, value: int) -> None:
        if self._command_byte_next:
            self._command_byte_next = False
            if not value & 1:  # output port, bit 0: the processor's reset wire
                self.request(Power.RESET, "8042: output port")

    def _command_keyboard(self, value: int) -> None:
        self._command_byte_next = value == 0xD1
        if value & 0xF1 == 0xF0:  # pulse the output port's low bits, bit 0 among them where it is zero
            self.request(Power.RESET, "8042: pulse")

    def _write_fast(self, value: int) -> None:
        if value & 1 and not self._fast & 1:
            self.request(Power.RESET, "port 0x92")
        self._fast = value & 0x03
