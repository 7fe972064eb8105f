"""The tweak of the XE and XEX engines: a linear function of the block's physical address.

    T(p) = XOR over the bits i ≥ 4 that are set in p, of t_i          t_i: 16 bytes each

Linear means T(p) ^ T(q) = T(p ^ q).  The block-move attacks live on that, and so does speed here: the tweaks
of a piece of memory are a table that is the same for all pieces, XORed with one constant, repeated.

Paper: memory-encryption.md §9 (formula), §9.1 (the published constants).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cbit.crypto.entropy import Entropy
from cbit.spec.address import BLOCK, PAGE

FIRST_BIT: Final = 4  #: the lowest address bit that tells 16-byte blocks apart
END_BIT: Final = 52  #: system physical addresses are below 2**52

#: What the engine works on at a time, aligned: small enough that a piece of memory, its tweaks and the
#: scratch stay in the CPU's second-level cache together.
PIECE: Final = 1 << 17

_CACHE_LINE: Final = 64
#: Address bits of each look-up: the blocks of a piece, and three groups above them.
_GROUPS: Final = ((4, 17), (17, 29), (29, 41), (41, 52))

_ZEN1: Final = (  # bits 4 … 31: a four-byte pattern each, in the order in which it lies in memory (§9.1)
    "82253838 ec09079c 40000018 8102a23a 77d91077 b010b2c0 536d544d 1568ee53 b09230c2 9670ff8e "
    "361b90d5 0400c236 e8182985 bd31f92a a50d3744 f431d84c 02043181 b37132a1 508ac06c 168a8020 "
    "7f9bc007 00db0407 7f000404 70fa01be bb3d2890 bd2dd526 1c5d6ce2 4f5ce727"
)


@dataclass(frozen=True, slots=True)
class Tweak:
    """The constants t_i of one machine, the same for all its keys (§9.3).

    Attributes:
        constants: address bit (4 … 51) to its 16 bytes; a bit that is not there counts as zero.
        sums: the XOR of every subset of the constants of bits 4 … 16, 17 … 28, 29 … 40 and 41 … 51, as
            little-endian numbers: four look-ups give T.
        block_table: T of the blocks of the first piece of memory, laid out like them (128 KiB).

    Raises:
        ValueError: an address bit that selects no block, or a constant that is not 16 bytes.
    """

    constants: Mapping[int, bytes]
    sums: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    block_table: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for bit, constant in self.constants.items():
            if not FIRST_BIT <= bit < END_BIT:
                raise ValueError(f"address bit {bit} has no tweak constant: {FIRST_BIT} … {END_BIT - 1}")
            if len(constant) != BLOCK:
                raise ValueError(f"the tweak constant of bit {bit} has {len(constant)} bytes, not {BLOCK}")
        constants = {bit: bytes(self.constants[bit]) for bit in sorted(self.constants)}
        numbers = [int.from_bytes(constants.get(bit, b""), "little") for bit in range(END_BIT)]
        sums = tuple(_subset_sums(numbers[low:high]) for low, high in _GROUPS)
        object.__setattr__(self, "constants", MappingProxyType(constants))
        object.__setattr__(self, "sums", sums)
        object.__setattr__(self, "block_table", b"".join(t.to_bytes(BLOCK, "little") for t in sums[0]))

    def __repr__(self) -> str:
        return f"Tweak({len(self.constants)} constants)"

    def __hash__(self) -> int:
        return hash(tuple(self.constants.items()))

    @classmethod
    @functools.cache
    def zen1(cls) -> Tweak:
        """Return the constants measured on the Zen 1 family: four-byte patterns for address bits 4 … 31.

        MODEL CHOICE: t_i = 0 for the bits from 32 on, which were never published; two blocks whose addresses
        differ only there share a tweak.

        Paper: memory-encryption.md §9.1.
        """
        patterns = (bytes.fromhex(word) for word in _ZEN1.split())
        return cls({bit: 4 * pattern for bit, pattern in enumerate(patterns, FIRST_BIT)})

    @classmethod
    def random(cls, entropy: Entropy) -> Tweak:
        """Draw fresh constants for all address bits 4 … 51, as Zen 2 does at each boot.

        MODEL CHOICE: that T(p) is linear there too is not published (§13).

        Paper: memory-encryption.md §9, row "XEX, stronger tweaks".
        """
        return cls({bit: entropy.draw(BLOCK) for bit in range(FIRST_BIT, END_BIT)})

    def at(self, spa: int) -> bytes:
        """Return T(p) of the block that holds ``spa``: 16 bytes.

        Raises:
            ValueError: ``spa`` is not a physical address (below 2**52).

        Paper: memory-encryption.md §9.
        """
        if not 0 <= spa < 1 << END_BIT:
            raise ValueError(f"{spa:#x} is no physical address: they are below 2**{END_BIT}")
        block, piece, middle, high = self.sums
        t = block[spa >> 4 & 0x1FFF] ^ piece[spa >> 17 & 0xFFF] ^ middle[spa >> 29 & 0xFFF] ^ high[spa >> 41]
        return t.to_bytes(BLOCK, "little")


class XexTweaks:
    """T(p) over ranges of physical memory: the table of the first piece, and what to XOR to all of it.

    The table (128 KiB) belongs to the SoC side.
    """

    __slots__ = ("_address", "_sums", "_table")

    def __init__(self, tweak: Tweak) -> None:
        self._sums = tweak.sums[1:]
        self._table = working_memory(PIECE, place=0)
        self._table[:] = np.frombuffer(tweak.block_table, np.uint8)
        self._address = self._table.ctypes.data

    def over(self, spa: int, _length: int) -> tuple[int, bytes]:
        """Return where the tweaks of a range inside one `PIECE` lie, and the constant to XOR to them."""
        piece, middle, high = self._sums
        t = piece[spa >> 17 & 0xFFF]
        if spa >> 29:
            t ^= middle[spa >> 29 & 0xFFF] ^ high[spa >> 41]
        return self._address + spa % PIECE, t.to_bytes(BLOCK, "little")


def working_memory(size: int, *, place: int) -> NDArray[np.uint8]:
    """Return memory for the engine to work in, at one of four places inside a page.

    What is read and what is written in step lie at different places: a load whose address ends as that of a
    store just made waits for it, although it is of another page (up to half of the speed).
    """
    area = np.empty(size + PAGE + place * PAGE // 4 + _CACHE_LINE, np.uint8)
    start = -area.ctypes.data % PAGE + place * PAGE // 4 + _CACHE_LINE
    return area[start : start + size]


def _subset_sums(constants: list[int]) -> tuple[int, ...]:
    """XOR every subset: entry n is the XOR of the constants whose bit is set in n."""
    sums = [0]
    for constant in constants:
        sums += [constant ^ known for known in sums]
    return tuple(sums)
