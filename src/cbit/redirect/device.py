"""What a device behind a redirected file has to be.

A device never sees which file descriptor, thread or mechanism a command came through.  Commands come one
after another, from the thread that serves; a device needs no lock.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cbit.driver.caller_memory import CallerMemory
from cbit.trace import Trace

Handle = TypeVar("Handle")


class Told:
    """What one device tells another, in place of a program's memory: bytes, wherever they are looked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, address: int, length: int) -> bytes:
        """Read them."""
        return self._data[:length]

    def write(self, address: int, data: bytes) -> None:
        """Refuse: nobody listens."""
        raise OSError(errno.EFAULT, "what is told is not to be written")

    def write_all(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Refuse, unless there is nothing to write."""
        for address, data in writes:
            self.write(address, data)


class Client:
    """One process that uses devices.

    Attributes:
        pid: its number; all its threads have the same.
    """

    def __init__(self, pid: int, name_of: Callable[[int], str | None]) -> None:
        self.pid = pid
        self._name_of = name_of

    def names(self, descriptor: int) -> str | None:
        """Say what a descriptor number *in a command* stands for: a served path or link, None for neither.

        Only while a command of this client is being served.

        Raises:
            OSError: EBADF if there is no such descriptor.
        """
        return self._name_of(descriptor)


@dataclass(frozen=True, slots=True)
class Give:
    """What a command returns instead of a number: a new descriptor for the caller.

    Attributes:
        link: which kind of descriptor (one of ``Files.given``): whose device answers requests on it.
        handle: that device's, for the new object; its ``close`` is called when nobody has the descriptor any
            more, or the object that it was asked of is closed.
        size: bytes that can be mapped; 0 for a descriptor that is only for requests.
    """

    link: str
    handle: Any
    size: int = 0


class Device(Protocol[Handle]):
    """Answers the ioctl requests on one file, or on one kind of foreign descriptor."""

    def open(self, client: Client, *, writable: bool) -> Handle:
        """Begin to serve a process; called before its first command.

        There is one handle for each process that uses the file, and each access mode, however often it opens
        the file, and a forked child has its own: the driver behind /dev/sev keeps nothing by open file
        either.  A foreign descriptor (a virtual machine of KVM) has one handle for each descriptor number of
        each process, also when another machine gets the number later: a request that begins anew is to be
        taken as that.  Through FUSE there is one handle for each time that the file is opened.

        Args:
            client: the process.
            writable: whether the descriptor is open for writing.

        Raises:
            OSError: the command, and every later one until this succeeds, returns its errno.
        """
        ...

    def ioctl(self, handle: Handle, request: int, argument: int, memory: CallerMemory) -> int | Give:
        """Run one command exactly once and return 0 (or a positive result, or a descriptor), or -errno.

        Args:
            handle: what ``open`` returned.
            request: the low 32 bits of the request number.
            argument: the third argument, 64 bits: mostly an address.
            memory: the caller's.

        Raises:
            OSError: returned to the caller as its errno; ``memory`` raises the right ones by itself.
        """
        ...

    def close(self, handle: Handle) -> None:
        """End: the process has ended, also by a kill in the middle of a command."""
        ...


def report_fault(trace: Trace, error: BaseException) -> None:
    """Say that a device failed, which is a fault of ours: its caller gets EIO, the others notice nothing."""
    trace.emit("redirect", "fault of the emulator", repr(error))
    print("cbit: a device failed; its caller gets EIO:", file=sys.stderr)
    traceback.print_exception(error)
