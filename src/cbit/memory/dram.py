"""DRAM cells: one anonymous mapping, and what time without power does to it.

What is in the mapping is what a probe sees; nothing else in the machine is "memory".

Paper: memory-encryption.md §1 rules 1 and 3; attacks.md p14 (contents kept or decayed).
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
import numpy.typing as npt

from cbit.crypto.entropy import Entropy
from cbit.memory.errors import AddressError
from cbit.spec.address import KIB, PAGE, Spa

GROUND_STRIPE: Final = 8 * KIB  #: bytes of neighbouring cells that decay toward the same value
_GROUND: Final = np.tile(np.repeat(np.array([0x00, 0xFF], dtype=np.uint8), GROUND_STRIPE), 4)
_CHUNK: Final = len(_GROUND)


class Dram:
    """The memory modules of one machine.

    Mutable.  A reset leaves the contents alone; `lose_power` lets them fade.
    """

    def __init__(self, size: int) -> None:
        """Fit ``size`` bytes of zeroed cells.

        Raises:
            ValueError: ``size`` is not a positive number of pages.
        """
        if size <= 0 or size % PAGE:
            raise ValueError(f"DRAM of {size} bytes: must be a positive multiple of {PAGE}")
        self.size: Final = size
        self._cells = memoryview(anonymous(size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size:#x} bytes)"

    def check(self, spa: int, length: int) -> None:
        """Refuse a range that is not entirely DRAM.

        Raises:
            AddressError: it is not.
        """
        if spa < 0 or length < 0 or spa + length > self.size:
            raise AddressError(spa, f"{length} bytes from here are not inside DRAM of {self.size:#x} bytes")

    def cells(self, spa: Spa, length: int) -> memoryview:
        """Return the cells themselves, writable: for the bus, and for whoever holds the module in hand.

        Raises:
            AddressError: the range leaves DRAM.
        """
        if spa < 0 or length < 0 or spa + length > self.size:
            self.check(spa, length)
        return self._cells[spa : spa + length]

    def lose_power(self, entropy: Entropy, *, decay: float) -> int:
        """Let each cell fall back to its ground state with probability ``decay``.

        MODEL CHOICE: the ground state alternates between 0 and 1 every 8 KiB, and cells decay independently.
        Neither the pattern nor a decay rate has a stored source (attacks.md A1).

        Returns:
            The number of bits that changed.

        Raises:
            ValueError: ``decay`` is not a probability.
        """
        insist_on_share(decay)
        if decay == 0.0:
            return 0
        random = np.random.Generator(np.random.SFC64(int.from_bytes(entropy.draw(32), "little")))
        changed = 0
        for start in range(0, self.size, _CHUNK):
            cells = np.frombuffer(self._cells[start : start + _CHUNK], dtype=np.uint8)
            fallen = _random_bits(random, 8 * len(cells), decay)
            fallen &= cells ^ _GROUND[: len(cells)]  # only a cell away from its ground state changes
            changed += int(np.bitwise_count(fallen).sum())
            cells ^= fallen
        return changed


def anonymous(size: int, *, dumpable: bool = True) -> mmap.mmap:
    """Map ``size`` zero bytes that cost nothing until touched, private to this process.

    Args:
        size: bytes.
        dumpable: False keeps the bytes out of a core dump, where the platform can (memory inside the SoC).
    """
    # Private, not shared: reading an untouched page of a private mapping allocates nothing.
    flags = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,) if hasattr(mmap, "MAP_PRIVATE") else ()
    area = mmap.mmap(-1, size, *flags)
    if not dumpable and hasattr(mmap, "MADV_DONTDUMP"):
        area.madvise(mmap.MADV_DONTDUMP)
    return area


def insist_on_share(decay: float) -> None:
    """Refuse what no share of the cells can be, before anything is lost.

    Raises:
        ValueError: ``decay`` is not a probability.
    """
    if not 0.0 <= decay <= 1.0:  # nor NaN, of which neither holds
        raise ValueError(f"decay {decay} is not between 0 and 1")


def _random_bits(random: np.random.Generator, bits: int, probability: float) -> npt.NDArray[np.uint8]:
    """Return packed bits, each 1 with the given probability; only the rarer value is drawn place by place."""
    mostly = probability > 0.5
    count = random.binomial(bits, 1 - probability if mostly else probability)
    mask = np.full(bits, mostly)
    mask[random.choice(bits, count, replace=False, shuffle=False)] = not mostly
    return np.packbits(mask)
