"""The host software's own hand on its tables: map, unmap, change a leaf.

Long mode, and therefore nested tables as well.  This is software: it writes entries and flushes nothing.

Paper: memory-encryption.md §3 rule 2 (a C-bit at every level).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cbit.cpu.control import AddressRules, PagingMode
from cbit.cpu.paging import LEVELS, Pte, Step, Tables
from cbit.spec.address import GIB, MIB, PAGE

ENTRY: Final = 8  # bytes
SIZES: Final = (PAGE, 2 * MIB, GIB)
#: A page that everybody may read, write and execute.
OPEN: Final = Pte.P | Pte.W | Pte.U


class PageTables:
    """Four-level tables in memory.

    Every table is reached as the top one is: with C=1 if ``root`` has the C-bit, without if not.

    Args:
        tables: how entries are read and written.
        root: the value for CR3 or nCR3, C-bit included; the page is taken over and cleared.
        rules: the address bits of entries.
        new_table: hands out a page of memory for a table.
    """

    def __init__(
        self, tables: Tables, root: int, *, rules: AddressRules, new_table: Callable[[], int]
    ) -> None:
        self.root: Final = root
        self._tables = tables
        self._rules = rules
        self._new_table = new_table
        self._top, self._c = rules.split(root)
        self._clear(self._top)

    def map(
        self, linear: int, physical: int, *, size: int = PAGE, flags: Pte = OPEN, c: bool = False
    ) -> None:
        """Let the page at ``linear`` be the one at ``physical``; what was mapped there before is replaced.

        Args:
            linear: linear (or guest physical) address, a multiple of ``size``.
            physical: physical address without C-bit, a multiple of ``size``.
            size: 4 KiB, 2 MiB or 1 GiB.
            flags: bits of the leaf; Pte.P and Pte.PS are added.
            c: the leaf's C-bit.

        Raises:
            ValueError: a size that does not exist, or an address that does not fit it or the machine.
        """
        if size not in SIZES or linear % size or physical % size:
            raise ValueError(f"{linear:#x} -> {physical:#x}: not multiples of a page size, {size:#x}")
        if self._rules.split(physical)[0] >> self._rules.width or self._rules.split(physical)[1]:
            raise ValueError(f"{physical:#x} is not a physical address of this machine")
        large = Pte.PS if size != PAGE else Pte(0)
        value = self._rules.join(physical | int(flags | Pte.P | large), c=c)
        self._tables.write_entry(self._descend(linear, size), value, size=ENTRY, c=self._c)

    def unmap(self, linear: int) -> None:
        """Let the page that holds ``linear`` be absent; nothing happens if it is already."""
        leaf = self.leaf(linear)
        if leaf is not None:
            self.set_leaf(leaf, 0)

    def leaf(self, linear: int) -> Step | None:
        """Return the entry that maps ``linear``, or None."""
        table = self._top
        for level in LEVELS[PagingMode.LONG]:
            where = table + level.index(linear) * ENTRY
            value = self._tables.read_entry(where, size=ENTRY, c=self._c)
            if not value & Pte.P:
                return None
            if 1 << level.shift == PAGE or value & Pte.PS:
                return Step(level, where, value, self._c)
            table = self._target(value)
        return None

    def set_leaf(self, leaf: Step, value: int) -> None:
        """Write an entry that `leaf` returned."""
        self._tables.write_entry(leaf.address, value, size=ENTRY, c=leaf.c)

    def _descend(self, linear: int, size: int) -> int:
        """Address of the entry that maps a page of ``size``, with the tables above it made if need be."""
        table = self._top
        for level in LEVELS[PagingMode.LONG]:
            where = table + level.index(linear) * ENTRY
            if 1 << level.shift == size:
                break
            value = self._tables.read_entry(where, size=ENTRY, c=self._c)
            if value & Pte.P and value & Pte.PS:
                raise ValueError(f"{linear:#x} lies in a larger page already mapped")
            if not value & Pte.P:
                value = self._rules.join(self._new_table() | int(OPEN), c=self._c)
                self._clear(self._target(value))
                self._tables.write_entry(where, value, size=ENTRY, c=self._c)
            table = self._target(value)
        return where

    def _target(self, value: int) -> int:
        return self._rules.split(value & 0x000F_FFFF_FFFF_F000)[0]

    def _clear(self, table: int) -> None:
        self._tables.write_entry(table, 0, size=PAGE, c=self._c)  # all of its entries at once
