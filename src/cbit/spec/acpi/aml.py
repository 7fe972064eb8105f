"""ACPI machine language, as much as fixed devices need: names, packages, devices, resources.

Source: ACPI specification 6.4, chapters 20 (AML) and 6.4 (resource data types).
"""

from __future__ import annotations

import re
import struct
from typing import Final

_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_EISA: Final = re.compile(r"[A-Z]{3}[0-9A-F]{4}")


def name_string(path: str) -> bytes:
    """A name: segments with dots between, a backslash in front where it starts at the root.

    Raises:
        ValueError: not a name.
    """
    root, rest = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    parts = rest.split(".") if rest else []
    if not all(_NAME.fullmatch(part) for part in parts):
        raise ValueError(f"{path!r} is not an ACPI name")
    segments = b"".join(part.ljust(4, "_").encode("ascii") for part in parts)
    if not parts:
        return root + b"\0"
    if len(parts) == 1:
        return root + segments
    if len(parts) == 2:
        return root + b"\x2e" + segments
    return root + b"\x2f" + bytes([len(parts)]) + segments


def integer(value: int) -> bytes:
    """An integer, in the shortest form.

    Raises:
        ValueError: not one of 64 bits.
    """
    if value in (0, 1):
        return bytes([value])
    for limit, prefix, code in ((8, 0x0A, "<B"), (16, 0x0B, "<H"), (32, 0x0C, "<I"), (64, 0x0E, "<Q")):
        if 0 <= value < 1 << limit:
            return bytes([prefix]) + struct.pack(code, value)
    raise ValueError(f"{value} is not an integer of 64 bits")


def eisa_id(text: str) -> bytes:
    """A plug-and-play id ("PNP0A03") as the integer that it is packed into.

    Raises:
        ValueError: not such an id.
    """
    if not _EISA.fullmatch(text):
        raise ValueError(f"{text!r} is not three letters and four digits")
    a, b, c = (ord(letter) - 0x40 for letter in text[:3])
    packed = struct.pack(">HH", a << 10 | b << 5 | c, int(text[3:], 16))
    return integer(int.from_bytes(packed, "little"))


def package(*elements: bytes) -> bytes:
    """A package of at most 255 elements."""
    return b"\x12" + _sized(bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """A buffer with its bytes."""
    return b"\x11" + _sized(integer(len(data)) + data)


def name(path: str, value: bytes) -> bytes:
    """Name a value."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Open a scope that exists."""
    return b"\x10" + _sized(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Declare a device."""
    return b"\x5b\x82" + _sized(name_string(path) + b"".join(terms))


def io_ports(base: int, length: int) -> bytes:
    """A device's fixed ports."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def isa_irq(line: int) -> bytes:
    """A device's interrupt line: edge, active high, its own."""
    return struct.pack("<BH", 0x22, 1 << line)


def bus_numbers(first: int, last: int) -> bytes:
    """Which buses a bridge produces."""
    return _word_space(2, flags=0x0C, kind=0, window=(first, last))


def io_window(first: int, last: int) -> bytes:
    """Which ports a bridge passes on."""
    return _word_space(1, flags=0x0C, kind=3, window=(first, last))


def resources(*descriptors: bytes) -> bytes:
    """A resource template: the descriptors, and an end tag that asks for no checksum."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def _word_space(kind_of_space: int, *, flags: int, kind: int, window: tuple[int, int]) -> bytes:
    first, last = window
    body = struct.pack("<BBBHHHHH", kind_of_space, flags, kind, 0, first, last, 0, last - first + 1)
    return b"\x88" + struct.pack("<H", len(body)) + body


def _sized(body: bytes) -> bytes:
    """Put the package length, which counts itself, before what it measures."""
    for extra in range(4):
        total = len(body) + 1 + extra
        if total < (1 << 6 if not extra else 1 << 4 + 8 * extra):
            break
    else:
        raise ValueError(f"{len(body)} bytes are more than a package holds")
    if not extra:
        return bytes([total]) + body
    return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little") + body
