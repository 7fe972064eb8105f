"""Descriptors that devices give out: a virtual machine, a virtual processor.

One that is only for requests is an end of a socket pair, whose other end hears when the last copy of it is
closed, in whichever process.  One that can be mapped is a file in memory; it lives as long as the object that
it was asked of.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cbit.redirect.clients import AnyDevice
from cbit.redirect.descriptor_limit import NO_MORE, no_more
from cbit.redirect.descriptors import Descriptors
from cbit.redirect.device import Give
from cbit.redirect.seccomp import Listener


class Watching(Protocol):
    """Calls back when a descriptor is readable or hung up; the server does."""

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Begin."""
        ...

    def forget(self, descriptor: int) -> None:
        """End."""
        ...


@dataclass(eq=False)
class _Object:
    link: str
    handle: Any
    inode: tuple[int, int] = (0, 0)
    end: socket.socket | None = None
    room: int = -1
    parts: list[_Object] = field(default_factory=list)


class GivenOut:
    """Everything that was given out and is still there; owns our ends."""

    def __init__(
        self,
        devices: Mapping[str, AnyDevice],
        descriptors: Descriptors,
        watching: Watching,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._devices, self._descriptors = devices, descriptors
        self._watching, self._failed = watching, failed
        self._objects: list[_Object] = []

    def __len__(self) -> int:
        return len(self._objects)

    def give(self, listener: Listener, id_: int, what: Give, asked_of: object) -> None:
        """Answer a call with a new descriptor.

        Args:
            listener: whose call.
            id_: the call.
            what: the new object.
            asked_of: the handle of the device that was asked.

        Raises:
            OSError: ENFILE where we have no descriptor left; the object is closed.
        """
        made = _Object(what.link, what.handle)
        try:
            theirs = self._opened(made, what.size)
        except OSError:
            self._devices[what.link].close(what.handle)
            raise
        made.inode = self._descriptors.give(theirs, what.link, what.handle)
        self._objects.append(made)
        for whole in self._objects:
            if whole.handle is asked_of:
                whole.parts.append(made)
        if made.end is not None:
            end = made.end
            self._watching.watch(end.fileno(), lambda: self._heard(made, end))
        listener.give(id_, theirs, close_on_exec=True)
        if made.end is not None:
            os.close(theirs)  # if the caller died meanwhile this was the last one

    def _opened(self, made: _Object, size: int) -> int:
        """Make both ends of a descriptor; return the caller's."""
        for _ in range(2):
            try:
                return _pair(made, size)
            except OSError as error:
                if error.errno not in NO_MORE:
                    raise
            self._descriptors.close()  # what is held open only because it is quicker
        raise no_more()

    def close(self) -> None:
        """Close everything, parts first."""
        while self._objects:
            self._close(self._objects[0])

    def _heard(self, made: _Object, end: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            if end.recv(4096):  # somebody wrote to it, which means nothing
                return
        self._close(made)

    def _close(self, made: _Object) -> None:
        for part in reversed(made.parts):
            self._close(part)
        if made not in self._objects:
            return
        self._objects.remove(made)
        self._descriptors.forget(made.inode)
        if made.end is not None:
            self._watching.forget(made.end.fileno())
            made.end.close()
        if made.room >= 0:
            os.close(made.room)
        try:
            self._devices[made.link].close(made.handle)
        except Exception as error:  # the others are to be closed all the same
            self._failed(error)


def _pair(made: _Object, size: int) -> int:
    if not size:
        made.end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return other.detach()
    room = os.memfd_create(made.link.rpartition(":")[2], os.MFD_CLOEXEC)
    try:
        os.ftruncate(room, size)
    except OSError:
        os.close(room)
        raise
    made.room = room
    return room
