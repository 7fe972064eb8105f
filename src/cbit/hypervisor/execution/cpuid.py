"""What CPUID says to a guest: what the executing core can do, without what this hypervisor does not offer.

A hypervisor intercepts CPUID and answers from a table; the guest must believe it.  That is why a hypervisor
can lie about the C-bit's position, and why a guest that believes it leaks (attacks.md).

Paper: memory-encryption.md §2.1 (leaf 8000_001F); the other leaves are the AMD64 architecture's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cbit.cpu.core import Core
from cbit.cpu.cpuid import Registers

HYPERVISOR: Final = 0x4000_0000
ENCRYPTION: Final = 0x8000_001F
_MAX_EXTENDED: Final = 0x8000_0000
_SIGNATURE: Final = (
    b"cbitcbitcbit"  # of leaf 4000_0000: nobody else's, so a guest expects no paravirtual interface
)
_SME, _SEV, _COHERENT = 1 << 0, 1 << 1, 1 << 10


@dataclass(frozen=True, slots=True)
class Mask:
    """Bits that are taken out of a leaf, and put in."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    set_ecx: int = 0


# There is one virtual CPU with an 8259 and no local APIC; no machine checks, no performance counters, no
# nested guests; nothing whose MSRs this hypervisor would have to keep.
_ONE_CPU: Final = 0xFFFF_0000
_MASKS: Final[Mapping[int, Mask]] = MappingProxyType(
    {
        0x1: Mask(
            ebx=_ONE_CPU,
            ecx=1 << 3 | 1 << 15 | 1 << 21 | 1 << 24,  # MONITOR, PDCM, x2APIC, TSC deadline
            edx=1 << 7 | 1 << 9 | 1 << 14 | 1 << 28,  # MCE, APIC, MCA, HTT
        ),
        0x6: Mask(eax=~0, ebx=~0, ecx=~0, edx=~0),  # power management
        0x7: Mask(edx=~0),  # speculation control
        0xA: Mask(eax=~0, ebx=~0, ecx=~0, edx=~0),  # performance counters
        0x8000_0001: Mask(
            ecx=1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 29,
            edx=1 << 7 | 1 << 9 | 1 << 14,
        ),
        0x8000_0007: Mask(eax=~0, ebx=~0, ecx=~0, edx=~(1 << 8)),  # the time-stamp counter is invariant
        0x8000_0008: Mask(ebx=~0, ecx=~0),
        0x8000_000A: Mask(eax=~0, ebx=~0, ecx=~0, edx=~0),
        0x8000_001E: Mask(eax=~0, ebx=~0, ecx=~0, edx=~0),
    }
)
_INVARIANT_TSC: Final = 1 << 8
_UNDER_A_HYPERVISOR: Final = 1 << 31  # leaf 1 ECX
_ALL: Final = 0xFFFF_FFFF


class GuestCpuid:
    """CPUID as one guest sees it.

    Args:
        core: the core that it executes on.
        sev: whether the guest is told of SEV.
        host: whether it is no guest at all, but software on the bare machine: it is told of SME.
        c_bit: the C-bit's position that it is told; a hypervisor that lies names another.
    """

    def __init__(self, core: Core, *, sev: bool, host: bool = False, c_bit: int | None = None) -> None:
        self._core = core
        self._encrypts = sev or (host and core.encryption_on)
        self._host = host
        features = core.guest_features
        # Without the coherent bit a guest flushes every line of a page that it shares or takes back.
        self._encryption: Final = Registers(
            (_SEV if sev else _SME) | (_COHERENT if features.coherent else 0),
            (features.c_bit if c_bit is None else c_bit) | features.address_reduction << 6,
            features.guests,
            features.min_sev_no_es_asid,
        )

    def __call__(self, leaf: int, subleaf: int) -> Registers:
        """Answer CPUID."""
        if leaf == _MAX_EXTENDED:
            top = self._core.executing_cpuid(leaf, 0)
            return top._replace(eax=ENCRYPTION if self._encrypts else ENCRYPTION - 1)
        if leaf == ENCRYPTION:
            if not self._encrypts:
                return Registers(0, 0, 0, 0)
            return self._encryption
        if leaf == HYPERVISOR and not self._host:
            words = [int.from_bytes(_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8)]
            return Registers(HYPERVISOR, *words)
        if HYPERVISOR < leaf < HYPERVISOR + 0x1_0000:
            return Registers(0, 0, 0, 0)
        found = self._core.executing_cpuid(leaf, subleaf)
        mask = _MASKS.get(leaf, Mask())
        eax, ebx, ecx, edx = (
            word & ~gone & _ALL
            for word, gone in zip(found, (mask.eax, mask.ebx, mask.ecx, mask.edx), strict=True)
        )
        if leaf == 0x1:
            ecx = ecx & ~_UNDER_A_HYPERVISOR if self._host else ecx | _UNDER_A_HYPERVISOR
        elif leaf == 0x8000_0007:
            edx |= _INVARIANT_TSC
        return Registers(eax, ebx, ecx, edx)
