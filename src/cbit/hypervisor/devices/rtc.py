"""MC146818 clock and its CMOS memory: index at 0x70, data at 0x71, line 8.

    0 seconds  1 its alarm  2 minutes  3 its alarm  4 hours  5 its alarm  6 weekday  7 day  8 month  9 year
    10 A: update in progress, rate   11 B: set, enables, format   12 C: flags   13 D: valid    0x32 century

Time is the epoch that the caller gave plus the guest's own clock: no host clock is read.

Source: Motorola MC146818A data sheet; the century's place: ACPI, which has the FADT name it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cbit.hypervisor.devices.clock import NS, GuestClock
from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import Ports
from cbit.spec.acpi.board import RTC_CENTURY, RTC_LINE

_A, _B, _C, _D = 10, 11, 12, 13
_TIME: Final = frozenset((0, 2, 4, 6, 7, 8, 9, RTC_CENTURY))
_ALARM: Final = (1, 3, 5)
_DIVIDER: Final = 0x20  # 32.768 kHz
_VALID: Final = 0x80
_UIP: Final = 0x80
_UIP_NS: Final = 244_000  # how long before an update it is announced
_ANY: Final = 0xC0  # an alarm byte from here on matches everything
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)


_HOURS_24: Final = 1 << 1  # register B
_BINARY: Final = 1 << 2
_UPDATE: Final = 1 << 4  # enables in B, flags in C
_ALARMED: Final = 1 << 5
_PERIODIC: Final = 1 << 6
_SET: Final = 1 << 7


class Rtc:
    """The chip.

    Mutable.

    Args:
        clock: the guest's time.
        epoch: seconds since 1970 at power-on.
        interrupts: where line 8 ends.

    Attributes:
        due_ns: when ``advance`` has something to do next; None: never.
    """

    def __init__(self, clock: GuestClock, *, epoch: int, interrupts: Interrupts) -> None:
        self._clock = clock
        self._interrupts = interrupts
        self._base = epoch  # seconds that belong to guest time 0
        self._index = 0
        self._cmos = bytearray(128)
        self._cmos[_A] = _DIVIDER | 6
        self._cmos[_B] = _HOURS_24
        self._flags = 0
        self._frozen: dict[int, int] | None = None  # the time registers while SET holds them
        self._checked_ns = clock.ns  # flags are known up to here
        self.due_ns: int | None = None

    def attach(self, ports: Ports) -> None:
        """Answer at 0x70 and 0x71."""
        ports.byte(0x70, lambda: 0xFF, self._write_index)
        ports.byte(0x71, self._read, self._write)

    def advance(self) -> None:
        """Raise line 8 if an enabled event has happened since."""
        if self.due_ns is not None and self._clock.ns >= self.due_ns:
            self._catch_up()
            self._schedule()

    def _write_index(self, value: int) -> None:
        self._index = value & 0x7F  # bit 7 masks NMI, and nothing here raises one

    def _read(self) -> int:
        index = self._index
        if index in _TIME:
            return self._registers()[index]
        if index == _A:
            updating = self._clock.ns % NS >= NS - _UIP_NS and not self._cmos[_B] & _SET
            return self._cmos[_A] | (_UIP if updating else 0)
        if index == _C:
            return self._read_flags()
        if index == _D:
            return _VALID
        return self._cmos[index]

    def _write(self, value: int) -> None:
        index = self._index
        if index in _TIME:
            self._set_time(index, value)
        elif index == _A:
            self._catch_up()
            self._cmos[_A] = value & 0x7F
        elif index == _B:
            self._write_b(value)
        elif index not in (_C, _D):
            self._catch_up()
            self._cmos[index] = value
        self._schedule()

    # ---- the time of day

    def _second(self) -> int:
        return self._base + self._clock.ns // NS

    def _registers(self) -> dict[int, int]:
        """The time registers, encoded as register B says."""
        if self._frozen is not None:
            return self._frozen
        t = _FIRST + timedelta(seconds=self._second() % _SPAN)
        return {
            0: self._encode(t.second),
            2: self._encode(t.minute),
            4: self._encode_hour(t.hour),
            6: self._encode(t.isoweekday() % 7 + 1),
            7: self._encode(t.day),
            8: self._encode(t.month),
            9: self._encode(t.year % 100),
            RTC_CENTURY: self._encode(t.year // 100),
        }

    def _set_time(self, index: int, value: int) -> None:
        self._catch_up()
        registers = self._registers() | {index: value}
        if self._frozen is not None:
            self._frozen = registers
        else:
            self._adopt(registers)

    def _adopt(self, registers: dict[int, int]) -> None:
        """Count from what the registers say; nonsense is kept out (the chip's behaviour is not defined)."""
        d = self._decode
        try:
            t = datetime(
                d(registers[RTC_CENTURY]) * 100 + d(registers[9]),
                d(registers[8]),
                d(registers[7]),
                self._decode_hour(registers[4]),
                d(registers[2]),
                d(registers[0]),
                tzinfo=UTC,
            )
        except ValueError:
            return
        self._base = int((t - _FIRST).total_seconds()) - self._clock.ns // NS

    def _write_b(self, value: int) -> None:
        self._catch_up()
        if value & _SET and self._frozen is None:
            self._frozen = self._registers()
            value &= ~_UPDATE  # the data sheet: SET clears it
        self._cmos[_B] = value
        if not value & _SET and self._frozen is not None:
            registers, self._frozen = self._frozen, None
            self._adopt(registers)
        self._settle()

    def _encode(self, value: int) -> int:
        return value if self._cmos[_B] & _BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._cmos[_B] & _BINARY:
            return value
        if value & 0xF > 9:
            raise ValueError(f"{value:#x} is not decimal")
        return (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._cmos[_B] & _HOURS_24:
            return self._encode(hour)
        return self._encode((hour - 1) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._cmos[_B] & _HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    # ---- flags and line 8

    def _period_ns(self) -> int | None:
        rate = self._cmos[_A] & 0xF
        if not rate or self._cmos[_A] & 0x70 != _DIVIDER:
            return None
        return NS >> 16 - (rate + 7 if rate < 3 else rate)

    def _catch_up(self) -> None:
        """Set the flags of what has happened since the last look."""
        then, now = self._checked_ns, self._clock.ns
        if now <= then:
            return
        self._checked_ns = now
        period = self._period_ns()
        if period is not None and now // period > then // period:
            self._flags |= _PERIODIC
        if self._frozen is None and now // NS > then // NS:
            self._flags |= _UPDATE
            alarm = self._next_alarm(then // NS)
            if alarm is not None and alarm <= now // NS:
                self._flags |= _ALARMED
        self._settle()

    def _next_alarm(self, after: int) -> int | None:
        """The first whole second of guest time later than ``after`` at which the alarm bytes match."""
        now = (self._base + after + 1) % 86_400
        try:
            seconds, minutes, hours = (
                None if self._cmos[index] >= _ANY else decode(self._cmos[index])
                for index, decode in zip(_ALARM, (self._decode, self._decode, self._decode_hour), strict=True)
            )
        except ValueError:
            return None
        waits = [
            (hour * 3600 + minute * 60 + second - now) % 86_400
            for hour in _matching(hours, 24)
            for minute in _matching(minutes, 60)
            for second in ([now % 60, 0] if seconds is None else _matching(seconds, 60))
        ]
        return after + 1 + min(waits) if waits else None

    def _settle(self) -> None:
        high = bool(self._flags & self._cmos[_B] & 0x70)
        self._interrupts.set_line(RTC_LINE, high=high)

    def _read_flags(self) -> int:
        self._catch_up()
        flags, enabled = self._flags, self._cmos[_B]
        self._flags = 0
        self._settle()
        self._schedule()
        return flags | (0x80 if flags & enabled & 0x70 else 0)

    def _schedule(self) -> None:
        now, enabled = self._clock.ns, self._cmos[_B]
        due: list[int] = []
        period = self._period_ns()
        if enabled & _PERIODIC and period is not None:
            due.append((now // period + 1) * period)
        if enabled & _UPDATE and self._frozen is None:
            due.append((now // NS + 1) * NS)
        if enabled & _ALARMED and self._frozen is None:
            alarm = self._next_alarm(now // NS)
            if alarm is not None:
                due.append(alarm * NS)
        self.due_ns = min(due, default=None)


def _matching(value: int | None, count: int) -> range:
    """Which of 0 … count - 1 an alarm byte matches."""
    if value is None:
        return range(count)
    return range(value, value + 1) if value < count else range(0)


_SPAN: Final = int((datetime(9999, 12, 31, tzinfo=UTC) - _FIRST).total_seconds())
