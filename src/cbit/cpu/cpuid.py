"""What the processor says about its memory encryption, as data.

A machine profile supplies the numbers (`EncryptionFeatures`); `cpuid` puts them where software looks for
them.

Paper: memory-encryption.md §2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final, NamedTuple

from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST

ADDRESS_SIZES: Final = 0x8000_0008
SVM: Final = 0x8000_000A
ENCRYPTION: Final = 0x8000_001F


class Encryption(IntFlag):
    """CPUID Fn8000_001F EAX: what there is.

    The older public tables list bits 20-23, 26, 27, 30 and 31 as reserved.
    """

    SME = 1 << 0
    SEV = 1 << 1
    PAGE_FLUSH_MSR = 1 << 2
    SEV_ES = 1 << 3
    SEV_SNP = 1 << 4
    VMPL = 1 << 5
    RMPQUERY = 1 << 6
    VMPL_SSS = 1 << 7
    SECURE_TSC = 1 << 8
    TSC_AUX_VIRTUALIZATION = 1 << 9
    HW_ENF_CACHE_COH = 1 << 10
    HOST_64_BIT = 1 << 11  # "64BitHost"
    RESTRICTED_INJECTION = 1 << 12
    ALTERNATE_INJECTION = 1 << 13
    DEBUG_VIRT = 1 << 14
    PREVENT_HOST_IBS = 1 << 15
    VTE = 1 << 16
    VMGEXIT_PARAMETER = 1 << 17
    VIRTUAL_TOM_MSR = 1 << 18
    IBS_VIRT_GUEST_CTL = 1 << 19
    PMC_VIRT_GUEST_CTL = 1 << 20
    RMPREAD = 1 << 21
    GUEST_INTERCEPT_CONTROL = 1 << 22
    SEGMENTED_RMP = 1 << 23
    VMSA_REG_PROT = 1 << 24
    SMT_PROTECTION = 1 << 25
    SECURE_AVIC = 1 << 26
    ALLOWED_SEV_FEATURES = 1 << 27
    SVSM_COMM_PAGE_MSR = 1 << 28
    NESTED_VIRT_SNP_MSR = 1 << 29
    HV_IN_USE_WR_ALLOWED = 1 << 30
    IBPB_ON_ENTRY = 1 << 31


#: What this model implements; HW_ENF_CACHE_COH is added by `EncryptionFeatures.coherent`.
MODELLED: Final = (
    Encryption.SME | Encryption.SEV | Encryption.PAGE_FLUSH_MSR | Encryption.HOST_64_BIT | Encryption.VTE
)


class Registers(NamedTuple):
    """The four registers that CPUID fills."""

    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionFeatures:
    """One part's numbers.

    Attributes:
        c_bit: page-table bit that says "encrypt".
        address_reduction: physical address bits lost while encryption is enabled.
        guests: highest ASID that a SEV guest can use.
        min_sev_no_es_asid: lowest ASID for a guest with SEV and without SEV-ES.
        coherent: hardware keeps copies of different keys coherent (EAX bit 10).
        supports: the other bits of EAX.
        physical_bits: physical address width before the reduction.  MODEL CHOICE: 48 where a profile is
            silent.
        asids: number of ASIDs for guests of any kind.  MODEL CHOICE: 32768 where a profile is silent.
        vmpls: number of VM permission levels.

    Raises:
        ValueError: numbers that no processor could have, with the reason.
    """

    c_bit: int
    address_reduction: int
    guests: int
    min_sev_no_es_asid: int
    coherent: bool = False
    supports: Encryption = MODELLED
    physical_bits: int = 48
    asids: int = 32768
    vmpls: int = 0

    def __post_init__(self) -> None:
        for wrong, why in (
            (not 32 <= self.physical_bits <= 52, f"{self.physical_bits} physical address bits: 32 … 52"),
            (self.address_reduction < 0, f"address reduction {self.address_reduction} is negative"),
            (self.reduced_bits < 32, f"only {self.reduced_bits} address bits are left"),
            (
                not self.reduced_bits <= self.c_bit <= 51,
                f"C-bit {self.c_bit} is not above the address, or not in it",
            ),
            (not 0 < self.guests < HOST, f"{self.guests} encrypted guests: key ids 1 … {HOST - 1}"),
            (
                not 1 <= self.min_sev_no_es_asid <= self.guests + 1,
                "the first SEV-only ASID is outside the guests' range",
            ),
            (self.guests >= self.asids, "more encrypted guests than ASIDs"),
            (Encryption.HW_ENF_CACHE_COH in self.supports, "say coherent=True instead of HW_ENF_CACHE_COH"),
        ):
            if wrong:
                raise ValueError(why)

    @property
    def reduced_bits(self) -> int:
        """Physical address width while encryption is enabled (software subtracts, CPUID does not)."""
        return self.physical_bits - self.address_reduction

    @property
    def eax(self) -> Encryption:
        """All bits of EAX."""
        return self.supports | (Encryption.HW_ENF_CACHE_COH if self.coherent else Encryption(0))


#: Fn8000_000A EDX: nested paging, VMCB clean bits, flush by ASID.
_SVM_FEATURES: Final = 1 << 0 | 1 << 5 | 1 << 6
_LINEAR_BITS: Final = 48  # four levels of tables


def cpuid(features: EncryptionFeatures, leaf: int) -> Registers:
    """Execute CPUID for the leaves that memory encryption needs.

    Raises:
        NotModelled: any other leaf.

    Paper: memory-encryption.md §2.1, §3 rule 4.
    """
    if leaf == ENCRYPTION:
        ebx = features.c_bit | features.address_reduction << 6 | features.vmpls << 12
        return Registers(int(features.eax), ebx, features.guests, features.min_sev_no_es_asid)
    if leaf == ADDRESS_SIZES:
        # The full width: the hardware does not subtract what encryption takes, software does (§3 rule 4).
        return Registers(features.physical_bits | _LINEAR_BITS << 8, 0, 0, 0)
    if leaf == SVM:
        return Registers(1, features.asids, 0, _SVM_FEATURES)
    raise NotModelled(
        f"CPUID leaf {leaf:#x}: only {ADDRESS_SIZES:#x}, {SVM:#x} and {ENCRYPTION:#x} are modelled"
    )
