"""The save area of a virtual CPU as KVM makes it from a CPU that was just reset.

MODEL CHOICE: nobody sets registers of our virtual CPUs, so all of them start as after a reset; RDX is 0x600,
what KVM puts there while no CPUID was given, unless the machine is made for another signature.

Paper: launch-inputs.md §6.1.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.vmsa import Segment, SevFeatures, Vmsa

NO_CPUID: Final = 0x600

_DATA: Final = Segment(attributes=0x93, limit=0xFFFF)
_TABLE: Final = Segment(limit=0xFFFF)


def after_reset(*, signature: int = NO_CPUID, features: int = 0, fpu: bool) -> bytes:
    """Make the page.

    Args:
        signature: CPUID Fn1 EAX of the virtual CPU.
        features: SEV_FEATURES.
        fpu: whether the FPU's words are filled in: KVM does so for machines that INIT2 made.
    """
    page = Vmsa(
        es=_DATA,
        cs=Segment(selector=0xF000, attributes=0x9B, limit=0xFFFF, base=0xFFFF0000),
        ss=_DATA,
        ds=_DATA,
        fs=_DATA,
        gs=_DATA,
        gdtr=_TABLE,
        ldtr=Segment(attributes=0x82, limit=0xFFFF),
        idtr=_TABLE,
        tr=Segment(attributes=0x8B, limit=0xFFFF),
        efer=0x1000,
        cr4=0x40,
        cr0=0x10,
        dr7=0x400,
        dr6=0xFFFF0FF0,
        rflags=0x2,
        rip=0xFFF0,
        g_pat=0x0007040600070406,
        rdx=signature,
        sev_features=SevFeatures(features),
        xcr0=1,
        mxcsr=0x1F80 if fpu else 0,
        x87_fcw=0x37F if fpu else 0,
    )
    return bytes(page)
