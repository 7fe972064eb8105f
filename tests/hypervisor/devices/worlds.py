"""A chipset on a desk: a clock that the test moves, a console that the test types at."""

from __future__ import annotations

from dataclasses import dataclass, field

from cbit.hypervisor.devices.chipset import Chipset

EPOCH = 1_700_000_000  # 2023-11-14 22:13:20


@dataclass
class Clock:
    """Guest time, moved by hand."""

    ns: int = 0


@dataclass
class Line:
    """The other end of the serial line."""

    sent: bytearray = field(default_factory=bytearray)
    typed: bytearray = field(default_factory=bytearray)

    def write(self, byte: int) -> None:
        self.sent.append(byte)

    def read(self) -> bytes:
        typed = bytes(self.typed)
        self.typed.clear()
        return typed


class Desk:
    """A chipset, what is around it, and OUT and IN in few words."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.line = Line()
        self.chipset = Chipset(self.clock, console=self.line, epoch=EPOCH)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.chipset.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.chipset.read(port, 1)

    def start_pics(self, *, first: int = 0x20, second: int = 0x28, icw4: int = 1) -> None:
        """Initialise both controllers as Linux does; every line is enabled."""
        for base, vector, wires in ((0x20, first, 4), (0xA0, second, 2)):
            self.out(base, 0x11)
            self.out(base + 1, vector, wires, icw4, 0x00)

    def until(self, ns: int) -> None:
        self.clock.ns = ns
        self.chipset.advance()
