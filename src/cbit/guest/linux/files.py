"""The files that a Linux guest is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LinuxFiles:
    """What a Linux guest is made from.

    Attributes:
        kernel: the bzImage.
        modules: its folder of modules.
        busybox: a static busybox.
        origin: where they are from, for a person.
    """

    kernel: Path
    modules: Path
    busybox: Path
    origin: str
