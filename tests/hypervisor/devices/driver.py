"""A virtio driver as the specification has it: finds the function, negotiates, puts chains into queues."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hypervisor.devices.worlds import Desk

DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000  #: of queue 0; queue n is n << 14 further on
BUFFERS = 0x40000
ACCEPT = 1 << 32 | 1 << 33
SIZE = 128


def address(slot: int, register: int) -> int:
    return 1 << 31 | slot << 11 | register & 0xFC


def config_read(desk: Desk, slot: int, register: int, size: int) -> int:
    desk.chipset.write(0xCF8, 4, address(slot, register))
    return desk.chipset.read(0xCFC + register % 4, size)


def config_write(desk: Desk, slot: int, register: int, size: int, value: int) -> None:
    desk.chipset.write(0xCF8, 4, address(slot, register))
    desk.chipset.write(0xCFC + register % 4, size, value)


@dataclass(frozen=True)
class Piece:
    """One descriptor: what the device may read, or how much it may write."""

    gpa: int
    length: int
    writable: bool = False


class Driver:
    """One function's driver."""

    def __init__(self, desk: Desk, slot: int = 1) -> None:
        self.desk = desk
        self.slot = slot
        self.capabilities = dict(self._capabilities())
        self.base = config_read(desk, slot, 0x10, 4) & ~3
        config_write(desk, slot, 4, 2, 5)  # I/O and bus master
        self.tail: dict[int, int] = {}
        self.rings = (slot - 1) % 4 << 16  # a few functions side by side

    def _capabilities(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Walk the list: (type, (window, offset, length))."""
        found = []
        at = config_read(self.desk, self.slot, 0x34, 1)
        while at:
            read = [config_read(self.desk, self.slot, at + i, 4) for i in (0, 4, 8, 12)]
            if read[0] & 0xFF == 9:
                found.append((read[0] >> 24, (read[1] & 0xFF, read[2], read[3])))
            at = read[0] >> 8 & 0xFF
        return found

    def port(self, kind: int, offset: int = 0) -> int:
        return self.base + self.capabilities[kind][1] + offset

    def get(self, offset: int, size: int) -> int:
        return self.desk.chipset.read(self.port(1, offset), size)

    def set(self, offset: int, size: int, value: int) -> None:
        self.desk.chipset.write(self.port(1, offset), size, value)

    @property
    def status(self) -> int:
        return self.get(0x14, 1)

    def features(self) -> int:
        halves = []
        for select in (0, 1):
            self.set(0, 4, select)
            halves.append(self.get(4, 4))
        return halves[0] | halves[1] << 32

    def negotiate(self, accept: int = ACCEPT) -> bool:
        """Reset, accept features; return whether the device agrees."""
        self.set(0x14, 1, 0)
        for status in (1, 3):
            self.set(0x14, 1, status)
        for select in (0, 1):
            self.set(8, 4, select)
            self.set(0xC, 4, accept >> 32 * select & 0xFFFF_FFFF)
        self.set(0x14, 1, 11)
        return bool(self.status & 8)

    def set_up_queue(self, index: int = 0, *, size: int = SIZE, desc: int = DESC) -> None:
        self.set(0x16, 2, index)
        self.set(0x18, 2, size)
        for offset, place in ((0x20, desc), (0x28, AVAIL), (0x30, USED)):
            at = place + self.rings + (index << 14)
            self.set(offset, 4, at & 0xFFFF_FFFF)
            self.set(offset + 4, 4, at >> 32)
        self.set(0x1C, 2, 1)
        self.tail[index] = 0

    def start(self, *, accept: int = ACCEPT, queues: int = 1) -> Self:
        assert self.negotiate(accept)
        for index in range(queues):
            self.set_up_queue(index)
        self.set(0x14, 1, 15)
        return self

    def descriptors(self, pieces: Sequence[Piece], *, first: int = 0, at: int | None = None) -> None:
        """Write a chain of descriptors that follow each other."""
        at = DESC + self.rings if at is None else at
        for i, piece in enumerate(pieces):
            flags = (i + 1 < len(pieces)) | piece.writable << 1
            raw = struct.pack("<QIHH", piece.gpa, piece.length, flags, first + i + 1)
            self.desk.memory.write(at + 16 * (first + i), raw)

    def offer(self, head: int, index: int = 0) -> None:
        """Put a head into the driver's ring."""
        tail, base = self.tail[index], AVAIL + self.rings + (index << 14)
        self.desk.memory.write(base + 4 + 2 * (tail % SIZE), struct.pack("<H", head))
        self.tail[index] = tail + 1 & 0xFFFF
        self.desk.memory.write(base + 2, struct.pack("<H", self.tail[index]))

    def kick(self, index: int = 0) -> None:
        self.desk.chipset.write(self.port(2), 2, index)

    def used(self, index: int = 0) -> list[tuple[int, int]]:
        """What the device gave back: (head, written) in order."""
        base = USED + self.rings + (index << 14)
        (count,) = struct.unpack("<H", self.desk.memory.read(base + 2, 2))
        raw = self.desk.memory.read(base + 4, 8 * SIZE)
        return [struct.unpack_from("<II", raw, 8 * (i % SIZE)) for i in range(count)]

    def isr(self) -> int:
        return self.desk.chipset.read(self.port(3), 1)

    def ask(self, pieces: Sequence[Piece]) -> int:
        """Put one chain, kick, and return how many bytes the device says that it wrote."""
        before = len(self.used())
        self.descriptors(pieces)
        self.offer(0)
        self.kick()
        after = self.used()
        assert before + 1 == len(after)
        return after[-1][1]


class DiskDriver(Driver):
    """Requests to a disk."""

    HEADER, STATUS, DATA = BUFFERS, BUFFERS + 0x10, BUFFERS + 0x1000

    def request(self, kind: int, sector: int, data: bytes = b"", *, room: int = 0) -> tuple[int, bytes, int]:
        """Ask; return (status, what was read, how many bytes the device says that it wrote)."""
        memory = self.desk.memory
        memory.write(self.HEADER, struct.pack("<IIQ", kind, 0, sector))
        memory.write(self.STATUS, b"\xff")
        memory.write(self.DATA, data or bytes(room))
        pieces = [Piece(self.HEADER, 16)]
        if data:
            pieces.append(Piece(self.DATA, len(data)))
        if room:
            pieces.append(Piece(self.DATA, room, writable=True))
        written = self.ask([*pieces, Piece(self.STATUS, 1, writable=True)])
        return memory.read(self.STATUS, 1)[0], memory.read(self.DATA, room), written
