"""8254 timer: channel 0 on line 0, channel 2 on the speaker and on port 0x61.

    0x40 … 0x42 counters    0x43 control    0x61 gate of channel 2 (bit 0), speaker (bit 1), output 2 (bit 5)

Nothing counts while nobody looks: a channel knows when its count was loaded, and computes.

Source: Intel 8254 data sheet.
"""

from __future__ import annotations

from typing import Final

from cbit.hypervisor.devices.clock import GuestClock, ticks, when
from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import Ports, ReadByte, WriteByte
from cbit.spec.acpi.board import PIT_LINE

HZ: Final = 1_193_182
_LATCH: Final = 0
_LOW: Final = 1
_HIGH: Final = 2
_BOTH: Final = 3


class Channel:
    """One counter.

    Mutable.  All times are in ticks since power-on.
    """

    def __init__(self, *, gate: bool) -> None:
        self.mode = 0
        self.access = _BOTH
        self.bcd = False
        self.gate = gate
        self._loaded_at: int | None = None  # tick of the load from which it counts
        self._initial = 0x10000  # in effect
        self._next: int | None = (
            None  # written, in effect from the end of the period (modes 2, 3) or a trigger (1, 5)
        )
        self._next_from = 0
        self._paused: int | None = None  # elapsed ticks when the gate closed
        self._low_byte: int | None = None  # first half of a 16-bit write
        self._read_high = False
        self._latched: int | None = None
        self._status: int | None = None
        self._null = True
        self._armed = False

    def control(self, value: int, now: int) -> None:
        """A control word for this channel that is not a latch command."""
        mode = value >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.access = value >> 4 & 3
        self.bcd = bool(value & 1)
        self._loaded_at = self._next = self._paused = self._low_byte = self._latched = None
        self._read_high = self._armed = False
        self._null = True

    def latch(self, now: int) -> None:
        """Keep the count until it is read; a second latch before that changes nothing."""
        if self._latched is None:
            self._latched = self._encoded(now)
            self._read_high = False

    def latch_status(self, now: int) -> None:
        """Keep the status until it is read."""
        if self._status is None:
            null = self._null or self._pending(now)
            self._status = self.output(now) << 7 | null << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self, now: int) -> int:
        """Read a byte: the latched status, the latched count, or the count as it runs."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        value = self._encoded(now) if self._latched is None else self._latched
        if self.access == _LOW:
            self._latched = None
            return value & 0xFF
        if self.access == _HIGH:
            self._latched = None
            return value >> 8
        self._read_high = not self._read_high
        if self._read_high:
            return value & 0xFF
        self._latched = None
        return value >> 8

    def write(self, value: int, now: int) -> None:
        """Write a byte of the count."""
        if self.access == _LOW:
            self._load(value, now)
        elif self.access == _HIGH:
            self._load(value << 8, now)
        elif self._low_byte is None:
            self._low_byte = value
            if self.mode == 0:
                self._loaded_at = self._paused = None  # the first byte stops it, output low
        else:
            low, self._low_byte = self._low_byte, None
            self._load(value << 8 | low, now)

    def set_gate(self, *, high: bool, now: int) -> None:
        """Drive the gate: it pauses (0, 2, 3, 4), or its rise triggers (1, 2, 3, 5)."""
        if high is self.gate:
            return
        self.gate = high
        if not high:
            if self._loaded_at is not None and self.mode not in (1, 5):
                self._paused = max(0, now - self._loaded_at)
            return
        if self.mode in (0, 4):
            if self._paused is not None:
                self._loaded_at, self._paused = now - self._paused, None
        elif self._loaded_at is not None or self._armed:
            self._adopt(now)
            self._loaded_at, self._paused, self._armed = now, None, False

    def output(self, now: int) -> bool:
        """The OUT pin."""
        if self._loaded_at is None:
            return self.mode != 0
        past, n = self._elapsed(now), self._initial
        if self.mode in (0, 1):
            return past >= n
        if self.mode in (4, 5):
            return past != n
        if not self.gate:
            return True
        if self.mode == 2:
            return past % n != n - 1
        return past % n < (n + 1) // 2

    def next_rise(self, now: int) -> int | None:
        """The first tick after ``now`` at which OUT rises, if nothing is written until then."""
        if self._loaded_at is None or self._paused is not None:
            return None
        past, n = now - self._loaded_at, self._initial
        if self.mode in (2, 3):
            self._adopt_if_due(now)
            past, n = now - self._loaded_at, self._initial
            return self._loaded_at + (max(past, 0) // n + 1) * n
        edge = self._loaded_at + n + (self.mode in (4, 5))
        return edge if edge > now else None

    def _load(self, value: int, now: int) -> None:
        if self.bcd:
            value = sum((value >> 4 * i & 0xF) * 10**i for i in range(4))
        initial = value or (10_000 if self.bcd else 0x10000)
        if self.mode in (1, 5) or (self.mode in (2, 3) and self._loaded_at is not None):
            self._next, self._next_from = initial, now
            self._armed = True
        else:
            self._initial = initial
            self._loaded_at = now
            self._paused = None if self.gate else 0
        self._null = False

    def _pending(self, now: int) -> bool:
        self._adopt_if_due(now)
        return self._next is not None

    def _adopt_if_due(self, now: int) -> None:
        """In modes 2 and 3 a new count takes effect when the period in which it was written ends."""
        if self._next is None or self.mode not in (2, 3) or self._loaded_at is None:
            return
        n = self._initial
        end = self._loaded_at + ((self._next_from - self._loaded_at) // n + 1) * n
        if now >= end and self._paused is None:
            self._adopt(end)
            self._loaded_at = end

    def _adopt(self, now: int) -> None:
        if self._next is not None:
            self._initial, self._next = self._next, None

    def _elapsed(self, now: int) -> int:
        self._adopt_if_due(now)
        if self._paused is not None:
            return self._paused
        return max(0, now - (self._loaded_at or 0))

    def _count(self, now: int) -> int:
        if self._loaded_at is None:
            return self._initial & 0xFFFF
        past, n = self._elapsed(now), self._initial
        if self.mode == 2:
            return n - past % n
        if self.mode == 3:
            high = (n + 1) // 2  # of an odd count the chip loads one less, and is high for one tick more
            place = past % n
            return n - n % 2 - 2 * (place if place < high else place - high)
        return n - past

    def _encoded(self, now: int) -> int:
        count = self._count(now)
        if not self.bcd:
            return count & 0xFFFF
        count %= 10_000
        return sum(count // 10**i % 10 << 4 * i for i in range(4))


class Pit:
    """The chip, and port 0x61.

    Mutable.

    Attributes:
        channels: its three counters.
        due_ns: when ``advance`` has something to do next; None: never.
    """

    def __init__(self, clock: GuestClock, interrupts: Interrupts) -> None:
        self._clock = clock
        self._interrupts = interrupts
        self.channels = (Channel(gate=True), Channel(gate=True), Channel(gate=False))
        self.due_ns: int | None = None
        self._speaker = 0

    def attach(self, ports: Ports) -> None:
        """Answer at 0x40 … 0x43 and 0x61."""
        for index in range(3):
            ports.byte(0x40 + index, self._reader(index), self._writer(index))
        ports.byte(0x43, None, self._control)
        ports.byte(0x61, self._read_61, self._write_61)

    def advance(self) -> None:
        """Raise line 0 if channel 0's output has risen since."""
        if self.due_ns is not None and self._clock.ns >= self.due_ns:
            self._interrupts.pulse(PIT_LINE)
            self._schedule()

    @property
    def _now(self) -> int:
        return ticks(self._clock.ns, HZ)

    def _schedule(self) -> None:
        tick = self.channels[0].next_rise(self._now)
        self.due_ns = None if tick is None else when(tick, HZ)

    def _drive(self) -> None:
        """Channel 0 was programmed: its output may have changed."""
        self._interrupts.set_line(PIT_LINE, high=self.channels[0].output(self._now))
        self._schedule()

    def _reader(self, index: int) -> ReadByte:
        return lambda: self.channels[index].read(self._now)

    def _writer(self, index: int) -> WriteByte:
        def write(value: int) -> None:
            self.channels[index].write(value, self._now)
            if index == 0:
                self._drive()

        return write

    def _control(self, value: int) -> None:
        index, now = value >> 6, self._now
        if index == 3:
            self._read_back(value, now)
        elif value >> 4 & 3 == _LATCH:
            self.channels[index].latch(now)
        else:
            self.channels[index].control(value, now)
            if index == 0:
                self._drive()

    def _read_back(self, value: int, now: int) -> None:
        for index, channel in enumerate(self.channels):
            if value & 2 << index:
                if not value & 0x20:
                    channel.latch(now)
                if not value & 0x10:
                    channel.latch_status(now)

    def _read_61(self) -> int:
        return self._speaker | self.channels[2].output(self._now) << 5 | (self._now // 18 & 1) << 4

    def _write_61(self, value: int) -> None:
        self._speaker = value & 0x0F
        self.channels[2].set_gate(high=bool(value & 1), now=self._now)
