"""The save area of a virtual CPU as KVM makes it from the registers that a program has set.

MODEL CHOICE: debug registers, XCR0, PAT and the FPU are those of a reset, whatever the program set: the
registers that count are those of KVM_SET_REGS and KVM_SET_SREGS.

Paper: launch-inputs.md §6.1.
"""

from __future__ import annotations

from typing import Final

from cbit.driver.kvm_registers import KvmRegs, KvmSegment, KvmSregs, KvmTable
from cbit.spec.vmsa import Segment, SevFeatures, Vmsa

_SVME: Final = 1 << 12  #: of EFER: KVM leaves it on in every guest
_MCE: Final = 1 << 6  #: of CR4, likewise
_CACHE_OFF: Final = 1 << 30 | 1 << 29  #: CR0's CD and NW, which KVM takes away


def save_area(regs: KvmRegs, sregs: KvmSregs, *, features: int = 0, fpu: bool) -> bytes:
    """Make the page.

    Args:
        regs: what KVM_SET_REGS set.
        sregs: what KVM_SET_SREGS set.
        features: SEV_FEATURES.
        fpu: whether the FPU's words are filled in: KVM does so for machines that INIT2 made.
    """
    page = Vmsa(
        es=_segment(sregs.es),
        cs=_segment(sregs.cs),
        ss=_segment(sregs.ss),
        ds=_segment(sregs.ds),
        fs=_segment(sregs.fs),
        gs=_segment(sregs.gs),
        gdtr=_table(sregs.gdt),
        ldtr=_segment(sregs.ldt),
        idtr=_table(sregs.idt),
        tr=_segment(sregs.tr),
        cpl=sregs.ss.dpl & 3,
        efer=sregs.efer | _SVME,
        cr4=sregs.cr4 | _MCE,
        cr3=sregs.cr3,
        cr2=sregs.cr2,
        cr0=sregs.cr0 & ~_CACHE_OFF,
        dr7=0x400,
        dr6=0xFFFF0FF0,
        g_pat=0x0007040600070406,
        sev_features=SevFeatures(features),
        xcr0=1,
        mxcsr=0x1F80 if fpu else 0,
        x87_fcw=0x37F if fpu else 0,
        **{name: getattr(regs, name) for name in KvmRegs.FIELDS},
    )
    return bytes(page)


def _segment(given: KvmSegment) -> Segment:
    """Pack a segment's attributes as the save area has them."""
    low = given.type & 15 | (given.s & 1) << 4 | (given.dpl & 3) << 5
    low |= (given.present & 1 and not given.unusable) << 7
    high = given.avl & 1 | (given.l & 1) << 1 | (given.db & 1) << 2 | (given.g & 1) << 3
    return Segment(selector=given.selector, attributes=low | high << 8, limit=given.limit, base=given.base)


def _table(given: KvmTable) -> Segment:
    return Segment(limit=given.limit, base=given.base)
