"""What one address space knows of the hypervisor's nested tables: leaves, and where the last tables are.

Hardware remembers both until it is told to forget (TLB_CONTROL), and so does this: an edit of the tables
without a flush may go unseen.  What is not known is walked by the reference model, which also refuses.

Paper: memory-encryption.md §3, §7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cbit.cpu.control import AddressRules, Controls, Efer
from cbit.cpu.faults import NestedPageFault, PageFaultCode
from cbit.cpu.host_tables import HostTables, HostTranslator
from cbit.cpu.nested import NestedWalker
from cbit.cpu.paging import Access, Kind, Leaf, Pte
from cbit.spec.address import MIB, PAGE, Gpa, Spa

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_ENTRY: Final = 8
_UNIT: Final = 2 * MIB  # what one last table maps


class Known(Protocol):
    """Where the pages of an address space are, as far as that is known."""

    def clear(self) -> None:
        """Forget everything."""
        ...

    def find(self, nested: Any, gpa: int, kind: Kind, *, guest_c: bool, table: bool) -> Leaf:
        """Translate a guest physical address for an access (errors as `Translations.find`)."""
        ...

    def alike(self, nested: Any, gpa: int, count: int) -> range | None:
        """Find the neighbours of a page for which the same holds, as `Translations.alike` says."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedTables:
    """The hypervisor's tables, as one VMRUN has them.

    Attributes:
        walker: the reference model.
        tables: how entries are read and written.
        rules: address bits of entries.
        controls: the control registers that they obey.
    """

    walker: NestedWalker
    tables: HostTables
    rules: AddressRules
    controls: Controls


class BareMemory:
    """What stands in the place of nested tables on the bare machine: every address is a system physical one.

    Attributes:
        walker: how the software's own tables are walked.
    """

    def __init__(self, walker: HostTranslator, size: int, elsewhere: Mapping[Spa, Spa]) -> None:
        """Give software all of DRAM.

        Args:
            walker: the host's translation.
            size: bytes of DRAM.
            elsewhere: pages behind DRAM that can be read, and the frame of DRAM that each shows.
        """
        self.walker: Final = walker
        self._size = size
        self._elsewhere = elsewhere

    def clear(self) -> None:
        """Nothing is remembered."""

    def find(self, _nested: object, gpa: int, kind: Kind, *, guest_c: bool, table: bool) -> Leaf:
        """Let a page be itself.

        Raises:
            NestedPageFault: there is no memory: what a bus would answer with nothing.
        """
        if gpa >= self._size:
            frame = self._elsewhere.get(Spa(gpa & -PAGE))
            if frame is not None and kind is Kind.READ and not table:
                return Leaf(base=frame, size=PAGE, writable=False)
            where = PageFaultCode.TABLE if table else PageFaultCode.FINAL
            code = where | (PageFaultCode.W if kind is Kind.WRITE else PageFaultCode(0))
            raise NestedPageFault(code, self.walker.rules.join(gpa, c=guest_c), "no memory there")
        return Leaf(base=gpa & -PAGE, size=PAGE, dirty=True)

    def alike(self, _nested: object, gpa: int, count: int) -> range | None:
        """All neighbours that are memory."""
        if gpa >= self._size:
            return None
        first = gpa // PAGE // count * count
        return range(max(0, min(count, self._size // PAGE - first)))


@dataclass(frozen=True, slots=True)
class _LastTable:
    """A table of leaves, and what the levels above it allow."""

    address: int
    c: bool
    writable: bool
    user: bool
    no_execute: bool


class Translations:
    """Known leaves by guest physical page.  Mutable."""

    def __init__(self) -> None:
        """Know nothing."""
        self._pages: dict[int, Leaf] = {}
        self._large: dict[int, Leaf] = {}
        self._last_tables: dict[int, _LastTable] = {}
        self.walks = 0

    def clear(self) -> None:
        """Forget everything."""
        self._pages.clear()
        self._large.clear()
        self._last_tables.clear()

    def find(self, nested: NestedTables, gpa: int, kind: Kind, *, guest_c: bool, table: bool) -> Leaf:
        """Translate a guest physical address for an access.

        Args:
            nested: the hypervisor's tables now.
            gpa: the address, C-bit masked.
            kind: read, write or fetch.
            guest_c: the guest's C-bit, which a fault reports.
            table: the access is a walk of the guest's own tables.

        Raises:
            NestedPageFault: the hypervisor's tables refuse.
        """
        known = self._large.get(gpa // _UNIT) or self._pages.get(gpa // PAGE)
        if known is not None and _suffices(known, kind, nested.controls):
            return known
        self.walks += 1
        leaf = self._by_last_table(nested, gpa, kind)
        if leaf is None:
            where = PageFaultCode.TABLE if table else PageFaultCode.FINAL
            leaf = nested.walker.to_system(Gpa(gpa), kind, guest_c=guest_c, where=where)
            self._remember_table(gpa, leaf)
        if leaf.size >= _UNIT:
            self._large[gpa // _UNIT] = leaf
        else:
            self._pages[gpa // PAGE] = leaf
        return leaf

    def alike(self, nested: NestedTables, gpa: int, count: int) -> range | None:
        """Find the neighbours of a page that lie in neighbouring frames, flags alike.

        A and D are among the flags, so what is done for one page may be done for these at once.

        Args:
            nested: the hypervisor's tables now.
            gpa: a page that `find` has just found.
            count: how many entries to look at, aligned.

        Returns:
            Their numbers, counted from the first of ``count`` aligned pages, its own among them; None if
            its entry is not in a known table.
        """
        table = self._last_tables.get(gpa // _UNIT)
        if table is None:
            return None
        mine = gpa // PAGE % count
        first = table.address + (gpa % _UNIT // PAGE - mine) * _ENTRY
        entries = nested.tables.read_entries(first, count, c=table.c)
        origin = entries[mine] - mine * PAGE
        start, stop = mine, mine + 1
        while start and entries[start - 1] == origin + (start - 1) * PAGE:
            start -= 1
        while stop < count and entries[stop] == origin + stop * PAGE:
            stop += 1
        return range(start, stop)

    def _remember_table(self, gpa: int, leaf: Leaf) -> None:
        if leaf.size == PAGE and leaf.steps:
            above, last = leaf.steps[:-1], leaf.steps[-1]
            self._last_tables[gpa // _UNIT] = _LastTable(
                last.address & -PAGE,
                last.c,
                all(step.value & Pte.W for step in above),
                all(step.value & Pte.U for step in above),
                any(step.value & Pte.NX for step in above),
            )

    def _by_last_table(self, nested: NestedTables, gpa: int, kind: Kind) -> Leaf | None:
        """Read the leaf alone; None if the whole walk must be done, to find or to refuse."""
        table = self._last_tables.get(gpa // _UNIT)
        if table is None:
            return None
        at = table.address + gpa % _UNIT // PAGE * _ENTRY
        value = nested.tables.read_entry(at, size=_ENTRY, c=table.c)
        forbidden = nested.rules.reserved | (0 if nested.controls.efer & Efer.NXE else _NX)
        if not value & 1 or value & forbidden:
            return None
        write = kind is Kind.WRITE
        used = value | _A | (_D if write else 0)
        base, c = nested.rules.split(value & _ADDRESS)
        leaf = Leaf(
            base=base,
            size=PAGE,
            c=c,
            writable=table.writable and bool(value & _W),
            user=table.user and bool(value & _U),
            no_execute=table.no_execute or bool(value & _NX),
            dirty=bool(used & _D),
        )
        if not _suffices(leaf, kind, nested.controls):
            return None
        if used != value:
            nested.tables.write_entry(at, used, size=_ENTRY, c=table.c)
        return leaf


def _suffices(leaf: Leaf, kind: Kind, controls: Controls) -> bool:
    """Whether an access needs no further walk; every nested access is a user access."""
    if kind is Kind.WRITE and not leaf.dirty:
        return False
    return not leaf.refuses(_ACCESS[kind], controls)


# Plain numbers: these are looked at once a fill, and flags of an enumeration cost more than the fill.
_W, _U, _A, _D, _NX = (int(bit) for bit in (Pte.W, Pte.U, Pte.A, Pte.D, Pte.NX))
_ACCESS: Final = {kind: Access(kind, user=True) for kind in Kind}
