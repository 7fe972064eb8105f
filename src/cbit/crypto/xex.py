"""Tweaks of XE and XEX, laid out like the memory that they cover.

    tweaks of a piece  =  table of its 4096 blocks (fixed, one for all keys)  xor  T(piece), repeated

Paper: memory-encryption.md §9.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cbit.crypto.tweak import PIECE, Tweak
from cbit.spec.address import BLOCK, PAGE

_ROW: Final = PIECE // 4  # T(piece) is repeated this far: NumPy's inner loops get long, filling stays cheap


class XexTweaks:
    """Lays out T(p) over a range of physical memory; each call overwrites what the last one returned.

    Its scratch (80 KiB) belongs to the SoC side, and holds tweaks only.
    """

    __slots__ = (
        "_page",
        "_page_constant",
        "_page_constant_view",
        "_pages",
        "_piece",
        "_row",
        "_row_view",
        "_table",
        "_tweak",
    )

    def __init__(self, tweak: Tweak) -> None:
        table = np.frombuffer(tweak.block_table, np.uint8)
        self._tweak = tweak
        self._pages = list(table.reshape(-1, PAGE))
        self._table = table
        self._row = np.empty(_ROW, np.uint8)
        self._row_view = memoryview(self._row)
        self._piece = np.empty(PIECE, np.uint8)
        # A whole page is what the cache fills and writes back: its views are made once.
        self._page = self._piece[:PAGE]
        self._page_constant = self._row[:PAGE]
        self._page_constant_view = self._row_view[:PAGE]

    def over(self, spa: int, length: int) -> NDArray[np.uint8]:
        """Return the tweaks of ``length`` bytes from ``spa``: multiples of 16, inside one `PIECE`."""
        constant = self._tweak.of_piece(spa)
        start = spa % PIECE
        if length == PAGE and not start % PAGE:
            self._page_constant_view[:] = constant * (PAGE // BLOCK)
            return np.bitwise_xor(self._pages[start // PAGE], self._page_constant, self._page)
        stop = start + length
        if length <= PAGE:
            self._row_view[:length] = constant * (length // BLOCK)
            return np.bitwise_xor(self._table[start:stop], self._row[:length], self._piece[:length])
        self._row_view[:] = constant * (_ROW // BLOCK)
        rows = slice(start // _ROW, -(-stop // _ROW))
        np.bitwise_xor(self._table.reshape(-1, _ROW)[rows], self._row, self._piece.reshape(-1, _ROW)[rows])
        return self._piece[start:stop]
