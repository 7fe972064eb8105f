"""The hypervisor's nested tables: guest-physical to system-physical, in the machine's own DRAM.

    GPA 47 … 39 | 38 … 30 | 29 … 21 | 20 … 12 | offset          entry: frame | C | U W P

These tables are all that a hypervisor, or an attack, can edit; the walker reads them from DRAM.

Paper: memory-encryption.md §3 (C-bit at every level), §4.1 and §4.3 (what the nested C-bit does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cbit.hypervisor.host import Host
from cbit.spec.address import PAGE, Gpa, Spa, strip_c_bit

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2  # nested walks are user accesses: without it every guest access faults
_ALL: Final = PRESENT | WRITABLE | USER
_FLAGS: Final = PAGE - 1


class NestedTables:
    """Four levels of tables with 4 KiB leaves.

    Args:
        host: whose memory holds the tables.
        c_bit: position of the C-bit.
        encrypted: store the tables encrypted with the host's key and mark every pointer to them with the C-bit.
    """

    def __init__(self, host: Host, *, c_bit: int, encrypted: bool) -> None:
        self._host = host
        self._c_bit = c_bit
        self._encrypted = encrypted
        self._tables: list[Spa] = []
        self._root = self._new_table()

    @property
    def ncr3(self) -> int:
        """The value for VMCB.nCR3."""
        return self._pointer(self._root)

    def map(self, gpa: Gpa, frames: range, *, c: bool) -> None:
        """Map pages from ``gpa`` on; replaces what was there.  The TLB is the caller's business."""
        flags = _ALL | (1 << self._c_bit if c else 0)
        while frames:
            slot = self._leaf(gpa, create=True)
            count = min(len(frames), (PAGE - slot % PAGE) // 8)  # to the end of this leaf table
            entries = b"".join((spa | flags).to_bytes(8, "little") for spa in frames[:count])
            self._host.write(slot, entries, c=self._encrypted)
            gpa, frames = Gpa(gpa + count * PAGE), frames[count:]

    def unmap(self, gpa: Gpa) -> None:
        """Make one page absent."""
        if slot := self._leaf(gpa):
            self._write(slot, 0)

    def lookup(self, gpa: Gpa) -> tuple[Spa, bool] | None:
        """Return (frame, C) of a page, or None if it is absent."""
        slot = self._leaf(gpa)
        entry = self._read(slot) if slot else 0
        if not entry & PRESENT:
            return None
        address, c = strip_c_bit(entry, self._c_bit)
        return Spa(address & ~_FLAGS), c

    def frames(self) -> Iterator[Spa]:
        """Name the frames that hold the tables."""
        yield from self._tables

    def free(self) -> None:
        """Give all tables back."""
        for table in self._tables:
            self._host.frames.give_back(range(table, table + PAGE, PAGE))
        self._tables.clear()

    def _leaf(self, gpa: Gpa, *, create: bool = False) -> Spa:
        """Find the slot of a page's leaf entry; 0 if a table on the way is absent and none is to be made."""
        table = self._root
        for level in (3, 2, 1):
            slot = self._slot(table, gpa, level)
            entry = self._read(slot)
            if entry & PRESENT:
                table = self._target(entry)
            elif create:
                table = self._new_table()
                self._write(slot, self._pointer(table) | _ALL)
            else:
                return Spa(0)
        return self._slot(table, gpa, 0)

    def _new_table(self) -> Spa:
        table = self._host.frames.take_page()
        self._host.write(table, bytes(PAGE), c=self._encrypted)
        self._tables.append(table)
        return table

    def _pointer(self, table: Spa) -> int:
        return table | (1 << self._c_bit if self._encrypted else 0)

    def _target(self, entry: int) -> Spa:
        return Spa(strip_c_bit(entry, self._c_bit)[0] & ~_FLAGS)

    @staticmethod
    def _slot(table: Spa, gpa: Gpa, level: int) -> Spa:
        return Spa(table + 8 * (gpa >> 12 + 9 * level & 0x1FF))

    def _read(self, slot: Spa) -> int:
        return int.from_bytes(self._host.read(slot, 8, c=self._encrypted), "little")

    def _write(self, slot: Spa, entry: int) -> None:
        self._host.write(slot, entry.to_bytes(8, "little"), c=self._encrypted)
