"""Tweaks of XTS-AES-128: T, T·α, T·α² … over each page, T being the encrypted page number.

Paper: memory-encryption.md §9, row XTS ("as standard XTS"): IEEE Std 1619, clause 5.
MODEL CHOICE: the data unit is one 4 KiB page, its number the system page number (128 bits, little-endian).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from cbit.crypto.passes import XtsPages
from cbit.crypto.tweak import PIECE, working_memory
from cbit.spec.address import BLOCK, PAGE

_NO_CONSTANT: Final = bytes(BLOCK)


class XtsTweaks:
    """T·α^j over ranges of physical memory, laid out like them; each call overwrites what the last made.

    Its table (128 KiB) belongs to the SoC side, and holds tweaks only.
    """

    __slots__ = ("_address", "_encrypt", "_numbers", "_table", "_write")

    def __init__(self, encrypt: Callable[[bytes], bytes], write: XtsPages) -> None:
        """Take AES-ECB encryption under the second key, as a function that never shows it."""
        self._encrypt = encrypt
        self._write = write
        self._table = working_memory(PIECE, place=0)
        self._address = self._table.ctypes.data
        self._numbers = np.zeros((PIECE // PAGE, 2), np.dtype("<u8"))  # 128 bits each; below 2**40

    def over(self, spa: int, length: int) -> tuple[int, bytes]:
        """Make the tweaks of a range inside one `PIECE`; return where they lie, and no constant: zeros."""
        first, end = spa // PAGE, -(-(spa + length) // PAGE)
        if end - first == 1:
            numbers = first.to_bytes(BLOCK, "little")
        else:
            rows = self._numbers[: end - first]
            rows[:, 0] = np.arange(first, end)
            numbers = rows.tobytes()
        self._write(self._address, self._encrypt(numbers), end - first)
        return self._address + spa % PAGE, _NO_CONSTANT
