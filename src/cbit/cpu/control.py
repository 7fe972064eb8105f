"""Control registers: which paging mode they select, and when they are illegal.

Paper: memory-encryption.md §4.1 (modes with and without a C-bit); the bits are the AMD64 architecture's own.
Not modelled: 5-level paging, protection keys, shadow stacks, PCID (each raises ``NotModelled``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, IntFlag
from functools import lru_cache
from typing import Final

from cbit.cpu.faults import GeneralProtection
from cbit.spec.address import strip_c_bit
from cbit.spec.errors import NotModelled


class Cr0(IntFlag):
    """Bits of CR0 that paging obeys."""

    PE = 1 << 0
    WP = 1 << 16
    PG = 1 << 31


class Cr4(IntFlag):
    """Bits of CR4 that paging obeys."""

    PSE = 1 << 4
    PAE = 1 << 5
    PGE = 1 << 7
    LA57 = 1 << 12
    PCIDE = 1 << 17
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24


class Efer(IntFlag):
    """Bits of EFER."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11
    SVME = 1 << 12
    LMSLE = 1 << 13
    FFXSR = 1 << 14
    TCE = 1 << 15


def with_bit(register: int, bit: int, *, on: bool) -> int:
    """Return a register's value with one bit set or cleared.

    The complement of a flag knows only the flags that have names, so it must not be used as a mask.
    """
    number = int(bit)
    return int(register) | number if on else int(register) & ~number


class PagingMode(Enum):
    """How a linear address becomes a physical one."""

    OFF = "paging off"
    LEGACY = "32-bit paging without PAE"
    PAE = "32-bit paging with PAE"
    LONG = "4-level long mode"

    @property
    def has_c_bit(self) -> bool:
        """Whether entries are wide enough to carry a C-bit."""
        return self in (PagingMode.PAE, PagingMode.LONG)


_CR4_RESERVED: Final = ~0x01F7_1FFF
#: A walk under these would be wrong, not just slower.
_UNMODELLED_WALKS: Final = (Cr4.LA57, Cr4.PKE, Cr4.CET, Cr4.PKS)
_FLUSHING_CR4: Final = Cr4.PSE | Cr4.PAE | Cr4.PGE | Cr4.SMEP


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What the physical-address bits of an entry mean on this core, now.

    Attributes:
        width: number of physical address bits; the bits from there to 51 are reserved.
        c_bit: the C-bit's position, or None when there is none.  It is never reserved, even inside the
            lost bits.

    Paper: memory-encryption.md §3 rules 1, 3, 5 and 6.
    """

    width: int
    c_bit: int | None

    @property
    def reserved(self) -> int:
        """Mask of the address bits that an entry must not set."""
        lost = (1 << 52) - (1 << self.width)
        return lost if self.c_bit is None else lost & ~(1 << self.c_bit)

    def split(self, address: int) -> tuple[int, bool]:
        """Split an address as software writes it into (address, C)."""
        return (address, False) if self.c_bit is None else strip_c_bit(address, self.c_bit)

    def join(self, address: int, *, c: bool) -> int:
        """Put the C-bit back where software sees it."""
        return address | (1 << self.c_bit) if c and self.c_bit is not None else address


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The control state that a walk obeys.

    Attributes:
        cr0: CR0.
        cr3: CR3 as software wrote it, C-bit included.
        cr4: CR4.
        efer: EFER.
        ac: RFLAGS.AC, which suspends SMAP.
    """

    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    ac: bool = False

    @property
    def mode(self) -> PagingMode:
        """The paging mode.

        Raises:
            NotModelled: five levels, protection keys or shadow stacks are switched on.
        """
        return _mode(self.cr0, self.cr4, self.efer)

    def root(self, rules: AddressRules) -> tuple[int, bool]:
        """Address of the top table, and the C-bit that protects it.

        Paper: memory-encryption.md §3 rule 2, §4.1 (legacy PAE: no room for a C-bit in CR3).
        """
        if self.mode is PagingMode.LONG:
            return rules.split(self.cr3 & 0x000F_FFFF_FFFF_F000)
        return self.cr3 & (0xFFFF_FFE0 if self.mode is PagingMode.PAE else 0xFFFF_F000), False

    def illegal(self, rules: AddressRules) -> str | None:
        """Say why the processor would not accept this combination, or None."""
        paging = bool(self.cr0 & Cr0.PG)
        for wrong, why in (
            (self.cr0 >> 32, "CR0 has bits above 31"),
            (self.cr4 & _CR4_RESERVED, "CR4 has reserved bits"),
            (paging and not self.cr0 & Cr0.PE, "paging without protected mode"),
            (paging and self.efer & Efer.LME and not self.cr4 & Cr4.PAE, "long mode without PAE"),
        ):
            if wrong:
                return why
        if paging and self.mode is PagingMode.LONG and self.cr3 & (rules.reserved | ~((1 << 52) - 1)):
            return f"CR3 {self.cr3:#x} has reserved address bits set"
        return None

    def moved(self, rules: AddressRules, **changes: int) -> Controls:
        """Return the state after a MOV to a control register.

        Raises:
            GeneralProtection: the combination is illegal.
            NotModelled: CR4.PCIDE, which the TLB model does not know.
            ValueError: an operand wider than the mode's registers.
        """
        new = dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # cr0, cr3 and cr4 are integers
        if new.cr4 & Cr4.PCIDE:
            raise NotModelled("CR4.PCIDE: TLB entries are not tagged with a PCID")
        why = new.illegal(rules)
        if why:
            raise GeneralProtection(why)
        if "cr3" in changes and new.mode is not PagingMode.LONG and new.cr3 >> 32:
            raise ValueError(f"CR3 {new.cr3:#x}: registers have 32 bits outside long mode")
        # LMA is the processor's answer, not software's wish.
        active = new.mode is PagingMode.LONG
        return dataclasses.replace(new, efer=with_bit(new.efer, Efer.LMA, on=active))

    def flushes_everything(self, new: Controls) -> bool:
        """Whether going to ``new`` changes how translation works, so that not even global entries stay."""
        return bool((self.cr0 ^ new.cr0) & Cr0.PG or (self.cr4 ^ new.cr4) & _FLUSHING_CR4)


@lru_cache(maxsize=64)
def _mode(cr0: int, cr4: int, efer: int) -> PagingMode:
    """Say which paging mode these registers make; asked at every access, of a handful of values."""
    if not cr0 & Cr0.PG:
        return PagingMode.OFF
    for bit in _UNMODELLED_WALKS:
        if cr4 & bit:
            raise NotModelled(f"paging with CR4.{bit.name}")
    if not cr4 & Cr4.PAE:
        return PagingMode.LEGACY
    return PagingMode.LONG if efer & Efer.LME else PagingMode.PAE


#: Control state of software in long mode with everything permitted that its pages permit.
LONG_MODE: Final = Controls(
    cr0=Cr0.PE | Cr0.PG | Cr0.WP, cr4=int(Cr4.PAE), efer=Efer.LME | Efer.LMA | Efer.NXE
)
