"""virtio-blk: a disk.

    request   type u32 | 0 u32 | sector u64 | data …     answer   data … | status u8

Source: virtio 1.1 (OASIS), chapter 5.2.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from cbit.hypervisor.devices.disk import SECTOR, Disk
from cbit.hypervisor.devices.virtio.queue import MAX_SIZE, Chain, Dma, Malformed, Queue, gather, scatter
from cbit.spec.address import MIB

_HEADER: Final = struct.Struct("<I4xQ")
_ID_SIZE: Final = 20
_SIZE_MAX: Final = MIB  # bytes in one piece
_SEG_MAX: Final = MAX_SIZE - 2  # pieces in one request, besides header and status

FEATURE_SIZE_MAX: Final = 1 << 1
FEATURE_SEG_MAX: Final = 1 << 2
FEATURE_READ_ONLY: Final = 1 << 5
FEATURE_BLK_SIZE: Final = 1 << 6
FEATURE_FLUSH: Final = 1 << 9


class Request(IntEnum):
    """What a driver can ask for."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Answer(IntEnum):
    """How it went."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Block:
    """A disk behind the transport.

    Args:
        disk: what holds the sectors.
        serial: what GET_ID answers: 20 ASCII characters at most.
    """

    kind = 2
    class_code = 0x010000
    queues = 1

    def __init__(self, disk: Disk, serial: str = "cbit") -> None:
        self._disk = disk
        self._serial = serial.encode("ascii")[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self.features = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH
        if disk.read_only:
            self.features |= FEATURE_READ_ONLY

    def config(self) -> bytes:
        """Capacity in sectors, size_max, seg_max, geometry (none), block size."""
        return struct.pack("<QII4xI", self._disk.size // SECTOR, _SIZE_MAX, _SEG_MAX, SECTOR)

    def serve(self, index: int, queue: Queue, dma: Dma) -> None:
        """Serve the requests that wait."""
        for chain in queue.chains():
            queue.put(chain.head, self._serve(chain, dma))

    def _serve(self, chain: Chain, dma: Dma) -> int:
        """Serve one request; return how many bytes were written into guest memory."""
        room = chain.writable_bytes - 1
        if chain.readable_bytes < _HEADER.size or room < 0:
            raise Malformed("a disk request without its header, or without room for its status")
        kind, sector = _HEADER.unpack(b"".join(gather(dma, chain.readable, length=_HEADER.size)))
        try:
            answer, written = self._do(kind, sector, chain, dma)
        except OSError:  # of the disk's file; what guest memory refuses is CbitError
            answer, written = Answer.IOERR, 0
        scatter(dma, chain.writable, bytes([answer]), skip=room)
        return written + 1

    def _do(self, kind: int, sector: int, chain: Chain, dma: Dma) -> tuple[Answer, int]:
        out, room = chain.readable_bytes - _HEADER.size, chain.writable_bytes - 1
        match kind:
            case Request.IN if self._has(sector, room):
                self._read(sector * SECTOR, chain, dma)
                return Answer.OK, room
            case Request.OUT if self._has(sector, out) and not self._disk.read_only:
                self._write(sector * SECTOR, out, chain, dma)
                return Answer.OK, 0
            case Request.IN | Request.OUT:
                return Answer.IOERR, 0
            case Request.FLUSH:
                self._disk.flush()
                return Answer.OK, 0
            case Request.GET_ID:
                scatter(dma, chain.writable, self._serial[:room])
                return Answer.OK, min(room, _ID_SIZE)
            case _:
                return Answer.UNSUPP, 0

    def _has(self, sector: int, length: int) -> bool:
        fits = length <= _SIZE_MAX * _SEG_MAX
        return fits and length % SECTOR == 0 and sector * SECTOR + length <= self._disk.size

    def _read(self, offset: int, chain: Chain, dma: Dma) -> None:
        left = chain.writable_bytes - 1
        for piece in chain.writable:
            count = min(piece.length, left)
            for at in range(0, count, MIB):
                here = min(MIB, count - at)
                dma.write(piece.gpa + at, self._disk.read(offset, here))
                offset += here
            left -= count

    def _write(self, offset: int, length: int, chain: Chain, dma: Dma) -> None:
        for data in gather(dma, chain.readable, skip=_HEADER.size, length=length):
            self._disk.write(offset, data)
            offset += len(data)
