"""Which ASIDs are free, and when they must be flushed before they are given out again.

Paper: memory-encryption.md §8 rules 2, 3, 7; sev-api.md §4.1.
"""

from __future__ import annotations

from collections.abc import Callable

from cbit.spec.errors import CbitError


class NoAsid(CbitError):
    """Every ASID of the kind is in use: more guests than the processor has keys, or tags, for."""


class AsidPool:
    """Clean ASIDs are given out; returned ones wait, dirty, until one flush cleans them all.

    Mutable.

    Args:
        kind: what they are for, in the words of the error message.
        first: lowest ASID of the kind.
        last: highest.
        flush: makes dirty ones clean: WBINVD on all cores, then DF_FLUSH.
    """

    def __init__(self, kind: str, *, first: int, last: int, flush: Callable[[], object]) -> None:
        self._kind = kind
        self._clean: list[int] = []
        self._dirty = list(range(first, last + 1))
        self._used: set[int] = set()
        self._flush = flush
        self._range = f"{first}..{last}"

    @property
    def in_use(self) -> frozenset[int]:
        """The ASIDs that guests hold."""
        return frozenset(self._used)

    @property
    def free(self) -> int:
        """How many are left, clean or dirty."""
        return len(self._clean) + len(self._dirty)

    def take(self) -> int:
        """Give out the lowest clean ASID, flushing if only dirty ones are left.

        Raises:
            NoAsid: none is left.
        """
        if not self._clean:
            if not self._dirty:
                raise NoAsid(
                    f"all ASIDs for {self._kind} ({self._range}) are in use: shut a guest down first"
                )
            self._flush()  # a line left in a cache would be written back with the next owner's key
            self._clean, self._dirty = sorted(self._dirty), []
        asid = self._clean.pop(0)
        self._used.add(asid)
        return asid

    def give_back(self, asid: int, *, dirty: bool = True) -> None:
        """Take an ASID back.

        Args:
            asid: it was taken before.
            dirty: a guest had it; False if no guest was ever activated with it.

        Raises:
            ValueError: no guest holds it.
        """
        if asid not in self._used:
            raise ValueError(f"ASID {asid} is returned but was not taken")
        self._used.remove(asid)
        if dirty:
            self._dirty.append(asid)
        else:
            self._clean = sorted([*self._clean, asid])
