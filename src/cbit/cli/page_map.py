"""What memory looks like: entropy page by page, as numbers and as a row of blocks.

Ciphertext has nearly 8 bits of entropy per byte everywhere; code, text and zeros do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cbit.spec.address import PAGE

RANDOM: Final = 7.9  #: bits per byte; 4096 random bytes have about 7.95
_GLYPHS: Final = "·░▒▓█"


def entropies(data: bytes) -> list[float]:
    """Shannon entropy of each 4 KiB page, in bits per byte (0 … 8), rounded to 2 digits."""
    pages = np.frombuffer(data[: len(data) // PAGE * PAGE], np.uint8).reshape(-1, PAGE)
    found = []
    for page in pages:
        shares = np.bincount(page, minlength=256)[:256] / PAGE
        shares = shares[shares > 0]
        found.append(round(float(-(shares * np.log2(shares)).sum()) + 0.0, 2))
    return found


def glyph(bits: float) -> str:
    """One character for one page: · empty, ░▒▓ structured, █ random."""
    if bits >= RANDOM:
        return _GLYPHS[-1]
    return _GLYPHS[0] if bits == 0 else _GLYPHS[1 + min(2, int(bits * 3 / RANDOM))]


def rows(values: Sequence[float], width: int = 64) -> list[str]:
    """Lay pages out in rows, lowest address first."""
    line = "".join(map(glyph, values))
    return [line[i : i + width] for i in range(0, len(line), width)]
