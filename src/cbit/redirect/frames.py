"""What a launcher and a served machine say to each other about the calls of a program.

    length u32 | kind u8 | body                 kinds: ``Kind``, in the order of a command's life

        launcher                        daemon
        OPEN handle, file, mode   ──>
                                  <──   DONE 0, or -errno
        IOCTL handle, request     ──>
                                  <──   READ address, length          as often as the command needs
        ANSWER errno, bytes       ──>
                                  <──   WRITE address, bytes
        ANSWER errno              ──>
                                  <──   DONE result, last writes, reasons
        CLOSE handle              ──>                                 no answer

The launcher alone touches the program's memory, so the daemon needs no right over the program: they may be
in different containers, with nothing in common but the socket.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from cbit.redirect.errors import RedirectError
from cbit.redirect.lingering import found_soon
from cbit.redirect.process_memory import Write

HEADER: Final = struct.Struct("<IB")
#: The longest body: one piece of memory, and its address.
LONGEST: Final = 4 << 20
PIECE: Final = LONGEST - 64  #: bytes of memory in one frame
GRACE_S: Final = 1.0  #: seconds for the other side to answer, once a signal wants us to end
LINE: Final = 65536  #: the longest line of the control channel
_RECEIVE: Final = 1 << 18  #: at a time, of a long frame
_USUAL: Final = 4096  #: at a time, as long as nothing long is announced: room for more is dear to make

OPEN: Final = struct.Struct("<IIBB")  #: handle, pid, index of the file, whether it is open for writing
IOCTL: Final = struct.Struct("<IIQ")  #: handle, request, argument; then the bytes that it points at
HANDLE: Final = struct.Struct("<I")
RANGE: Final = struct.Struct("<QI")  #: address, length; a write's bytes follow
NUMBER: Final = struct.Struct("<I")
ANSWER: Final = struct.Struct("<I")  #: errno; bytes follow
DONE: Final = struct.Struct("<qI")  #: result, number of writes; then the writes, then reasons as JSON


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    IOCTL = 2
    CLOSE = 3
    ANSWER = 4
    READ = 16
    WRITE = 17
    NAME = 18
    DONE = 19


class Frame(NamedTuple):
    """One message."""

    kind: int
    body: bytes


class Broken(RedirectError):
    """The other side is gone, silent, or speaks nonsense; the connection is of no use any more."""


class Interruptible(Protocol):
    """Who waits for the other side, and may be asked to end meanwhile."""

    @property
    def ending(self) -> int:
        """A descriptor that is readable while a signal that ends us waits."""
        ...

    def interrupted(self) -> None:
        """Hear, in the middle of a wait, that it is readable."""
        ...


class Channel:
    """One end of a connection: lines first, frames after an attach.

    Args:
        sock: owned from now on.
        clock: seconds that only go forward; with ``patience`` it bounds every exchange.
        patience: seconds for the other side to answer; None for ever.
        owner: who waits here; once it is asked to end the other side has ``GRACE_S`` to answer.

    Attributes:
        patience: as above; may change between two exchanges.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        clock: Callable[[], float],
        patience: float | None = None,
        owner: Interruptible | None = None,
    ) -> None:
        self._socket, self._clock, self.patience = sock, clock, patience
        self._owner = owner
        self._buffer = bytearray()
        self._room = _USUAL
        sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def receive(self) -> bool:
        """Take in what has arrived; False when the other side has closed."""
        try:
            arrived = self._socket.recv(self._room)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._buffer += arrived
        return bool(arrived)

    def line(self) -> bytes | None:
        """Take one whole line, without its end; None if there is none yet.

        Raises:
            Broken: it is longer than a line may be.
        """
        end = self._buffer.find(b"\n")
        if end < 0 and len(self._buffer) <= LINE:
            return None
        if end < 0 or end > LINE:
            raise Broken(f"a line of more than {LINE} bytes")
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return text

    def frame(self) -> Frame | None:
        """Take one whole frame; None if there is none yet.

        Raises:
            Broken: it is longer than a frame may be.
        """
        if len(self._buffer) < HEADER.size:
            return None
        length, kind = HEADER.unpack_from(self._buffer)
        if length > LONGEST:
            raise Broken(f"a frame of {length:#x} bytes")
        end = HEADER.size + length
        if len(self._buffer) < end:
            self._room = min(max(end - len(self._buffer), _USUAL), _RECEIVE)
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        self._room = _USUAL
        return Frame(kind, body)

    def wait(self, *kinds: Kind) -> Frame:
        """Wait for a frame of one of these kinds.

        Raises:
            Broken: none comes, or another one.
        """
        deadline = self._deadline()
        while (frame := self.frame()) is None:
            self._await(deadline)
        if frame.kind not in kinds:
            raise Broken(
                f"a frame of kind {frame.kind} where {' or '.join(kind.name for kind in kinds)} is due"
            )
        return frame

    def wait_line(self) -> bytes:
        """Wait for a line; raises as ``wait``."""
        deadline = self._deadline()
        while (text := self.line()) is None:
            self._await(deadline)
        return text

    def send(self, kind: Kind, *parts: bytes | bytearray | memoryview) -> None:
        """Send a frame; raises ``Broken`` if the other side does not take it."""
        self.send_bytes(b"".join((HEADER.pack(sum(map(len, parts)), kind), *parts)))

    def send_bytes(self, data: bytes) -> None:
        """Send all of it; raises as ``send``."""
        deadline, done = None, 0
        while done < len(data):
            try:
                done += self._socket.send(memoryview(data)[done:] if done else data)
            except BlockingIOError:
                deadline = deadline or self._deadline()  # mostly it is taken at once
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise Broken(f"the other side is gone: {error.strerror}") from None

    def _deadline(self) -> float | None:
        return None if self.patience is None else self._clock() + self.patience

    def _await(self, deadline: float | None) -> None:
        """Let something arrive, however long that takes within the patience."""
        if not found_soon(self._look):
            self._wait(select.POLLIN, deadline)
            self._look()

    def _look(self) -> bool:
        """Take in what has arrived; False if nothing has."""
        before = len(self._buffer)
        if not self.receive():
            raise Broken("the other side has closed the connection")
        return len(self._buffer) > before

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        if self._owner is not None:
            poll.register(self._owner.ending, select.POLLIN)
        ready = self._ready(poll, deadline)
        if self._owner is not None and ready == {self._owner.ending}:
            poll.unregister(self._owner.ending)
            self._owner.interrupted()
            soon = self._clock() + GRACE_S
            if not self._ready(poll, soon if deadline is None else min(soon, deadline)):
                raise Broken("a signal ends us, and the other side does not answer")
        elif not ready:
            raise Broken(f"the other side has not answered for {self.patience} s")

    def _ready(self, poll: select.poll, deadline: float | None) -> set[int]:
        left = None if deadline is None else (deadline - self._clock()) * 1000
        if left is not None and left <= 0:
            return set()  # what trickles in now wins no time
        return {descriptor for descriptor, _ in poll.poll(left)}


def pack_done(result: int, writes: Sequence[Write], reasons: Sequence[tuple[str, str]]) -> list[bytes]:
    """Put an answer together: its result, what is still to be written, why it was refused."""
    parts = [DONE.pack(result, len(writes))]
    for address, data in writes:
        parts += (RANGE.pack(address, len(data)), data)
    if reasons:
        parts.append(json.dumps(reasons).encode())
    return parts


def unpack_done(body: bytes) -> tuple[int, list[Write], list[tuple[str, str]]]:
    """Take an answer apart.

    Raises:
        Broken: it is none.
    """
    try:
        result, count = DONE.unpack_from(body)
        at = DONE.size
        writes = []
        for _ in range(count):
            address, length = RANGE.unpack_from(body, at)
            at += RANGE.size
            writes.append((address, body[at : at + length]))
            at += length
        reasons = [(str(what), str(why)) for what, why in json.loads(body[at:])] if body[at:] else []
    except (struct.error, ValueError, TypeError) as error:
        raise Broken(f"an answer that is none: {error}") from None
    return result, writes, reasons
