"""What the cache knows of each of its copies, and how lent ones come back.

Paper: memory-encryption.md §6.1 (tags).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cbit.memory.lending import Borrower
from cbit.memory.pool import Slot
from cbit.spec.address import Spa
from cbit.spec.key_id import KeyId


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """What the cache tells of one copy; never its contents."""

    page: Spa
    key_id: KeyId
    dirty_lines: int


@dataclass(slots=True)
class Copy:
    """One copy of a page under one tag.  Mutable.

    Attributes:
        page: where it is in DRAM.
        key_id: the tag.
        slot: where it is in the pool.
        dirty: one bit a line, without what a borrower stored to.
        used: when, in accesses.
        borrower: who has it on loan.
        lent_for_writing: whether the borrower may store to it.
    """

    page: int
    key_id: KeyId
    slot: Slot
    dirty: int
    used: int
    borrower: Borrower | None = None
    lent_for_writing: bool = False

    @property
    def info(self) -> CopyInfo:
        """What may be told of it: dirty lines are also those that a borrower stored to."""
        stored = self.borrower.stored(self.slot) if self.borrower is not None else 0
        return CopyInfo(Spa(self.page), self.key_id, (self.dirty | stored).bit_count())


def take_back(copies: Iterable[Copy]) -> None:
    """Take lent copies back, with what was stored to them: all of one borrower's at once."""
    lent = [copy for copy in copies if copy.borrower is not None]
    while lent:
        borrower = lent[0].borrower
        assert borrower is not None  # what is lent has a borrower
        mine = [copy for copy in lent if copy.borrower is borrower]
        for copy, lines in zip(mine, borrower.recall([copy.slot for copy in mine]), strict=True):
            copy.dirty |= lines
            copy.borrower, copy.lent_for_writing = None, False
        lent = [copy for copy in lent if copy.borrower is not None]
