"""Who is connected, and for how long: clients that are slow on purpose keep nobody out.

A connection has a place from its acceptance to its end.  When all are taken, the one that has kept the
broker waiting for longest gives its place up; one that the broker works for never does.
"""

from __future__ import annotations

import io
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

_BOTH_WAYS: Final = 2  # SHUT_RDWR, SD_BOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take.

    Attributes:
        clients: connections at once.
        handshake_s: from acceptance to the end of the TLS handshake.
        request_s: from the end of the last answer to the end of the next one, however the bytes drip in.
        grace_s: so long a connection has its place whoever else comes.
    """

    clients: int = 64
    handshake_s: float = 10
    request_s: float = 20
    grace_s: float = 1


class Places:
    """The places for connections; may be called from any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits: Final = limits
        self._changed: Final = threading.Condition()
        self._waiting_since: Final[dict[ssl.SSLSocket, float | None]] = {}  # None: it is being worked for
        self._leaving: Final[set[ssl.SSLSocket]] = set()

    def take(self, connection: ssl.SSLSocket) -> bool:
        """Give a connection a place: a free one, or that of the client which has kept us waiting for longest.

        Returns:
            Whether there was one within the grace; if not, all are being worked for or are as new as this.
        """
        end = time.monotonic() + 2 * self._limits.grace_s
        with self._changed:
            while len(self._waiting_since) >= self._limits.clients:
                now = time.monotonic()
                leaves = self._next_to_leave(now)
                if self._leaving:  # and nothing keeps its thread but the processor
                    self._changed.wait()
                elif now >= end:
                    return False
                else:
                    self._changed.wait(min(end, leaves) - now)
            self._waiting_since[connection] = time.monotonic()
        return True

    def leave(self, connection: ssl.SSLSocket) -> None:
        """Free a connection's place; before its socket is closed, so that no other can have its number."""
        with self._changed:
            self._waiting_since.pop(connection, None)
            self._leaving.discard(connection)
            self._changed.notify_all()

    @contextmanager
    def working(self, connection: ssl.SSLSocket) -> Iterator[None]:
        """Let a connection keep its place while the broker itself is at work for it."""
        self._mark(connection, None)
        try:
            yield
        finally:
            self._mark(connection, time.monotonic())

    def _mark(self, connection: ssl.SSLSocket, since: float | None) -> None:
        with self._changed:
            self._waiting_since[connection] = since
            self._leaving.discard(connection)  # its whole request came first: another may leave meanwhile
            self._changed.notify_all()

    def _next_to_leave(self, now: float) -> float:
        """End the connection that has waited for longest, or return when it may be ended."""
        waiting = [
            (since, connection)
            for connection, since in self._waiting_since.items()
            if since is not None and connection not in self._leaving
        ]
        if not waiting or self._leaving:
            return float("inf")  # whoever changes that, says so
        since, connection = min(waiting, key=lambda found: found[0])
        if since + self._limits.grace_s > now:
            return since + self._limits.grace_s
        self._leaving.add(connection)
        with suppress(OSError):  # the client may be quicker
            # Of the socket alone: the TLS state is its own thread's, which now reads the end of the stream.
            super(ssl.SSLSocket, connection).shutdown(_BOTH_WAYS)
        return float("inf")


class Timed(io.RawIOBase):
    """Both directions of a connection, for as long as a deadline allows.

    A socket's own time-out begins anew with each byte.

    Args:
        connection: the socket.
        left: how many seconds are left; raises ``TimeoutError`` when none are.
    """

    def __init__(self, connection: ssl.SSLSocket, left: Callable[[], float]) -> None:
        self._connection, self._left = connection, left

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least one byte; 0 at the end."""
        self._connection.settimeout(self._left())
        return self._connection.recv_into(buffer)

    def write(self, data: Any) -> int:
        """Write all of it."""
        self._connection.settimeout(self._left())
        self._connection.sendall(data)
        return len(data)
