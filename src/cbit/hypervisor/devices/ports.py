"""The I/O ports of a PC: one table from port to what answers there.

    byte ports    read() and write(value), a pair a port; a wider access is cut into bytes, as ISA does
    wide ports    read(port, size) and write(port, size, value): the device decides what sizes it knows

A port that nobody owns reads all ones, and a write to it goes nowhere; both are counted, and the first at a
port is traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from cbit.trace import SILENT, Trace

ReadByte = Callable[[], int]
WriteByte = Callable[[int], None]
ReadWide = Callable[[int, int], int]
WriteWide = Callable[[int, int, int], None]

ALL_PORTS: Final = 0x10000


class PortTaken(ValueError):
    """Two devices claim one port."""


class Ports:
    """Who answers at which port.

    Mutable: devices come and go.

    Attributes:
        unassigned: how often each port was touched that nobody owns.
    """

    def __init__(self, trace: Trace = SILENT) -> None:
        self._reads: dict[int, ReadByte] = {}
        self._writes: dict[int, WriteByte] = {}
        self._wide: dict[int, tuple[ReadWide, WriteWide]] = {}
        self._trace = trace
        self.unassigned: Counter[int] = Counter()

    def byte(self, port: int, read: ReadByte | None = None, write: WriteByte | None = None) -> None:
        """Give a port to a device; a direction without a function is nobody's.

        Raises:
            PortTaken: it is somebody's already.
        """
        if port in self._reads or port in self._writes:
            raise PortTaken(f"port {port:#x} belongs to a device already")
        if read is not None:
            self._reads[port] = read
        if write is not None:
            self._writes[port] = write

    def wide(self, ports: range, read: ReadWide, write: WriteWide) -> None:
        """Give a range to a device that sees addresses and sizes.

        Where a byte port is too, that one answers to accesses of one byte.

        Raises:
            PortTaken: part of it is somebody's already; nothing changes.
        """
        if any(port in self._wide for port in ports):
            raise PortTaken(f"ports {ports.start:#x}..{ports.stop - 1:#x} belong in part to a device already")
        self._wide.update(dict.fromkeys(ports, (read, write)))

    def release(self, ports: range) -> None:
        """Take a range back from a device that sees sizes."""
        for port in ports:
            self._wide.pop(port, None)

    def is_free(self, ports: range) -> bool:
        """Whether nobody answers anywhere in a range."""
        return not any(port in self._wide or port in self._reads or port in self._writes for port in ports)

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if size == 1:
            read = self._reads.get(port)
            if read is not None:
                return read()
        wide = self._wide.get(port)
        if wide is not None:
            return wide[0](port, size)
        if size == 1:
            self._nobody(port, "read")
            return 0xFF
        return sum(self.read(_next(port, i), 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; of ``value`` no more than those count."""
        if size == 1:
            write = self._writes.get(port)
            if write is not None:
                write(value & 0xFF)
                return
        wide = self._wide.get(port)
        if wide is not None:
            wide[1](port, size, value & (1 << 8 * size) - 1)
        elif size == 1:
            self._nobody(port, "write")
        else:
            for i in range(size):
                self.write(_next(port, i), 1, value >> 8 * i)

    def _nobody(self, port: int, what: str) -> None:
        self.unassigned[port] += 1
        if self.unassigned[port] == 1:
            self._trace.emit("hypervisor.devices", f"port {what}: nobody answers", port=port)


def _next(port: int, i: int) -> int:
    return (port + i) % ALL_PORTS
