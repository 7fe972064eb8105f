"""Which ASIDs are free, and when they must be flushed before they are given out again.

Paper: memory-encryption.md §8 rules 2, 3, 7; sev-api.md §4.1.
"""

from __future__ import annotations

from collections.abc import Callable

from cbit.spec.errors import CbitError


class NoAsid(CbitError):
    """Every ASID of the kind is in use: more guests than the processor has keys for."""


class AsidPool:
    """Clean ASIDs are given out; returned ones wait, dirty, until one flush cleans them all.

    Args:
        first: lowest ASID for guests without ES.
        last: highest ASID of the processor.
        flush: WBINVD on all cores, then DF_FLUSH.
    """

    def __init__(self, *, first: int, last: int, flush: Callable[[], None]) -> None:
        self._clean: list[int] = []
        self._dirty = list(range(first, last + 1))
        self._used: set[int] = set()
        self._flush = flush
        self._range = f"{first}..{last}"

    @property
    def in_use(self) -> frozenset[int]:
        """The ASIDs that guests hold."""
        return frozenset(self._used)

    def take(self) -> int:
        """Give out the lowest clean ASID, flushing if only dirty ones are left.

        Raises:
            NoAsid: none is left.
        """
        if not self._clean:
            if not self._dirty:
                raise NoAsid(f"all ASIDs for guests without ES ({self._range}) are in use: shut a guest down first")
            self._flush()  # a line left in a cache would be written back with the next owner's key
            self._clean, self._dirty = sorted(self._dirty), []
        asid = self._clean.pop(0)
        self._used.add(asid)
        return asid

    def give_back(self, asid: int) -> None:
        """Take an ASID back after DEACTIVATE; it is dirty now."""
        self._used.remove(asid)
        self._dirty.append(asid)
