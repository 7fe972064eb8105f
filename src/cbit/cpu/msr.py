"""Model-specific registers as data, and what RDMSR and WRMSR do to them.

A register's bits fall into three kinds, and the table says which: *modelled* (the core obeys them), *kept*
(stored and read back without effect here; a change is traced) and the rest, which is either reserved (#GP)
or real but not modelled (`NotModelled`).

Paper: memory-encryption.md §2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from types import MappingProxyType
from typing import Final

from cbit.cpu.control import Efer
from cbit.cpu.cpuid import Encryption, EncryptionFeatures
from cbit.cpu.faults import GeneralProtection
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.spec.errors import NotModelled
from cbit.trace import SILENT, Trace

_ALL: Final = (1 << 64) - 1


class Msr(IntEnum):
    """Register numbers."""

    PAT = 0x0000_0277
    EFER = 0xC000_0080
    SYSCFG = 0xC001_0010
    HWCR = 0xC001_0015
    VM_HSAVE_PA = 0xC001_0117
    VMPAGE_FLUSH = 0xC001_011E
    GHCB = 0xC001_0130
    SEV_STATUS = 0xC001_0131


class Syscfg(IntFlag):
    """SYSCFG bits of memory encryption."""

    MEM_ENCRYPTION_MOD_EN = 1 << 23
    SECURE_NESTED_PAGING_EN = 1 << 24
    VMPL_EN = 1 << 25


class Hwcr(IntFlag):
    """HWCR bits that the model obeys."""

    SMM_LOCK = 1 << 0
    INVD_TO_WBINVD = 1 << 4


class SevStatus(IntFlag):
    """SEV_STATUS: what the last VMRUN enabled, as the guest reads it."""

    SEV = 1 << 0
    SEV_ES = 1 << 1
    SNP = 1 << 2
    VTOM = 1 << 3
    REFLECT_VC = 1 << 4
    RESTRICTED_INJECTION = 1 << 5
    ALTERNATE_INJECTION = 1 << 6
    DEBUG_VIRT = 1 << 7
    PREVENT_HOST_IBS = 1 << 8
    BTB_ISOLATION = 1 << 9
    VMPL_SSS = 1 << 10
    SECURE_TSC = 1 << 11
    VMGEXIT_PARAMETER = 1 << 12
    PMC_VIRT = 1 << 13
    IBS_VIRT = 1 << 14
    GUEST_INTERCEPT_CTL = 1 << 15
    VMSA_REG_PROT = 1 << 16
    SMT_PROTECTION = 1 << 17
    SECURE_AVIC = 1 << 18
    IBPB_ON_ENTRY = 1 << 23


class Host(Enum):
    """What the host may do with a register."""

    READS_AND_WRITES = "read and write"
    WRITES = "write only"
    READS = "read only"
    NOTHING = "guest only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One register.

    Attributes:
        host: the host's access.
        modelled: bits that the core obeys.
        kept: bits that are stored and have no effect in this model.
        unmodelled: bits that exist and whose effect is missing here; setting one raises `NotModelled`.
        reset: value after reset.
        locks: bits that stay 1 once set, until reset.
        needs: the CPUID feature without which the register does not exist.
    """

    host: Host = Host.READS_AND_WRITES
    modelled: int = _ALL
    kept: int = 0
    unmodelled: int = 0
    reset: int = 0
    locks: int = 0
    needs: Encryption | None = None

    @property
    def reserved(self) -> int:
        """Bits that must be written as zero."""
        return _ALL & ~(int(self.modelled) | int(self.kept) | int(self.unmodelled))


_SNP_SWITCHES: Final = Syscfg.SECURE_NESTED_PAGING_EN | Syscfg.VMPL_EN
_HWCR: Final = Hwcr.SMM_LOCK | Hwcr.INVD_TO_WBINVD

REGISTERS: Final[Mapping[Msr, Register]] = MappingProxyType(
    {
        Msr.PAT: Register(modelled=0, kept=_ALL, reset=0x0007_0406_0007_0406),  # memory types: no effect here
        Msr.EFER: Register(
            modelled=Efer.LME | Efer.LMA | Efer.NXE | Efer.SVME,
            kept=Efer.SCE | Efer.FFXSR,
            unmodelled=Efer.LMSLE | Efer.TCE | 0b1_1011 << 17,  # MCOMMIT, INTWB, UAIE, automatic IBRS
        ),
        Msr.SYSCFG: Register(
            modelled=Syscfg.MEM_ENCRYPTION_MOD_EN,
            unmodelled=int(_SNP_SWITCHES),
            kept=_ALL & ~int(Syscfg.MEM_ENCRYPTION_MOD_EN | _SNP_SWITCHES),  # switches of the MTRRs
        ),
        # MODEL CHOICE: out of reset INVD is harmless; SmmLock opens at reset only, or it were no lock.
        Msr.HWCR: Register(
            modelled=_HWCR, kept=_ALL & ~int(_HWCR), reset=Hwcr.INVD_TO_WBINVD, locks=Hwcr.SMM_LOCK
        ),
        Msr.VM_HSAVE_PA: Register(modelled=_ALL & ~0xFFF),  # may carry the C-bit
        Msr.VMPAGE_FLUSH: Register(host=Host.WRITES, needs=Encryption.PAGE_FLUSH_MSR),
        Msr.GHCB: Register(host=Host.NOTHING, needs=Encryption.SEV_ES),
        # MODEL CHOICE: the host reads what no VMRUN has enabled for it: 0.
        Msr.SEV_STATUS: Register(host=Host.READS, needs=Encryption.SEV),
    }
)


class MsrFile:
    """The registers of one core, as the host accesses them.  Mutable."""

    def __init__(
        self, features: EncryptionFeatures, trace: Trace = SILENT, *, mitigations: Mitigations = NONE
    ) -> None:
        """Put every register into its reset state."""
        self._features = features
        self._stays = {Msr.HWCR: int(Hwcr.INVD_TO_WBINVD)} if mitigations.invd_stays_converted else {}
        self._trace = trace
        self._values = {number: int(register.reset) for number, register in REGISTERS.items()}

    def snapshot(self) -> dict[Msr, int]:
        """Copy of all values."""
        return dict(self._values)

    def __getitem__(self, number: Msr) -> int:
        """Value as the core's own logic sees it, without access checks."""
        return self._values[number]

    def rdmsr(self, number: int) -> int:
        """Execute RDMSR.

        Raises:
            GeneralProtection: no such register, or not readable by the host.
        """
        msr, register = self._find(number)
        if register.host not in (Host.READS_AND_WRITES, Host.READS):
            raise GeneralProtection(f"RDMSR {msr.name}: {register.host.value}")
        return self._values[msr]

    def wrmsr(self, number: int, value: int) -> int:
        """Execute WRMSR; return the value before.

        Raises:
            GeneralProtection: no such register, not writable by the host, or a reserved bit set.
            NotModelled: a bit whose effect is missing in this model.
        """
        msr, register = self._find(number)
        if register.host not in (Host.READS_AND_WRITES, Host.WRITES):
            raise GeneralProtection(f"WRMSR {msr.name}: {register.host.value}")
        if not 0 <= value <= _ALL:
            raise ValueError(f"WRMSR {msr.name}: {value:#x} is not a 64-bit value")
        if wrong := value & register.reserved:
            raise GeneralProtection(f"WRMSR {msr.name}: reserved bits {wrong:#x}")
        if missing := value & register.unmodelled:
            raise NotModelled(f"WRMSR {msr.name}: bits {missing:#x} ({_names(msr, missing)})")
        old = self._values[msr]
        if changed := (value ^ old) & register.kept:
            self._trace.emit("cpu.msr", f"{msr.name}: bits without effect in this model", changed=changed)
        if register.host is Host.READS_AND_WRITES:
            self._values[msr] = value | (old & (register.locks | self._stays.get(msr, 0)))
        return old

    def _find(self, number: int) -> tuple[Msr, Register]:
        try:
            msr = Msr(number)
        except ValueError:
            raise GeneralProtection(f"no MSR {number:#x} on this core") from None
        register = REGISTERS[msr]
        if register.needs is not None and register.needs not in self._features.eax:
            raise GeneralProtection(f"no MSR {msr.name}: CPUID does not report {register.needs.name}")
        return msr, register


def _names(msr: Msr, bits: int) -> str:
    flags: type[IntFlag] | None = {Msr.SYSCFG: Syscfg, Msr.EFER: Efer}.get(msr)
    known = [flag.name or "" for flag in flags if flag & bits] if flags else []
    return ", ".join(known) or "unnamed"
