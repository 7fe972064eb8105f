"""virtio-console: one port, a pipe of bytes between guest and host (/dev/hvc0 in Linux).

    queue 0 receives: the driver offers room, the device fills it        queue 1 transmits

Source: virtio 1.1 (OASIS), chapter 5.3; one port, so neither MULTIPORT nor its control queues.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from cbit.hypervisor.devices.virtio.queue import Chain, Dma, Malformed, Queue, gather, scatter
from cbit.spec.address import KIB, MIB

RECEIVE: Final = 0
TRANSMIT: Final = 1
_PIECE: Final = 64 * KIB  # of a request, at a time
_LONGEST: Final = MIB  # what a guest may send in one request
_BACKLOG: Final = 64 * KIB  # what waits here for a guest that does not read


class Channel(Protocol):
    """The other end of the pipe."""

    def write(self, data: bytes, /) -> None:
        """Take bytes that the guest sent."""
        ...

    def read(self) -> bytes:
        """What came for the guest since the last call; never waits."""
        ...


class VirtioConsole:
    """A console behind the transport.

    Mutable.
    """

    kind = 3
    class_code = 0x078000  # a communication controller of no particular kind
    features = 0
    queues = 2

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting = bytearray()

    def config(self) -> bytes:
        """Columns, rows, ports, emergency write: nothing that the features would make valid."""
        return struct.pack("<HHII", 0, 0, 1, 0)

    def fetch(self) -> bool:
        """Ask the host for bytes; return whether some wait for the guest."""
        if len(self._waiting) < _BACKLOG:
            self._waiting += self._channel.read()
        return bool(self._waiting)

    def serve(self, index: int, queue: Queue, dma: Dma) -> None:
        """Send what the guest has put into its queue, or fill the room that it offers."""
        if index == TRANSMIT:
            for chain in queue.chains():
                self._send(chain, dma)
                queue.put(chain.head, 0)
            return
        while self._waiting:
            offered = next(queue.chains(1), None)
            if offered is None:
                return
            here = bytes(self._waiting[: min(offered.writable_bytes, _PIECE)])
            if not here:
                raise Malformed("a request to receive, without room")
            scatter(dma, offered.writable, here)
            del self._waiting[: len(here)]
            queue.put(offered.head, len(here))

    def _send(self, chain: Chain, dma: Dma) -> None:
        if chain.readable_bytes > _LONGEST:
            raise Malformed(f"{chain.readable_bytes} bytes to send at once: {_LONGEST} at most")
        for at in range(0, chain.readable_bytes, _PIECE):
            length = min(_PIECE, chain.readable_bytes - at)
            self._channel.write(b"".join(gather(dma, chain.readable, skip=at, length=length)))
