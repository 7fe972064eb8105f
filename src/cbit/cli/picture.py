"""A picture as a PNG file: rows of colours, nothing else.

Source: PNG specification, third edition: colour type 2, 8 bits, filter 0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

Colour = tuple[int, int, int]  #: red, green, blue: 0 … 255

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def png(rows: Sequence[Sequence[Colour]], *, scale: int = 1) -> bytes:
    """Draw rows of pixels.

    Args:
        rows: from the top; all of one length.
        scale: how many pixels each is wide and high.

    Raises:
        ValueError: no pixels, or rows of several lengths.
    """
    widths = {len(row) for row in rows}
    if len(widths) != 1 or 0 in widths or scale < 1:
        raise ValueError("a picture is made of rows of one length, and of one pixel at least")
    lines = []
    for row in rows:
        line = b"\x00" + b"".join(bytes(colour) * scale for colour in row)
        lines += [line] * scale
    header = struct.pack(">2I5B", widths.pop() * scale, len(rows) * scale, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(lines), 9)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
