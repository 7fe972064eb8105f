"""The engine's own nested tables: four levels, in memory that no software of the machine can reach.

      root                PML4[0] -> view 0: guest physical addresses with C=0
                          PML4[1] -> view 1: with C=1 (bit 39 is the C-bit, or an address bit without SEV)
      root_without_c_bit  both  -> view 1: a guest that has no C-bit to say so is private everywhere

Leaves are absent until something needs them, and never carry NX.
"""

from __future__ import annotations

from typing import Final

from cbit.cpu.engine.processor import TABLES
from cbit.spec.address import PAGE

WORDS: Final = PAGE // 8
OPEN: Final = 7  # present, writable, user
READ_ONLY: Final = 5  # present, user
VIEW_BITS: Final = 39
_PAGES_OF_A_ROOT: Final = 4


class OutOfTables(Exception):
    """All table pages are used: the shadow starts anew."""


class Roots:
    """The tables of one address space.

    Attributes:
        root: physical address for nested_cr3 while the guest has a C-bit.
        root_without_c_bit: the same while it has none.
    """

    def __init__(self, tables: Tables, page: int, *, sev: bool) -> None:
        self._tables = tables
        self._views = (page + 2, page + 3)
        self.root: Final = TABLES + page * PAGE
        self.root_without_c_bit: Final = self.root + PAGE if sev else self.root
        for view, table in enumerate(self._views):
            tables.words[page * WORDS + view] = TABLES + table * PAGE | OPEN
            tables.words[(page + 1) * WORDS + view] = TABLES + self._views[1] * PAGE | OPEN
        self._leaf_tables: dict[int, int] = {}

    def leaf(self, address: int) -> int:
        """Find the word that maps a guest physical address, C-bit included; make the tables above it.

        Raises:
            OutOfTables: there is no page left for one.
        """
        table = self._leaf_tables.get(address >> 21)
        if table is None:
            directory = self._below(self._views[address >> VIEW_BITS & 1], address >> 30)
            table = self._leaf_tables[address >> 21] = self._below(directory, address >> 21)
        return table * WORDS + (address >> 12) % WORDS

    def _below(self, table: int, index: int) -> int:
        word = table * WORDS + index % WORDS
        entry = self._tables.words[word]
        if not entry:
            entry = self._tables.words[word] = self._tables.take() | OPEN
        return (entry - TABLES) // PAGE

    def forget(self) -> None:
        """Let go of everything below the views; `Tables.restart` follows."""
        self._leaf_tables.clear()
        for view in self._views:
            self._tables.clear(view)


class Tables:
    """Table pages: first the roots, which stay; then all others, which are dropped at once."""

    def __init__(self, words: memoryview, *, spaces: int) -> None:
        """Start empty.

        Args:
            words: the memory at TABLES, as 64-bit words.
            spaces: how many address spaces there may be.
        """
        self.words: Final = words
        self._first = spaces * _PAGES_OF_A_ROOT
        self._pages = len(words) // WORDS
        self._next_root = 0
        self._next = self._first

    def new_roots(self, *, sev: bool) -> Roots:
        """Make the tables of an address space.

        Raises:
            OutOfTables: more address spaces than were asked for.
        """
        if self._next_root == self._first:
            raise OutOfTables
        page, self._next_root = self._next_root, self._next_root + _PAGES_OF_A_ROOT
        return Roots(self, page, sev=sev)

    def take(self) -> int:
        """Take a cleared page for a table; return its physical address (errors as `Roots.leaf`)."""
        if self._next == self._pages:
            raise OutOfTables
        page, self._next = self._next, self._next + 1
        self.clear(page)
        return TABLES + page * PAGE

    def restart(self) -> None:
        """Make all pages but the roots free again; whoever used them has forgotten them."""
        self._next = self._first

    def clear(self, page: int) -> None:
        """Make all entries of a table absent."""
        self.words[page * WORDS : (page + 1) * WORDS] = _EMPTY


_EMPTY: Final = memoryview(bytes(PAGE)).cast("Q")
