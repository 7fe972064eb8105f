"""What holds a disk's sectors: a file, or memory.

A file is written where it is, as the guest writes it.  While it is open it is locked: one machine
writes, or several read.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

from cbit.spec.errors import CbitError

SECTOR: Final = 512


class BadDisk(CbitError):
    """A disk that no guest can use; the message says why."""


class Disk(Protocol):
    """Sectors; offsets and lengths are whole sectors inside the disk, for the device checks them."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read; an ``OSError`` becomes an I/O error in the guest."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write (errors as ``read``)."""
        ...

    def flush(self) -> None:
        """Let what was written survive a crash (errors as ``read``)."""
        ...


class MemoryDisk:
    """A disk that is gone with the process.

    Mutable.

    Attributes:
        data: its bytes.
    """

    def __init__(self, data: bytes, *, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.read_only = read_only
        self.size = _checked(len(data), "this disk")

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Write."""
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Do nothing: it does not survive."""


class FileDisk:
    """A disk in a file, or on a block device.

    Raises:
        BadDisk: it cannot be opened, is not whole sectors, or another machine uses it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        try:
            self._file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise BadDisk(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_NB | (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX))
            self.size = _checked(os.lseek(self._file, 0, os.SEEK_END), str(path))
        except BadDisk:
            self.close()
            raise
        except BlockingIOError:
            self.close()
            raise BadDisk(f"{path}: another machine uses this disk") from None
        except OSError as error:
            self.close()
            raise BadDisk(f"{path}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file; nothing happens the second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, offset: int, length: int) -> bytes:
        """Read; what is short of the disk's size by now is an ``OSError``."""
        data = os.pread(self._file, length, offset)
        while len(data) < length:
            more = os.pread(self._file, length - len(data), offset + len(data))
            if not more:
                raise OSError("the file has become shorter")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, offset)
            view, offset = view[count:], offset + count

    def flush(self) -> None:
        """Let what was written survive a crash."""
        os.fdatasync(self._file)


def _checked(size: int, name: str) -> int:
    if not size or size % SECTOR:
        raise BadDisk(f"{name} has {size} bytes: a disk is whole sectors of {SECTOR}, one at least")
    return size
