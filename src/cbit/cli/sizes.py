"""Sizes as people write them: 256M, 1G, 4096."""

from __future__ import annotations

import argparse
import re
from typing import Final

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Read a number of bytes, for an argument's ``type``.

    Raises:
        ArgumentTypeError: not a size.
    """
    match = re.fullmatch(r"([0-9]+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 256M, 1G or a number of bytes is wanted")
    return int(match[1]) * _UNITS[match[2].upper()]


def in_words(count: int) -> str:
    """Write a number of bytes with the largest unit that divides it."""
    for unit in ("G", "M", "K"):
        if count and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return str(count)
