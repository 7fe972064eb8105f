"""Tweaks of XTS-AES-128: T, T·α, T·α² … over each page, T being the encrypted page number.

Multiplying by α = x shifts T left and folds the bit that falls out into bits 0, 1, 2 and 7.  One bit falls
out per block, and that is all there is to know: these bits are the quotient of T·x³⁸⁴ by
P = x¹²⁸ + x⁷ + x² + x + 1, the *stream* of the page.  The tweak of block j is the 128-bit window that begins
j bits below the top of the stream; only its low seven bits have yet to be folded with its own high seven.

    stream, 384 bits  |‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾|
    block 0           [ 128-bit window ]           tweak = window xor (top>>1 ^ top>>6 ^ top>>7),
    block 1            [ 128-bit window ]                  top = the window's highest byte
    block 255                            [ 128-bit window ]

In eight variants of the stream, shifted by single bits, every window begins at a byte: one strided copy lays
out all blocks of all pages.  (The plain way, shifting 256 times, costs far more than the AES itself.)

Paper: memory-encryption.md §9, row XTS ("as standard XTS"): IEEE Std 1619, clause 5.
MODEL CHOICE: the data unit is one 4 KiB page, its number the system page number (128 bits, little-endian).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cbit.crypto.tweak import PIECE
from cbit.spec.address import BLOCK, PAGE

_LANE: Final = 64  # bytes of a page's place in the big integer: its stream, and below it what falls out
_WORD: Final = np.dtype("<u8")
_BLOCK: Final = np.dtype(f"V{BLOCK}")
# Variant b of a stream is shifted down by 8 - b bits, and takes them from the next word above.
_DOWN: Final = np.arange(8, 0, -1, dtype=_WORD)[:, np.newaxis]
_UP: Final = 64 - _DOWN
_ONE, _SIX = np.array(1, np.uint8), np.array(6, np.uint8)


class XtsTweaks:
    """T·α^j over ranges of physical memory, laid out like them; each call overwrites what the last returned.

    Its scratch (85 KiB) belongs to the SoC side, and holds tweaks only.
    """

    __slots__ = ("_page", "_piece")

    def __init__(self, encrypt: Callable[[bytes], bytes]) -> None:
        """Take AES-ECB encryption under the second key, as a function that never shows it."""
        self._page = _Pages(encrypt, 1)
        self._piece = _Pages(encrypt, PIECE // PAGE)

    def page(self, spa: int) -> NDArray[np.uint8]:
        """Return the tweaks of the page at ``spa``."""
        return self._page.tweaks(spa // PAGE)

    def over(self, spa: int, length: int) -> NDArray[np.uint8]:
        """Return the tweaks of ``length`` bytes from ``spa``: multiples of 16, inside one `PIECE`."""
        start = spa % PAGE
        if start + length <= PAGE:
            tweaks = self._page.tweaks(spa // PAGE)
        else:
            start = spa % PIECE
            tweaks = self._piece.tweaks((spa - start) // PAGE)
        return tweaks[start : start + length]


class _Pages:
    """All the tweaks of a fixed number of neighbouring pages."""

    __slots__ = (
        "_blocks",
        "_encrypt",
        "_fold_bytes",
        "_folds",
        "_low_bytes",
        "_one_each",
        "_ramp",
        "_size",
        "_tops",
        "_tweaks",
        "_variant_bytes",
        "_variants",
        "_window_folds",
        "_windows",
    )

    def __init__(self, encrypt: Callable[[bytes], bytes], pages: int) -> None:
        self._encrypt = encrypt
        self._size = pages * _LANE
        # A page's 128 bits (its number, then T) are the top of its lane.
        places = [1 << 8 * (_LANE * page + _LANE - BLOCK) for page in range(pages)]
        self._one_each = sum(places)
        self._ramp = sum(page * place for page, place in enumerate(places))
        self._tops = self._one_each * ((1 << 128) - 1)
        self._variants = np.empty((8, self._size // 8), _WORD)
        self._folds = np.empty_like(self._variants)
        self._variant_bytes = self._variants.view(np.uint8)
        self._fold_bytes = self._folds.view(np.uint8)
        tweaks = np.empty((pages, PAGE // BLOCK // 8, 8, BLOCK), np.uint8)
        self._tweaks = tweaks.reshape(-1)
        self._blocks = tweaks.view(_BLOCK)[..., 0]
        self._low_bytes = tweaks[..., 0]
        # Block 8a + b: the window that starts a bytes below the highest one of variant b.
        shape, strides = self._low_bytes.shape, (_LANE, -1, self._size)
        highest = _LANE - BLOCK - 1
        self._windows = np.ndarray(shape, _BLOCK, self._variants.data, highest, strides)
        self._window_folds = np.ndarray(shape, np.uint8, self._folds.data, highest + BLOCK - 1, strides)

    def tweaks(self, first: int) -> NDArray[np.uint8]:
        """Return the tweaks of the pages from page number ``first``."""
        streams = np.frombuffer(self._streams(first), _WORD)
        variants, folds = self._variants, self._folds
        np.right_shift(streams[:-1], _DOWN, variants)
        np.left_shift(streams[1:], _UP, folds)
        np.bitwise_or(variants, folds, variants)
        np.copyto(self._blocks, self._windows)
        top, fold = self._variant_bytes, self._fold_bytes
        np.right_shift(top, _ONE, fold)
        np.bitwise_xor(top, fold, top)
        np.right_shift(top, _SIX, top)
        np.bitwise_xor(top, fold, fold)  # top>>1 ^ top>>6 ^ top>>7
        np.bitwise_xor(self._low_bytes, self._window_folds, self._low_bytes)
        return self._tweaks

    def _streams(self, first: int) -> bytes:
        """Encrypt the page numbers and divide by P, all pages in one integer; a spare word comes last."""
        numbers = (first * self._one_each + self._ramp).to_bytes(self._size, "little")
        t = int.from_bytes(self._encrypt(numbers), "little") & self._tops
        # Long division from the top is 1/(1 + y) = (1 + y)(1 + y²)(1 + y⁴)…, where y moves down by 128 bits
        # and multiplies by P's tail 1 + x + x² + x⁷; y² squares that, and y⁴ is already below the stream.
        t ^= t >> 128 ^ t >> 127 ^ t >> 126 ^ t >> 121
        t ^= t >> 256 ^ t >> 254 ^ t >> 252 ^ t >> 242
        return t.to_bytes(self._size + 8, "little")
