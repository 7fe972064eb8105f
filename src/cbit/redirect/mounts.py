"""What is mounted where, asked without touching any of it: a mount that we serve would wait for us.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_TABLE: Final = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """One line.

    Attributes:
        id: its number.
        device: major and minor of the file system, which every bind of it shares.
        point: where it is.
        kind: of file system.
        source: what was mounted.
    """

    id: int
    device: str
    point: str
    kind: str
    source: str


def mounts(table: str) -> Iterator[Mount]:
    """Take a table of mounts apart; of several at one place the last is the one that is seen."""
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        words, others = before.split(" "), after.split(" ")
        yield Mount(int(words[0]), words[2], _plain(words[4]), others[0], _plain(others[1]))


def seen_at(path: Path) -> Mount | None:
    """Return what is mounted at a path, if it is a mount point."""
    here = [one for one in mounts(_table()) if one.point == str(path)]
    return here[-1] if here else None


def device_of(path: Path) -> str | None:
    """Return the device of the mount that a path leads into, None if it leads nowhere; nothing is opened."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    number = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("mnt_id:"))
    return next((one.device for one in mounts(_table()) if one.id == number), None)


def _table() -> str:
    return _TABLE.read_text(encoding="utf-8", errors="surrogateescape")


def _plain(word: str) -> str:
    """Undo the kernel's escapes: a blank is backslash, 040."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), word)
