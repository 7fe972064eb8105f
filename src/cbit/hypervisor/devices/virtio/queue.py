"""A split virtqueue as the device sees it: descriptors and two rings, all in guest memory.

    descriptor   addr u64 | len u32 | flags u16 | next u16       1 NEXT, 2 WRITE (by the device), 4 INDIRECT
    driver       flags u16 | idx u16 | heads u16 × size          1 NO_INTERRUPT
    device       flags u16 | idx u16 | (head u32, written u32) × size

Everything in them is the guest's word: what is not a queue raises ``Malformed``, and no content makes the
device loop, or read more than one chain's worth.

Source: virtio 1.1 (OASIS), chapter 2.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from cbit.spec.errors import CbitError

MAX_SIZE: Final = 128
_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4
_NO_INTERRUPT: Final = 1
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_RING_HEADER: Final = struct.Struct("<HH")
_USED: Final = struct.Struct("<II")


class Dma(Protocol):
    """How a device reaches guest memory; a request that cannot be served raises ``CbitError``."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Read memory as the device sees it."""
        ...

    def write(self, gpa: int, data: bytes, /) -> None:
        """Write memory."""
        ...


class Malformed(CbitError):
    """What the driver put into its queue is not one: the device needs a reset."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of guest memory."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Chain:
    """One request: what the device may read, then what it may write.

    Attributes:
        head: the descriptor that names it.
        readable: pieces with the driver's bytes.
        writable: pieces for the device's bytes.
    """

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_bytes(self) -> int:
        """How much the driver sends."""
        return sum(piece.length for piece in self.readable)

    @property
    def writable_bytes(self) -> int:
        """How much room the driver gives."""
        return sum(piece.length for piece in self.writable)


class Queue:
    """One queue.

    Mutable.

    Attributes:
        size: entries; the driver may halve it.
        desc: address of the descriptors.
        driver: address of the driver's ring.
        device: address of the device's ring.
        enabled: whether the driver has set it up.
    """

    def __init__(self, dma: Dma, max_size: int = MAX_SIZE) -> None:
        self._dma = dma
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.enabled = False
        self._next_available = 0
        self._next_used = 0
        self._used_some = False

    def enable(self) -> None:
        """Take it into use.

        Raises:
            Malformed: its size or its addresses cannot be.
        """
        if not 0 < self.size <= self.max_size or self.size & self.size - 1:
            raise Malformed(f"a queue of {self.size} entries: a power of two, {self.max_size} at most")
        if self.desc % 16 or self.driver % 2 or self.device % 4:
            raise Malformed(f"rings at {self.desc:#x}, {self.driver:#x}, {self.device:#x} are not aligned")
        self.enabled = True

    def chains(self, limit: int | None = None) -> Iterator[Chain]:
        """The requests that wait, in their order, ``limit`` at most.

        Raises:
            Malformed: the rings or a chain cannot be.
            CbitError: they are not in memory.
        """
        # One look at the ring: a request that overwrites it cannot keep the device busy.
        ring = self._dma.read(self.driver, 4 + 2 * self.size)
        _, index = _RING_HEADER.unpack_from(ring)
        waiting = index - self._next_available & 0xFFFF
        if waiting > self.size:
            raise Malformed(f"{waiting} requests wait in a queue of {self.size}")
        for _ in range(waiting if limit is None else min(waiting, limit)):
            (head,) = struct.unpack_from("<H", ring, 4 + 2 * (self._next_available % self.size))
            self._next_available = self._next_available + 1 & 0xFFFF
            yield self._chain(head)

    def put(self, head: int, written: int) -> None:
        """Give a request back, with so many bytes written.

        Raises:
            CbitError: the device's ring is not in memory.
        """
        place = self.device + 4 + _USED.size * (self._next_used % self.size)
        self._dma.write(place, _USED.pack(head, written))
        self._next_used = self._next_used + 1 & 0xFFFF
        self._dma.write(self.device, _RING_HEADER.pack(0, self._next_used))
        self._used_some = True

    def take_interrupt(self) -> bool:
        """Whether requests were given back since the last call, and the driver wants to know.

        Raises:
            CbitError: the driver's ring is not in memory.
        """
        used_some, self._used_some = self._used_some, False
        if not used_some:
            return False
        flags, _ = _RING_HEADER.unpack(self._dma.read(self.driver, 4))
        return not flags & _NO_INTERRUPT

    def _chain(self, head: int) -> Chain:
        readable: list[Segment] = []
        writable: list[Segment] = []
        table, entries, index = b"", self.size, head
        seen = 0
        while True:
            if index >= entries:
                raise Malformed(f"descriptor {index} of {entries}")
            seen += 1
            if seen > self.size:
                raise Malformed(f"the chain from descriptor {head} is longer than the queue")
            raw = table[16 * index : 16 * index + 16] or self._dma.read(self.desc + 16 * index, 16)
            gpa, length, flags, following = _DESCRIPTOR.unpack(raw)
            if flags & _INDIRECT:
                if table or flags & _NEXT:
                    raise Malformed("an indirect table inside a table, or followed by a descriptor")
                table, index = self._table(gpa, length), 0
                entries, seen = len(table) // 16, 0
                continue
            _add(readable, writable, Segment(gpa, length), device_writes=bool(flags & _WRITE))
            if not flags & _NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            index = following

    def _table(self, gpa: int, length: int) -> bytes:
        if not 0 < length <= 16 * self.size or length % 16:
            raise Malformed(f"an indirect table of {length} bytes: whole descriptors, {self.size} at most")
        return self._dma.read(gpa, length)


def _add(readable: list[Segment], writable: list[Segment], piece: Segment, *, device_writes: bool) -> None:
    if piece.gpa + piece.length > 1 << 64:
        raise Malformed(f"{piece.length:#x} bytes at {piece.gpa:#x} leave the address space")
    if not device_writes and writable:
        raise Malformed("something to read behind something to write")
    (writable if device_writes else readable).append(piece)


def gather(dma: Dma, pieces: tuple[Segment, ...], *, skip: int = 0, length: int) -> Iterator[bytes]:
    """Read ``length`` bytes of a chain's pieces, the first ``skip`` left out."""
    for gpa, count in _cut(pieces, skip, length):
        yield dma.read(gpa, count)


def scatter(dma: Dma, pieces: tuple[Segment, ...], data: bytes, *, skip: int = 0) -> None:
    """Write bytes into a chain's pieces, the first ``skip`` left out."""
    done = 0
    for gpa, count in _cut(pieces, skip, len(data)):
        dma.write(gpa, data[done : done + count])
        done += count


def _cut(pieces: tuple[Segment, ...], skip: int, length: int) -> Iterator[tuple[int, int]]:
    for piece in pieces:
        here = min(max(piece.length - skip, 0), length)
        if here:
            yield piece.gpa + skip, here
        length -= here
        skip = max(skip - piece.length, 0)
