"""One walk through one set of page tables, in every paging mode, with a C-bit at every step.

      63 62 … 52 | 51 … 12, one of them the C-bit | 11 9 | 8 7 6 5 4 3 2 1 0
      NX  ignored  address of table or page         AVL    G PS D A . . U W P

CR3 says where the top table is and whether *it* is encrypted, each entry says so for the table or page
that it points to, and every step is independent.  The host's tables, a guest's and the nested ones are
walked by the same function; they differ in how an entry is fetched (`Tables`) and in which address bits
exist (`AddressRules`).

Paper: memory-encryption.md §3; entry formats are the AMD64 architecture's own.
Not modelled: 5-level paging, protection keys, memory types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from types import MappingProxyType
from typing import Final, Protocol

from cbit.cpu.control import AddressRules, Controls, Cr0, Cr4, Efer, PagingMode
from cbit.cpu.encryption_rules import Use
from cbit.cpu.faults import GeneralProtection, PageFault, PageFaultCode

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000  # the address field of a 64-bit entry


class Pte(IntFlag):
    """Bits of a page-table entry."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7  # in an entry above the last level: it maps a page itself
    PAT = 1 << 7  # in an entry of the last level
    G = 1 << 8
    NX = 1 << 63


class Kind(Enum):
    """Read, write or fetch."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"

    @property
    def use(self) -> Use:
        """What the access is for, in the words of the encryption rules."""
        return Use.FETCH if self is Kind.FETCH else Use.DATA


@dataclass(frozen=True, slots=True)
class Access:
    """What somebody wants to do at an address."""

    kind: Kind
    user: bool = False


class Tables(Protocol):
    """How the entries of one set of tables are reached: which memory, which key."""

    def read_entry(self, address: int, *, size: int, c: bool) -> int:
        """Read the entry at ``address`` in a table that its parent marked with ``c``."""
        ...

    def write_entry(self, address: int, value: int, *, size: int, c: bool) -> None:
        """Write it back the way it was read."""
        ...


class Maps(Enum):
    """Whether an entry of a level maps a page."""

    NEVER = "always points to a table"
    IF_PS = "a page if PS is set"
    ALWAYS = "always a page"


def _bits(low: int, high: int) -> int:
    return (1 << (high + 1)) - (1 << low)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of one paging mode.

    Attributes:
        name: the architecture's name of the entry.
        shift: lowest linear-address bit that indexes it; also the size of a page mapped here, as a power
            of two.
        maps: whether it maps pages.
        zero_in_table: bits that must be zero in an entry that points to a table.
        zero_in_page: bits that must be zero in an entry that maps a page.
        index_bits: how many linear-address bits index it.
        narrows: whether the entry has W, U and A bits at all.
    """

    name: str
    shift: int
    maps: Maps
    zero_in_table: int = 0
    zero_in_page: int = 0
    index_bits: int = 9
    narrows: bool = True

    def index(self, linear: int) -> int:
        """Which entry of the table translates ``linear``."""
        return (linear >> self.shift) & ((1 << self.index_bits) - 1)


_PAE_HIGH: Final = _bits(52, 62)  # legacy PAE has no available bits up there
_PDPTE_ZERO: Final = _bits(1, 2) | _bits(5, 8) | _bits(52, 63)  # no W, U, A, D, PS, G, NX

# fmt: off
LEVELS: Final[Mapping[PagingMode, tuple[Level, ...]]] = MappingProxyType({
    PagingMode.OFF: (),
    PagingMode.LEGACY: (
        Level("PDE", 22, Maps.IF_PS, zero_in_page=1 << 21, index_bits=10),  # 20..13 are address bits 39..32
        Level("PTE", 12, Maps.ALWAYS, index_bits=10),
    ),
    PagingMode.PAE: (
        # MODEL CHOICE: read during the walk, as nested paging does for guests; a host with a reserved bit
        # here gets the page fault on use and not a #GP when it loads CR3.
        Level("PDPTE", 30, Maps.NEVER, _PDPTE_ZERO, index_bits=2, narrows=False),
        Level("PDE", 21, Maps.IF_PS, _PAE_HIGH, _PAE_HIGH | _bits(13, 20)),
        Level("PTE", 12, Maps.ALWAYS, zero_in_page=_PAE_HIGH),
    ),
    PagingMode.LONG: (
        Level("PML4E", 39, Maps.NEVER, _bits(7, 8)),
        Level("PDPTE", 30, Maps.IF_PS, 1 << 8, _bits(13, 29)),
        Level("PDE", 21, Maps.IF_PS, 0, _bits(13, 20)),
        Level("PTE", 12, Maps.ALWAYS),
    ),
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk used: where it is, what it held, and whether its table was read with C=1."""

    level: Level
    address: int
    value: int
    c: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """Where a walk ended.

    Attributes:
        base: physical address of the page, C-bit stripped.
        size: bytes of the page: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
        c: C-bit of the entry that maps it.
        writable: W of every level.
        user: U of every level.
        no_execute: NX of any level.
        dirty: the leaf's D bit is set, so that a write through this translation need not walk again.
        global_page: survives MOV CR3.
        steps: the entries used, top first.
    """

    base: int
    size: int
    c: bool = False
    writable: bool = True
    user: bool = True
    no_execute: bool = False
    dirty: bool = True
    global_page: bool = False
    steps: tuple[Step, ...] = ()

    def at(self, linear: int) -> int:
        """Physical address of ``linear``, which lies in this page."""
        return self.base | (linear & (self.size - 1))

    def refuses(self, access: Access, controls: Controls) -> str | None:
        """Say why the page's permissions forbid the access, or None."""
        fetch, write = access.kind is Kind.FETCH, access.kind is Kind.WRITE
        if access.user and not self.user:
            return "user access to a supervisor page"
        if write and not self.writable and (access.user or controls.cr0 & Cr0.WP):
            return "the page is read-only"
        if fetch and self.no_execute and controls.efer & Efer.NXE:
            return "the page is not executable"
        if self.user and not access.user:
            if fetch and controls.cr4 & Cr4.SMEP:
                return "SMEP: supervisor fetch from a user page"
            if not fetch and controls.cr4 & Cr4.SMAP and not controls.ac:
                return "SMAP: supervisor access to a user page"
        return None


# Plain numbers: a walk looks at them dozens of times, and flags of an enumeration cost more than all else.
_P, _W, _U, _A, _D, _PS, _G, _NX = (
    int(bit) for bit in (Pte.P, Pte.W, Pte.U, Pte.A, Pte.D, Pte.PS, Pte.G, Pte.NX)
)
_PSE, _PGE, _NXE = int(Cr4.PSE), int(Cr4.PGE), int(Efer.NXE)


class _Walk:
    """The state of one walk, so that its faults know what was asked."""

    def __init__(self, linear: int, access: Access, controls: Controls) -> None:
        self.linear = linear
        self.access = access
        self.controls = controls
        self.mode = controls.mode

    def fault(self, code: PageFaultCode, why: str) -> PageFault:
        kind, cr4 = self.access.kind, self.controls.cr4
        code |= PageFaultCode.W if kind is Kind.WRITE else PageFaultCode(0)
        code |= PageFaultCode.U if self.access.user else PageFaultCode(0)
        # The fetch bit exists only where fetches can be forbidden.
        no_execute = self.mode.has_c_bit and self.controls.efer & Efer.NXE
        if kind is Kind.FETCH and (no_execute or cr4 & Cr4.SMEP):
            code |= PageFaultCode.ID
        return PageFault(code, self.linear, why)

    def maps_a_page(self, level: Level, value: int) -> bool:
        large = self.mode is not PagingMode.LEGACY or self.controls.cr4 & _PSE
        return level.maps is Maps.ALWAYS or bool(level.maps is Maps.IF_PS and value & _PS and large)

    def reserved_bits(self, level: Level, value: int, rules: AddressRules) -> int:
        reserved = level.zero_in_page if self.maps_a_page(level, value) else level.zero_in_table
        if self.mode.has_c_bit:
            reserved |= rules.reserved
            reserved |= 0 if self.controls.efer & _NXE else _NX
        return value & reserved

    def target(self, level: Level, value: int, rules: AddressRules) -> tuple[int, bool]:
        """Where an entry points, and the C-bit it puts on that."""
        if self.mode is not PagingMode.LEGACY:
            address, c = rules.split(value & _ADDRESS)
            return (address & -(1 << level.shift) if self.maps_a_page(level, value) else address), c
        if level.shift == 22 and self.maps_a_page(level, value):  # 4 MiB: bits 20..13 are address bits 39..32
            return (value & 0xFFC0_0000) | ((value >> 13) & 0xFF) << 32, False
        return value & 0xFFFF_F000, False


def walk(linear: int, access: Access, *, controls: Controls, rules: AddressRules, tables: Tables) -> Leaf:
    """Translate a linear address, check the access, and mark the entries accessed and dirty.

    Args:
        linear: the address.
        access: what is asked for.
        controls: control registers in force.
        rules: which physical address bits exist, and which one is the C-bit.
        tables: how entries are read and written back.

    Returns:
        The page, also for paging off (identity, everything allowed).

    Raises:
        PageFault: an entry is absent, has a reserved bit set, or forbids the access.
        GeneralProtection: a non-canonical address.
        NotModelled: a paging feature that this walker does not know.
        ValueError: an address wider than 32 bits outside long mode.

    Paper: memory-encryption.md §3 rules 2, 3 and 5.
    """
    this = _Walk(linear, access, controls)
    _check_linear(linear, this.mode)
    if this.mode is PagingMode.OFF:
        return Leaf(base=linear & -4096, size=4096)
    size = 4 if this.mode is PagingMode.LEGACY else 8
    address, c = controls.root(rules)
    steps: list[Step] = []
    for level in LEVELS[this.mode]:
        where = address + level.index(linear) * size
        value = tables.read_entry(where, size=size, c=c)
        if not value & _P:
            raise this.fault(PageFaultCode(0), f"{level.name} at {where:#x} is not present")
        if wrong := this.reserved_bits(level, value, rules):
            code = PageFaultCode.P | PageFaultCode.RSVD
            raise this.fault(code, f"{level.name} {value:#x} has reserved bits {wrong:#x} set")
        steps.append(Step(level, where, value, c))
        address, c = this.target(level, value, rules)
        if this.maps_a_page(level, value):
            break
    leaf = _leaf(steps, address, c=c, this=this)
    if why := leaf.refuses(access, controls):
        raise this.fault(PageFaultCode.P, why)
    _mark_used(steps, tables, size=size, write=access.kind is Kind.WRITE)
    return leaf


def _check_linear(linear: int, mode: PagingMode) -> None:
    if mode is PagingMode.LONG:
        if not 0 <= linear < 1 << 64:
            raise ValueError(f"linear address {linear:#x} has more than 64 bits")
        if linear >> 47 not in (0, 0x1_FFFF):
            raise GeneralProtection(f"non-canonical address {linear:#x}")
    elif not 0 <= linear < 1 << 32:
        raise ValueError(f"linear address {linear:#x} has more than 32 bits outside long mode")


def _leaf(steps: list[Step], base: int, *, c: bool, this: _Walk) -> Leaf:
    last = steps[-1]
    narrowing = [step.value for step in steps if step.level.narrows]
    return Leaf(
        base=base,
        size=1 << last.level.shift,
        c=c,
        writable=all(value & _W for value in narrowing),
        user=all(value & _U for value in narrowing),
        no_execute=any(value & _NX for value in narrowing),
        dirty=bool(last.value & _D) or this.access.kind is Kind.WRITE,
        global_page=bool(last.value & _G and this.controls.cr4 & _PGE),
        steps=tuple(steps),
    )


def _mark_used(steps: list[Step], tables: Tables, *, size: int, write: bool) -> None:
    """Set A in every entry used and D in the leaf of a write, through the key the entry was read with."""
    for step in steps:
        if not step.level.narrows:
            continue
        used = step.value | _A | (_D if write and step is steps[-1] else 0)
        if used != step.value:
            tables.write_entry(step.address, used, size=size, c=step.c)
