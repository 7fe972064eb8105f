"""Two 8259A interrupt controllers, cascaded as in a PC: sixteen lines, one wire to the processor.

    line 0 … 7  ── first chip ── INT ── processor     0 timer, 2 cascade, 4 serial, 8 clock, 9 ACPI, 10 11 PCI
    line 8 … 15 ── second chip ── line 2 of the first

A line is edge-triggered unless its bit in ELCR says level.  A request that goes away before the processor
acknowledges it ends as a spurious interrupt, number 7 of its chip.

Source: Intel 8259A data sheet; ELCR: Intel 82371SB (PIIX3) data sheet, which ignores the LTIM bit of ICW1.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from cbit.hypervisor.devices.ports import Ports, ReadByte, WriteByte

LINES: Final = 16
CASCADE: Final = 2
_ALWAYS_EDGE: Final = 0x2107  # timer, keyboard, cascade, clock, coprocessor


class Chip:
    """One 8259A.

    Mutable.
    """

    def __init__(self, *, slaves: int) -> None:
        self._slaves = slaves  # which inputs are other chips
        self.elcr = 0
        self._lines = 0  # what the wires carry
        self._edges = 0  # edges seen and not yet acknowledged
        self.imr = 0
        self.isr = 0
        self.base = 0
        self._lowest = 7  # the input that has the lowest priority
        self._step = 0  # which ICW comes next; 0: none
        self._wants_icw4 = False
        self._single = False
        self._auto_eoi = False
        self._rotate_auto = False
        self._special_mask = False
        self._fully_nested = False
        self._reads_isr = False
        self._polled = False
        self._ready = False  # ICW2 has given it vectors

    @property
    def irr(self) -> int:
        """Requests: levels as they are, edges until they are acknowledged."""
        return self._lines & self.elcr | self._edges & ~self.elcr

    def set_line(self, line: int, *, high: bool) -> None:
        """Drive an input."""
        bit = 1 << line
        if high:
            self._edges |= bit & ~self._lines
            self._lines |= bit
        else:
            self._lines &= ~bit
            self._edges &= ~bit  # the input must stay high until it is acknowledged

    def is_high(self, line: int) -> bool:
        """Whether an input is driven high."""
        return bool(self._lines >> line & 1)

    def request(self) -> int | None:
        """The input that would be served now, if there is one that nothing hides."""
        requests = (self._lines & self.elcr | self._edges & ~self.elcr) & ~self.imr
        if not requests or not self._ready or self._step:
            return None
        hiding = self.isr
        if self._special_mask:
            hiding &= ~self.imr
        again = self._slaves if self._fully_nested else 0  # another request of a chip that is being served
        for place in range(1, 9):
            line = (self._lowest + place) & 7
            if requests & ~(hiding & ~again) & 1 << line:
                return line
            if hiding & 1 << line:
                return None
        return None

    def acknowledge(self) -> int:
        """Serve what is requested, or number 7 if that is gone; return the input."""
        line = self.request()
        if line is None:
            return 7
        self._edges &= ~(1 << line)
        if not self._auto_eoi:
            self.isr |= 1 << line
        elif self._rotate_auto:
            self._lowest = line
        return line

    def read_command(self) -> int:
        """Read at A0=0: the poll word, ISR or IRR."""
        if self._polled:
            self._polled = False
            found = self.request()
            return 0 if found is None else 0x80 | self.acknowledge()
        return self.isr if self._reads_isr else self.irr

    def read_data(self) -> int:
        """Read at A0=1: IMR."""
        if self._polled:
            return self.read_command()
        return self.imr

    def write_command(self, value: int) -> None:
        """ICW1, OCW2 or OCW3."""
        if value & 0x10:
            self._start(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)

    def write_data(self, value: int) -> None:
        """ICW2 to ICW4 while they are awaited; else OCW1."""
        if self._step == 0:
            self.imr = value
        elif self._step == 2:
            self.base = value & 0xF8
            self._ready = True
            self._step = 4 if self._single else 3
        elif self._step == 3:
            self._step = 4  # who hangs where: the wires of a PC are what they are
        elif self._step == 4:
            self._auto_eoi = bool(value & 0x02)
            self._fully_nested = bool(value & 0x10)
            self._step = 0
        if self._step == 4 and not self._wants_icw4:
            self._step = 0

    def _start(self, value: int) -> None:
        """ICW1: edge memory, mask, priorities and modes are as after power-on."""
        self._edges = self.imr = self.isr = 0
        self._lowest = 7
        self._special_mask = self._reads_isr = self._polled = False
        self._auto_eoi = self._fully_nested = self._rotate_auto = False
        self._wants_icw4, self._single = bool(value & 0x01), bool(value & 0x02)
        self._step, self._ready = 2, False

    def _ocw2(self, value: int) -> None:
        rotate, specific, eoi = bool(value & 0x80), bool(value & 0x40), bool(value & 0x20)
        line = value & 7
        if not eoi:
            if rotate and specific:
                self._lowest = line
            elif not specific:
                self._rotate_auto = rotate
            return
        if not specific:
            served = self._highest_in_service()
            if served is None:
                return
            line = served
        self.isr &= ~(1 << line)
        if rotate:
            self._lowest = line

    def _highest_in_service(self) -> int | None:
        hidden = self.imr if self._special_mask else 0  # a masked level is not ended by a plain EOI then
        for place in range(1, 9):
            line = (self._lowest + place) & 7
            if self.isr & ~hidden & 1 << line:
                return line
        return None

    def _ocw3(self, value: int) -> None:
        if value & 0x40:
            self._special_mask = bool(value & 0x20)
        if value & 0x04:
            self._polled = True
        elif value & 0x02:
            self._reads_isr = bool(value & 0x01)


class Interrupts:
    """Sixteen lines and the wire to the processor.

    Mutable.

    Attributes:
        pending: whether the wire is high: the processor should ask ``acknowledge`` for a vector.
        first: the chip at the processor.
        second: the chip behind it.
        spurious: how often nothing was left to acknowledge.
    """

    def __init__(self) -> None:
        self.first = Chip(slaves=1 << CASCADE)
        self.second = Chip(slaves=0)
        self.pending = False
        self.spurious = 0

    def attach(self, ports: Ports) -> None:
        """Answer at 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1."""
        for chip, base in ((self.first, 0x20), (self.second, 0xA0)):
            ports.byte(base, self._read(chip.read_command), self._write(chip.write_command))
            ports.byte(base + 1, self._read(chip.read_data), self._write(chip.write_data))
        for chip, port, fixed in ((self.first, 0x4D0, _ALWAYS_EDGE), (self.second, 0x4D1, _ALWAYS_EDGE >> 8)):
            ports.byte(port, partial(getattr, chip, "elcr"), self._write(partial(_set_elcr, chip, fixed)))

    def set_line(self, line: int, *, high: bool) -> None:
        """Drive one of the sixteen lines."""
        if line < 8:
            self.first.set_line(line, high=high)
        else:
            self.second.set_line(line - 8, high=high)
        self._settle()

    def pulse(self, line: int) -> None:
        """Let a line fall, if it is high, and rise: one edge."""
        chip = self.first if line < 8 else self.second
        chip.set_line(line & 7, high=False)
        chip.set_line(line & 7, high=True)
        self._settle()

    def acknowledge(self) -> int:
        """What the processor's INTA cycles read: the vector."""
        found = self.first.request()
        vector = self.first.base + self.first.acknowledge()
        if found == CASCADE:
            found = self.second.request()
            vector = self.second.base + self.second.acknowledge()
            self.first.set_line(CASCADE, high=False)  # INT falls with INTA, and rises for what is left
        self.spurious += found is None
        self._settle()
        return vector

    def _settle(self) -> None:
        first, inner = self.first, self.second.request() is not None
        if inner is not first.is_high(CASCADE):
            first.set_line(CASCADE, high=inner)
        self.pending = first.request() is not None

    def _read(self, read: ReadByte) -> ReadByte:
        def settled() -> int:
            value = read()  # a poll acknowledges
            self._settle()
            return value

        return settled

    def _write(self, write: WriteByte) -> WriteByte:
        def settled(value: int) -> None:
            write(value)
            self._settle()

        return settled


def _set_elcr(chip: Chip, fixed: int, value: int) -> None:
    chip.elcr = value & ~(fixed & 0xFF)
