"""A reader of newc archives and a writer of kernel modules, made from the formats and not from the code."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    data: bytes
    numbers: tuple[int, ...]


def read_newc(archive: bytes) -> list[Entry]:
    """Read as Linux does: zeros between entries are passed over, a trailer resets."""
    at, entries = 0, []
    while at < len(archive):
        if archive[at] == 0:
            at += 1
            continue
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        words = tuple(int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13))
        name_size, size = words[11], words[6]
        raw = archive[at + 110 : at + 110 + name_size]
        assert raw[-1] == 0
        body = at + (110 + name_size + 3) // 4 * 4
        entries.append(Entry(raw.rstrip(b"\x00").decode(), words[1], archive[body : body + size], words))
        at = body + (size + 3) // 4 * 4
    return entries


def a_module(*lines: str, sections_first: bool = False) -> bytes:
    """Make an ELF file with a section .modinfo that holds these lines."""
    info = b"".join(line.encode() + b"\x00" for line in lines)
    names = b"\x00.modinfo\x00.shstrtab\x00"
    head, body = 64, info + names
    sections = [
        (0, 0, 0, 0),
        (1, 1, head, len(info)),
        (10, 3, head + len(info), len(names)),
    ]
    table = b"".join(
        struct.pack("<2I4Q2I2Q", name, kind, 0, 0, at, size, 0, 0, 1, 0) for name, kind, at, size in sections
    )
    at = head + len(body)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\x00") + struct.pack(
        "<2HI3QI6H", 1, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections), 2
    )
    return header + body + table
