"""Plaintext inside the SoC: page-sized slots of one mapping that a core dump leaves out.

Only the cache holds a pool.  It is not reachable from the bus, the DRAM or a probe.

Paper: memory-encryption.md §1 rule 1 (caches hold plaintext).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NewType, NoReturn

from cbit.memory.dram import anonymous
from cbit.memory.physical import Data
from cbit.memory.stretches import stretches
from cbit.spec.address import KIB, PAGE

Slot = NewType("Slot", int)  #: offset of a slot in the pool
ROW: Final = 64 * KIB  #: bytes of slots that `Pool.fill` and `Pool.look` take at once

_WIPED: Final = memoryview(bytes(64 * KIB))
_PAGE_WIPED: Final = bytes(PAGE)
_FEW: Final = 16  # slots that are wiped faster one by one than it takes to see which are neighbours


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
        self._passage = memoryview(anonymous(ROW, dumpable=False))  # wiped behind each use
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

    def take_row(self, count: int) -> list[Slot]:
        """Take several, neighbours in ascending order if the next free ones are (as `take`)."""
        slots = self._free[-count:]
        del self._free[-count:]
        slots.reverse()
        return slots

    def give_back(self, slots: Sequence[Slot]) -> None:
        """Wipe slots and make them free; the lowest is the next to be taken."""
        if len(slots) <= _FEW:
            for slot in slots:
                self._area[slot : slot + PAGE] = _PAGE_WIPED
        else:
            for first, length in stretches(sorted(slots)):
                end = first + length * PAGE
                for at in range(first, end, len(_WIPED)):
                    stop = min(at + len(_WIPED), end)
                    self._area[at:stop] = _WIPED[: stop - at]
        self._free += slots
        if len(slots) > 1:
            self._free.sort(reverse=True)  # neighbours find each other again

    def get(self, slot: Slot, start: int, length: int) -> bytes:
        """Copy bytes out of a slot."""
        return self._area[slot + start : slot + start + length]

    def put(self, slot: Slot, start: int, data: Data) -> None:
        """Copy bytes into a slot."""
        self._area[slot + start : slot + start + len(data)] = data

    def page(self, slot: Slot) -> memoryview:
        """Return the slot itself, for the engine to fill or to write back."""
        return self._window[slot : slot + PAGE]

    def fill(self, slots: Sequence[Slot], source: Callable[[memoryview], object]) -> None:
        """Fill slots, up to `ROW`, in one pass: where they lie, or, if they are no row, by way of a passage.

        Args:
            slots: in the order of what comes.
            source: writes as many bytes as it is given room for.
        """
        if _is_row(slots):
            source(self._window[slots[0] : slots[-1] + PAGE])
            return
        room = self._passage[: len(slots) * PAGE]
        source(room)
        for index, slot in enumerate(slots):
            self._window[slot : slot + PAGE] = room[index * PAGE : (index + 1) * PAGE]
        room[:] = _WIPED[: len(room)]

    def look(self, slots: Sequence[Slot], reader: Callable[[memoryview], object]) -> None:
        """Show slots, up to `ROW`, as one piece of memory (as `fill`)."""
        if _is_row(slots):
            reader(self._window[slots[0] : slots[-1] + PAGE])
            return
        room = self._passage[: len(slots) * PAGE]
        for index, slot in enumerate(slots):
            room[index * PAGE : (index + 1) * PAGE] = self._window[slot : slot + PAGE]
        reader(room)
        room[:] = _WIPED[: len(room)]


def _is_row(slots: Sequence[Slot]) -> bool:
    return len(slots) == 1 or slots == [*range(slots[0], slots[0] + len(slots) * PAGE, PAGE)]
