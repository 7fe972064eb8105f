"""Large files, hashed where the operating system has them.

Imports as little as it can: a command in a hurry loads it first.
"""

from __future__ import annotations

import mmap
import os
import stat

from cbit.owner.blob import LARGEST, Blob


def mapped(path: str | os.PathLike[str]) -> Blob | None:
    """Begin to hash a file in place; None where that cannot be, and whoever reads it finds out why."""
    try:
        found = os.stat(path)  # before it is opened: a pipe that is opened twice loses its writer
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= LARGEST:
            return None
        with open(path, "rb") as file:
            return Blob(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError):
        return None
