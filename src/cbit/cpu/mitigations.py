"""Rules of a core that the first generations do not have: each takes an attack its ground.

MODEL CHOICE: what later hardware and microcode do is known by its effect alone, so these are rules of the
model's own, off unless a machine is made with them.  They bind whoever uses the core.

Paper: attacks.md A15, A18; memory-encryption.md §2.2 (HWCR), §7 rules 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mitigations:
    """Which of them a machine has.

    Attributes:
        invd_stays_converted: HWCR bit 4 stays set whatever is written, so INVD always writes back: a patch
            that the dossier knows of without saying how it works.
        flushes_for_another_vcpu: VMRUN flushes its ASID when another VMCB of that ASID ran last on the core,
            as SNP's PCPU_ID forces it.  Plain SEV has no VMSA to keep that in: the VMCB's address stands for
            the virtual CPU.
    """

    invd_stays_converted: bool = False
    flushes_for_another_vcpu: bool = False


NONE: Final = Mitigations()
