"""An initramfs, built in memory: folders, files, links and device files as a newc archive.

Nothing of it comes from the building computer's file system: owners, times and inode numbers are constants,
so the same contents give the same bytes, and the same launch digest.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import Final

from cbit.spec.linux_boot.newc import TRAILER, newc_entry

_LARGEST: Final = (1 << 32) - 1  # bytes of a file: the size field has 8 hexadecimal digits
_LONGEST: Final = 4095  # bytes of a path: what Linux reads, less the NUL


class Initramfs:
    """An archive that grows; ``bytes(…)`` gives it as it is now.

    Paths are absolute.  Folders on the way to an entry come into being by themselves.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._kinds: dict[str, int] = {"": stat.S_IFDIR}

    def folder(self, path: str, *, mode: int = 0o755) -> None:
        """Add a folder.

        Raises:
            ValueError: the path is not absolute and plain, is there already, or leads through a file.
        """
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a file (errors as ``folder``)."""
        if len(data) > _LARGEST:
            raise ValueError(f"{path}: {len(data)} bytes; an archive's file has {_LARGEST} at most")
        self._add(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link (errors as ``folder``)."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        """Add a character device (errors as ``folder``)."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def __bytes__(self) -> bytes:
        return b"".join((*self._chunks, newc_entry(TRAILER, mode=0, inode=0)))

    def __contains__(self, path: str) -> bool:
        return path.lstrip("/") in self._kinds

    def _add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        pure = PurePosixPath(path)
        if (
            not path.startswith("/")
            or path.startswith("//")
            or str(pure) != path
            or ".." in pure.parts
            or path == "/"
        ):
            raise ValueError(f"{path!r}: a path in an initramfs is absolute and plain")
        if "\x00" in path or len(path.encode()) > _LONGEST:
            raise ValueError(f"{path!r}: not a path that Linux can open")
        name, parent = path[1:], str(pure.parent)[1:]
        if name in self._kinds:
            raise ValueError(f"{path} is there already")
        if parent not in self._kinds:
            self.folder(f"/{parent}")
        if self._kinds[parent] != stat.S_IFDIR:
            raise ValueError(f"{path}: /{parent} is no folder")
        self._kinds[name] = stat.S_IFMT(mode)
        entry = newc_entry(name, mode=mode, inode=len(self._kinds) - 1, size=len(data), device=device)
        self._chunks += [entry, data, bytes(-len(data) % 4)]
