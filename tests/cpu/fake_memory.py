"""A small honest stand-in for DRAM behind a tagged write-back cache.

DRAM holds what is on the wire; each key id has its own keystream, bound to the page; copies under different
tags know nothing of each other unless the part is coherent.  No plaintext of a key is kept anywhere but in
its copy.
"""

from __future__ import annotations

import hashlib
from functools import cache

from cbit.spec.address import LINE, PAGE, Spa
from cbit.spec.errors import CbitError
from cbit.spec.key_id import UNENCRYPTED, KeyId


@cache
def keystream(key_id: KeyId, page: int) -> bytes:
    return hashlib.shake_256(f"{key_id} {page}".encode()).digest(PAGE)


def engine(data: bytes, *, key_id: KeyId, page: int) -> bytes:
    if key_id == UNENCRYPTED:
        return bytes(data)
    number = int.from_bytes(data, "big") ^ int.from_bytes(keystream(key_id, page), "big")
    return number.to_bytes(PAGE, "big")


class FakeMemory:
    def __init__(self, size: int, *, coherent: bool = False) -> None:
        self.dram = bytearray(size)
        self._coherent = coherent
        self.copies: dict[tuple[int, KeyId], bytearray] = {}
        self.dirty: dict[tuple[int, KeyId], set[int]] = {}

    @property
    def coherent(self) -> bool:
        return self._coherent

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        out = b""
        while length:
            page, start = spa & -PAGE, spa % PAGE
            count = min(length, PAGE - start)
            out += self._copy(page, key_id)[start : start + count]
            spa, length = Spa(spa + count), length - count
        return out

    def write(self, spa: Spa, data: bytes | bytearray | memoryview, key_id: KeyId) -> None:
        for offset, byte in enumerate(data):
            page, start = (spa + offset) & -PAGE, (spa + offset) % PAGE
            self._copy(page, key_id)[start] = byte
            self.dirty[page, key_id].add(start // LINE)

    def wbinvd(self) -> int:
        return sum(self._leave(tag) for tag in list(self.copies))

    def invd(self) -> int:
        dropped = len(self.copies)
        self.copies.clear()
        self.dirty.clear()
        return dropped

    def clflush(self, spa: Spa, key_id: KeyId) -> int:
        page = spa & -PAGE
        tags = [tag for tag in self.copies if tag[0] == page and (self.coherent or tag[1] == key_id)]
        return sum(self._leave(tag) for tag in tags)

    def vmpage_flush(self, spa: Spa, asid: int) -> int:
        tag = (spa & -PAGE, KeyId(asid))
        return self._leave(tag) if tag in self.copies else 0

    def _copy(self, page: int, key_id: KeyId) -> bytearray:
        if not 0 <= page < len(self.dram):
            raise CbitError(f"no memory at {page:#x}")
        tag = (page, key_id)
        if self.coherent:
            for other in [other for other in self.copies if other[0] == page and other != tag]:
                self._leave(other)
        if tag not in self.copies:
            wire = bytes(self.dram[page : page + PAGE])
            self.copies[tag] = bytearray(engine(wire, key_id=key_id, page=page))
            self.dirty[tag] = set()
        return self.copies[tag]

    def _leave(self, tag: tuple[int, KeyId]) -> bool:
        page, key_id = tag
        wire = engine(bytes(self.copies.pop(tag)), key_id=key_id, page=page)
        dirty = self.dirty.pop(tag)
        for line in dirty:
            start = line * LINE
            self.dram[page + start : page + start + LINE] = wire[start : start + LINE]
        return bool(dirty)
