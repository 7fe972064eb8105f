"""A chipset on a desk: a clock that the test moves, a console that the test types at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cbit.hypervisor.devices.chipset import Chipset
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.devices.virtio.console import Channel
from cbit.hypervisor.vm import NoSuchMemory
from cbit.trace import SILENT, Trace

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


class Memory:
    """Guest memory from 0 on, for devices that know no better."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.data = bytearray(size)
        self.reads = 0

    def read(self, gpa: int, length: int) -> bytes:
        self.reads += 1
        self._check(gpa, length)
        return bytes(self.data[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.data[gpa : gpa + len(data)] = data

    def _check(self, gpa: int, length: int) -> None:
        if gpa < 0 or gpa + length > len(self.data):
            raise NoSuchMemory(f"nothing at {gpa:#x}")


class Desk:
    """A chipset, what is around it, and OUT and IN in few words."""

    def __init__(
        self,
        *,
        trace: Trace = SILENT,
        disks: Sequence[Disk] = (),
        channel: Channel | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.clock = Clock()
        self.line = Line()
        self.memory = memory or Memory()
        self.chipset = Chipset(
            self.clock,
            console=self.line,
            epoch=EPOCH,
            trace=trace,
            disks=disks,
            channel=channel,
            dma=self.memory,
        )

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
