"""Plaintext inside the SoC: page-sized slots of one mapping that a core dump leaves out.

Only the cache holds a pool.  It is not reachable from the bus, the DRAM or a probe.

Paper: memory-encryption.md §1 rule 1 (caches hold plaintext).
"""

from __future__ import annotations

from typing import Final, NewType, NoReturn

from cbit.memory.dram import anonymous
from cbit.memory.physical import Data
from cbit.spec.address import PAGE

Slot = NewType("Slot", int)  #: offset of a slot in the pool

_WIPED: Final = bytes(PAGE)


class Pool:
    """A fixed number of page slots, touched only when used and wiped when given back."""

    def __init__(self, capacity: int) -> None:
        """Reserve ``capacity`` bytes.

        Raises:
            ValueError: not a positive number of pages.
        """
        if capacity <= 0 or capacity % PAGE:
            raise ValueError(f"a cache of {capacity} bytes: must be a positive multiple of {PAGE}")
        self.capacity: Final = capacity
        self._area = anonymous(capacity, dumpable=False)
        self._window = memoryview(self._area)
        # Taken from the end, so lowest first: few copies touch few pages of the mapping.
        self._free = [Slot(at) for at in range(capacity - PAGE, -1, -PAGE)]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool holds plaintext: it is neither pickled nor copied")

    @property
    def window(self) -> memoryview:
        """All slots, free ones too."""
        return self._window

    @property
    def full(self) -> bool:
        """No slot is free."""
        return not self._free

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self) -> Slot:
        """Take a wiped slot; the caller made sure that one is free."""
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        """Wipe a slot and make it free."""
        self._area[slot : slot + PAGE] = _WIPED
        self._free.append(slot)

    def get(self, slot: Slot, start: int, length: int) -> bytes:
        """Copy bytes out of a slot."""
        return self._area[slot + start : slot + start + length]

    def put(self, slot: Slot, start: int, data: Data) -> None:
        """Copy bytes into a slot."""
        self._area[slot + start : slot + start + len(data)] = data

    def page(self, slot: Slot) -> memoryview:
        """Return the slot itself, for the engine to fill or to write back."""
        return self._window[slot : slot + PAGE]
