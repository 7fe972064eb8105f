"""What a descriptor number of a program stands for.

A descriptor is known by the inode behind it, never by its number: so it survives dup, fork, exec and being
closed and given out again.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from cbit.redirect.files import Files

#: Threads whose folder is held open; past it all are closed.
_FOLDERS: Final = 256
_OWNER_WRITES: Final = 0o200


class _Folders:
    """The folders of threads' descriptors in /proc, held open: a look into one costs half as much then."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}

    def stat(self, process: int, thread: int, number: int, *, follow: bool) -> os.stat_result:
        """Look at a descriptor, or at the link that stands for it.

        Raises:
            FileNotFoundError: no such descriptor, or no such thread of that process.
            PermissionError: the program is closed to us.
        """
        folder = self._held.get((process, thread))
        if folder is None:
            folder = self._open(process, thread)
        if folder is not None:
            try:
                return os.stat(str(number), dir_fd=folder, follow_symlinks=follow)
            except FileNotFoundError:  # closed, or the thread is gone, and its number may be another's
                self._drop((process, thread))
        return os.stat(_path(process, thread, number), follow_symlinks=follow)

    def leave(self, process: int) -> None:
        """Close those of a process."""
        for key in [key for key in self._held if key[0] == process]:
            self._drop(key)

    def close(self) -> None:
        """Close all of them."""
        for key in list(self._held):
            self._drop(key)

    def _open(self, process: int, thread: int) -> int | None:
        """Hold a folder open; None if this process has no descriptor left for it."""
        if len(self._held) >= _FOLDERS:
            self.close()
        try:
            folder = os.open(f"/proc/{process}/task/{thread}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                return None
            raise
        self._held[process, thread] = folder
        return folder

    def _drop(self, key: tuple[int, int]) -> None:
        os.close(self._held.pop(key))


class Descriptors:
    """Tells which of the files a descriptor number of some thread stands for."""

    def __init__(self, files: Files) -> None:
        self._names: dict[tuple[int, int], str] = {}
        for device in files.devices:
            there = os.stat(device.stand_in)
            self._names[there.st_dev, there.st_ino] = device.path
        self._given: dict[tuple[int, int], Any] = {}
        self._kinds_given = frozenset(kind.link for kind in files.given)
        self._foreign = frozenset(kind.link for kind in files.foreign)
        self._links = self._foreign | {kind.link for kind in files.observed}
        self._folders = _Folders()

    def left(self, process: int) -> None:
        """Hear that a process has ended."""
        self._folders.leave(process)

    def close(self) -> None:
        """Give back what is held open."""
        self._folders.close()

    def name(self, process: int, thread: int, number: int) -> str | None:
        """Return the served path or link, None if it is neither.

        Raises:
            OSError: EBADF if there is no such descriptor; ESRCH if there is no such thread; EPERM if the
                program is closed to us.
        """
        try:
            there = self._folders.stat(process, thread, number, follow=True)
            name = self._names.get((there.st_dev, there.st_ino))
            if name is None and self._links:
                link = os.readlink(_path(process, thread, number))
                name = link if link in self._links else None
        except FileNotFoundError:
            raise _missing(process, thread, number) from None
        except PermissionError:
            raise OSError(errno.EPERM, "the program is closed to us (not dumpable)") from None
        return name

    def is_writable(self, process: int, thread: int, number: int) -> bool:
        """Tell whether a descriptor is open for writing: the mode of its link says so; raises as ``name``."""
        try:
            link = self._folders.stat(process, thread, number, follow=False)
            return bool(link.st_mode & _OWNER_WRITES)
        except FileNotFoundError:  # another thread has closed it since its name was looked up
            raise _missing(process, thread, number) from None

    def is_foreign(self, name: str) -> bool:
        """Tell a link, which has a handle for each descriptor number, from a path."""
        return name in self._foreign

    def is_given(self, name: str) -> bool:
        """Tell a descriptor that we gave out: its handle is its own, whoever has it."""
        return name in self._kinds_given

    def give(self, descriptor: int, link: str, handle: Any) -> tuple[int, int]:
        """Know a descriptor, about to be given out, by its inode from now on; returns that."""
        there = os.fstat(descriptor)
        inode = there.st_dev, there.st_ino
        self._names[inode], self._given[inode] = link, handle
        return inode

    def forget(self, inode: tuple[int, int]) -> None:
        """Nobody has it any more."""
        del self._names[inode], self._given[inode]

    def given(self, process: int, thread: int, number: int) -> Any:
        """Return the handle behind a descriptor that we gave out; raises as ``name``."""
        try:
            there = self._folders.stat(process, thread, number, follow=True)
            return self._given[there.st_dev, there.st_ino]
        except (FileNotFoundError, KeyError):  # closed since, or another file has the number by now
            raise _missing(process, thread, number) from None


def _missing(process: int, thread: int, number: int) -> OSError:
    alive = os.path.exists(f"/proc/{process}/task/{thread}")
    return OSError(errno.EBADF if alive else errno.ESRCH, f"no descriptor {number}")


def _path(process: int, thread: int, number: int) -> str:
    return f"/proc/{process}/task/{thread}/fd/{number}"
