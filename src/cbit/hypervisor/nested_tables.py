"""The hypervisor's nested tables: guest-physical to system-physical, in the machine's own DRAM.

    GPA 47 … 39 | 38 … 30 | 29 … 21 | 20 … 12 | offset          entry: frame | C | U W P

These tables are all that a hypervisor, or an attack, can edit; the walker reads them from DRAM.
Nothing here flushes a TLB: whoever changes an entry that a guest has used calls ``Host.forget``.

Paper: memory-encryption.md §3 (C-bit at every level), §4.1 and §4.3 (what the nested C-bit does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cbit.cpu.page_tables import ENTRY, OPEN, PageTables
from cbit.cpu.paging import Pte
from cbit.hypervisor.host import Host
from cbit.spec.address import MIB, PAGE, Gpa, Spa

_LEAF_TABLE: Final = 2 * MIB  # what one table of leaves maps
_FRAME: Final = 0x000F_FFFF_FFFF_F000


class NestedTables:
    """Four levels of tables with 4 KiB leaves.

    Args:
        host: whose memory holds the tables.
        encrypted: store the tables encrypted with the host's key, and set the C-bit in every pointer to them.
    """

    def __init__(self, host: Host, *, encrypted: bool) -> None:
        core = host.machine.cores[0]
        self._host = host
        self._encrypted = encrypted
        self._rules = core.rules
        self._frames: list[Spa] = []
        root = self._rules.join(self._new_table(), c=encrypted)
        self._tables = PageTables(core.host_tables(), root, rules=core.rules, new_table=self._new_table)

    @property
    def ncr3(self) -> int:
        """The value for VMCB.nCR3."""
        return self._tables.root

    def map(self, gpa: Gpa, frames: range, *, c: bool, writable: bool = True) -> None:
        """Map pages from ``gpa`` on; replaces what was there.

        Raises:
            OutOfMemory: no frame is left for a table; the pages before it are mapped.
        """
        while frames:
            self._tables.map(gpa, frames[0], c=c)  # makes the tables on the way
            count = min(len(frames), (_LEAF_TABLE - gpa % _LEAF_TABLE) // PAGE)
            self._write_leaves(gpa, frames[:count], c=c, writable=writable)
            gpa, frames = Gpa(gpa + count * PAGE), frames[count:]

    def unmap(self, gpa: Gpa, pages: int = 1) -> None:
        """Make pages absent."""
        for page in range(gpa, gpa + pages * PAGE, PAGE):
            self._tables.unmap(page)

    def lookup(self, gpa: Gpa) -> tuple[Spa, bool] | None:
        """Return (frame, C) of a page, or None if it is absent."""
        leaf = self._tables.leaf(gpa)
        if leaf is None:
            return None
        address, c = self._rules.split(leaf.value & _FRAME)
        return Spa(address), c

    def entry_at(self, gpa: Gpa) -> Spa | None:
        """Say where in DRAM the leaf entry of a page lies; None if it is absent."""
        leaf = self._tables.leaf(gpa)
        return None if leaf is None else Spa(leaf.address)

    def frames(self) -> Iterator[Spa]:
        """Name the frames that hold the tables."""
        yield from self._frames

    def free(self) -> None:
        """Give all tables back."""
        for table in self._frames:
            self._host.frames.give_back(range(table, table + PAGE, PAGE))
        self._frames.clear()

    def _write_leaves(self, gpa: Gpa, frames: range, *, c: bool, writable: bool) -> None:
        """Write the entries of neighbours at once: one by one takes ten times as long."""
        first = self.entry_at(gpa)
        assert first is not None
        # Accessed and dirty beforehand: this hypervisor does not ask what a guest has touched.
        flags = self._rules.join(int(OPEN | Pte.A | Pte.D) & ~(0 if writable else Pte.W), c=c)
        entries = b"".join((frame | flags).to_bytes(ENTRY, "little") for frame in frames)
        self._host.write(first, entries, c=self._encrypted)

    def _new_table(self) -> Spa:
        table = self._host.frames.take_page()
        self._frames.append(table)
        if self._encrypted:
            self._host.flush_caches()  # no copy with C=0 may be written back over the encrypted table
        return table
