"""What a server listens to beside its callers: ends of processes, signals, descriptors that it gave out."""

from __future__ import annotations

import select
from collections.abc import Callable


class Watching:
    """Descriptors with an action each, beside those that a server answers itself; its base.

    Mutable.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()  # its cost does not grow with the number of clients
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever a descriptor is readable or hung up."""
        self._watched[descriptor] = action
        self._poll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """End a watch."""
        del self._watched[descriptor]
        self._poll.unregister(descriptor)
