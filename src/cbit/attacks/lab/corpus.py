"""Known plaintext in the victim's memory, and what its blocks become when they are moved.

Paper: memory-encryption.md §9.2; attacks.md A10 step 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbit.attacks.lab.tools import Memory
from cbit.crypto.memory_modes import Tweak
from cbit.spec.address import BLOCK

Words = NDArray[np.uint16]


class Corpus:
    """A stretch of guest memory whose plaintext the adversary knows, and the published tweak constants.

    Args:
        memory: the power to read and write ciphertext.
        gpa: where it begins; a multiple of 16.
        plain: its contents.
        xe: the engine's mode is XE, else XEX.
    """

    def __init__(self, memory: Memory, gpa: int, plain: bytes, *, xe: bool) -> None:
        self._memory, self._gpa, self._plain, self._xe = memory, gpa, plain, xe
        self._spa = memory.spa(gpa, len(plain))
        self._tweak = Tweak.zen1()
        places = range(self._spa, self._spa + len(plain), BLOCK)
        words = np.frombuffer(plain, np.uint16).reshape(-1, BLOCK // 2)
        tweaks = np.frombuffer(b"".join(self._tweak.at(place) for place in places), np.uint16)
        starts = np.frombuffer(plain, np.uint32)[:: BLOCK // 4] ^ tweaks.view(np.uint32)[:: BLOCK // 4]
        self._starts = starts.astype("<u4")
        # The first and the last two bytes of each block, without the tweak of any place.
        self._ends: dict[int, Words] = {
            at: words[:, at // 2] ^ tweaks.reshape(-1, BLOCK // 2)[:, at // 2] for at in (0, BLOCK - 2)
        }
        # The first block that has them, by their value; -1 for none.
        self._first = {at: np.full(1 << 16, -1, np.int64) for at in self._ends}
        for at, ends in self._ends.items():
            values, places_of = np.unique(ends, return_index=True)
            self._first[at][values] = places_of

    def gpa(self, index: int) -> int:
        """Guest physical address of a block."""
        return self._gpa + BLOCK * index

    def ends(self, target: int, at: int = 0) -> Words:
        """For each block, its first two bytes, or its last two, as they would be at a system address."""
        (tweak,) = np.frombuffer(self._tweak.at(target)[at : at + 2], np.uint16)
        seen: Words = self._ends[at] ^ tweak
        return seen

    def chosen_bytes(self) -> int:
        """Count the leading bytes for which a moved block has most values: more than half of all."""
        count = 0
        while count < 4:
            kept = len(np.unique(self._starts & np.uint32((1 << 8 * (count + 1)) - 1)))
            if kept <= 1 << 8 * (count + 1) - 1:
                break
            count += 1
        return count

    def find(self, wanted: bytes, target: int, at: int = 0) -> int | None:
        """Find a block that begins, or ends, with two wanted bytes at a system address."""
        tweaked = xor(wanted, self._tweak.at(target)[at : at + 2])
        found = int(self._first[at][int.from_bytes(tweaked, "little")])
        return found if found >= 0 else None

    def ciphertext_for(self, index: int, target: int) -> bytes:
        """What to put at a system address so that it decrypts to a block of the corpus, tweaked."""
        source = self._spa + BLOCK * index
        cells = self._memory.read(source, BLOCK)
        return cells if self._xe else xor(cells, difference(source, target))


def difference(source: int, target: int) -> bytes:
    """T(source) ^ T(target) with the published constants, by system addresses."""
    tweak = Tweak.zen1()
    return xor(tweak.at(source), tweak.at(target))


def xor(a: bytes, b: bytes) -> bytes:
    """XOR of two strings of one length."""
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")
