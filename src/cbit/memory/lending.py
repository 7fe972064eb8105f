"""Lending: an execution engine works on the cache's copies where they lie, and keeps none of its own.

      engine   lend(page, key id)  ->  a slot of the cache's pool, filled
               ... loads, and after lend(write=True) stores, at the speed of memory ...
      cache    recall(slots)       ->  which lines were stored to; the engine has let go of them

Plaintext stays in one place, under one bound, and is wiped in one place.  What others read under the same tag
is what the engine has stored, at once; what they store, the engine reads, at once.

Paper: memory-encryption.md §1 rule 1 (caches hold plaintext), §6.1 (tags).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from cbit.memory.pool import Slot
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId

CLUSTER: Final = 16  #: pages that are brought in together at most, aligned
#: Bytes of a cache in which guests can execute: an eviction empties the TLB, so the pages that an instruction
#: needs must be there together, each with three page tables of its own.  The worst in long mode is a far call
#: through a gate: code, operand, gate, descriptor, task state and stack, each across the border of two pages.
#: That is 12 * 4 pages, the top table, and the VMCB: 50.
LEAST_CACHE: Final = 64 * PAGE
_ROOM_FOR: Final = 4  # that many clusters a cache shall hold
_LEAST: Final = 32  # pages of a cache in which neighbours do more good than harm


def cluster(capacity: int) -> int:
    """Say how many neighbouring pages come together into a cache of so many bytes: a power of two."""
    pages = capacity // PAGE
    return min(CLUSTER, 1 << (pages // _ROOM_FOR).bit_length() - 1) if pages >= _LEAST else 1


class Borrower(Protocol):
    """Who uses slots that stay the cache's.

    All slots are named by their offset in the lender's window.
    """

    def recall(self, slots: Sequence[Slot]) -> Sequence[int]:
        """Stop using some slots, before this returns; none is touched again until it is lent again.

        Returns:
            For each slot one bit a line: stored to since it was lent for writing.
        """
        ...

    def clean(self, slots: Sequence[Slot]) -> Sequence[int]:
        """Go on reading some slots, but ask again before storing; returns as `recall` does."""
        ...

    def stored(self, slot: Slot) -> int:
        """Say which lines were stored to since the slot was lent for writing; change nothing."""
        ...

    def was_used(self, slot: Slot) -> bool:
        """Say whether a slot was used more than once since this was last asked: then it leaves later."""
        ...

    def overwritten(self, slot: Slot) -> None:
        """Hear that somebody else stored into a slot that is lent."""
        ...


class SlotLender(Protocol):
    """What lends slots: `cbit.memory.cache.Cache`."""

    @property
    def window(self) -> memoryview:
        """Everything that may ever be lent; a slot is an offset in it."""
        ...

    def lend(self, page: Spa, key_id: KeyId, borrower: Borrower, *, write: bool) -> Slot:
        """Lend the copy of a page, brought in if need be; other copies may be recalled for it.

        Args:
            page: a page of DRAM.
            key_id: the tag.
            borrower: who hears of a recall; a copy has one borrower at a time.
            write: whether it may be stored to.

        Raises:
            AddressError: no such DRAM.
        """
        ...

    def lend_along(
        self, page: Spa, count: int, key_id: KeyId, borrower: Borrower, *, write: bool
    ) -> Sequence[Slot | None]:
        """Lend the copies of neighbouring pages, those at least that cost no recall: None for the others.

        What a prefetching cache does: bringing in sixteen pages at once costs as much as five by themselves.

        Raises:
            AddressError: no such DRAM.
        """
        ...

    def recall_from(self, borrower: Borrower, slots: Sequence[Slot] | None = None) -> None:
        """Take back what was lent to somebody: some slots, or all; the copies stay in the cache."""
        ...
