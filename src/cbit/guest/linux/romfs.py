"""A romfs: the smallest file system that a distribution's kernel can mount; flat, read-only, deterministic.

    0   "-rom1fs-" | size | checksum | name of the volume, padded to 16
    …   one header a file: next header and kind | 0 | size | checksum | name, padded to 16; then its data

Numbers are big-endian.  A header's words add up to 0; so do those of the first 512 bytes.

Source: Linux, Documentation/filesystems/romfs.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from cbit.spec.address import BLOCK

MAGIC: Final = b"-rom1fs-"
_CHECKED: Final = 512  # bytes under the volume's checksum
_FOLDER, _FILE, _LINK = 1, 2, 0  # kinds; 0 is a hard link
_EXECUTABLE: Final = 8
_UNIT: Final = 1024  # the device is a multiple of this


def romfs(files: Mapping[str, bytes], *, volume: str = "cbit") -> bytes:
    """Make a file system with these files in its root folder.

    Raises:
        ValueError: a name that is empty, not ASCII, or holds a slash or a NUL.
    """
    for name in files:
        if not name or not name.isascii() or "/" in name or "\x00" in name or name in {".", ".."}:
            raise ValueError(f"{name!r} cannot be the name of a file here")
    at = 16 + len(_name(volume))
    root = at
    body = b""
    entries: list[tuple[str, int, int, bytes]] = [(".", _FOLDER | _EXECUTABLE, root, b"")]
    entries += [("..", _LINK, root, b""), *((n, _FILE, 0, files[n]) for n in sorted(files))]
    for number, (name, kind, info, data) in enumerate(entries):
        length = 16 + len(_name(name)) + len(_padded(data))
        following = at + length if number + 1 < len(entries) else 0
        words = struct.pack(">4I", following | kind, info, len(data), 0) + _name(name)
        body += _with_checksum(words, at=12, covered=len(words)) + _padded(data)
        at += length
    image = MAGIC + struct.pack(">2I", at, 0) + _name(volume) + body
    image += bytes(-len(image) % _UNIT)
    return _with_checksum(image, at=12, covered=_CHECKED)


def _name(name: str) -> bytes:
    raw = name.encode("ascii") + b"\x00"
    return _padded(raw)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _with_checksum(data: bytes, *, at: int, covered: int) -> bytes:
    total = sum(struct.unpack(f">{min(covered, len(data)) // 4}I", data[: min(covered, len(data)) // 4 * 4]))
    return data[:at] + struct.pack(">I", -total & 0xFFFF_FFFF) + data[at + 4 :]
