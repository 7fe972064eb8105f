"""Page tables for tests, built from the manual's numbers and not from the walker's.

Each table's C-bit is chosen by the caller, so that no two levels need agree.
"""

from __future__ import annotations

from collections.abc import Callable

from cbit.cpu.control import PagingMode
from cbit.cpu.paging import Tables

P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63

SHIFTS = {
    PagingMode.LONG: (39, 30, 21, 12),
    PagingMode.PAE: (30, 21, 12),
    PagingMode.LEGACY: (22, 12),
}
#: Page sizes of a mode, as powers of two.
PAGES = {PagingMode.LONG: (12, 21, 30), PagingMode.PAE: (12, 21), PagingMode.LEGACY: (12, 22)}


class Builder:
    def __init__(
        self,
        mode: PagingMode,
        tables: Tables,
        *,
        new_table: Callable[[], int],
        c_bit: int | None,
        root_c: bool = False,
    ) -> None:
        self.mode, self.tables, self.new_table, self.c_bit = mode, tables, new_table, c_bit
        self.size = 4 if mode is PagingMode.LEGACY else 8
        self.root = self._fresh(c=root_c)
        self.root_c = root_c

    @property
    def cr3(self) -> int:
        return self.root | self._c(self.root_c)

    def map(
        self,
        linear: int,
        target: int,
        *,
        shift: int = 12,
        flags: int = P | W | U,
        c: bool = False,
        tables_c: bool | None = None,
    ) -> int:
        """Map a page and return the address of its entry; new tables get ``tables_c`` or the root's C."""
        where, table_c = self.find(linear, shift, tables_c=self.root_c if tables_c is None else tables_c)
        large = PS if shift != 12 else 0
        address = target
        if self.mode is PagingMode.LEGACY and shift == 22:
            address = (target & 0xFFC0_0000) | ((target >> 32) & 0xFF) << 13
        self.tables.write_entry(where, address | flags | large | self._c(c), size=self.size, c=table_c)
        return where

    def find(self, linear: int, shift: int, *, tables_c: bool = False) -> tuple[int, bool]:
        """Address of the entry of a level, and the C-bit of the table that it is in."""
        table, table_c = self.root, self.root_c
        for level in SHIFTS[self.mode]:
            bits = (
                10
                if self.mode is PagingMode.LEGACY
                else 2
                if level == 30 and self.mode is PagingMode.PAE
                else 9
            )
            where = table + (linear >> level) % (1 << bits) * self.size
            if level == shift:
                return where, table_c
            entry = self.tables.read_entry(where, size=self.size, c=table_c)
            if not entry & P:
                top_of_pae = level == 30 and self.mode is PagingMode.PAE
                entry = self._fresh(c=tables_c) | (P if top_of_pae else P | W | U) | self._c(tables_c)
                self.tables.write_entry(where, entry, size=self.size, c=table_c)
            table_c = self.c_bit is not None and bool(entry >> self.c_bit & 1)
            table = entry & 0x000F_FFFF_FFFF_F000 & ~self._c(True)
        raise AssertionError(f"{self.mode} has no level {shift}")

    def patch(self, linear: int, shift: int, *, set_bits: int = 0, clear: int = 0) -> None:
        where, c = self.find(linear, shift)
        value = self.tables.read_entry(where, size=self.size, c=c)
        self.tables.write_entry(where, value & ~clear | set_bits, size=self.size, c=c)

    def entry(self, linear: int, shift: int) -> int:
        where, c = self.find(linear, shift)
        return self.tables.read_entry(where, size=self.size, c=c)

    def _c(self, c: bool) -> int:
        return 1 << self.c_bit if c and self.c_bit is not None else 0

    def _fresh(self, *, c: bool) -> int:
        table = self.new_table()
        for where in range(table, table + 4096, self.size):
            self.tables.write_entry(where, 0, size=self.size, c=c)
        return table
