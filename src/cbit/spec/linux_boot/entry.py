"""What the virtual CPU holds when it enters the kernel by its 32-bit entry.

Protected mode, paging off, flat segments.  Without paging every access of an SEV guest is private, so the
guest starts from encrypted memory without a single page table; the kernel then asks CPUID 8000_001F and the
SEV_STATUS MSR for the C-bit and makes its own tables.

    GDT    0x00 null | 0x08 null | 0x10 code, 4 GiB, 32-bit | 0x18 data, 4 GiB

Source: Linux, Documentation/arch/x86/boot.rst, "32-bit boot protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.spec.vmsa import EMPTY, Segment, Vmsa

_CODE: Final = Segment(selector=0x10, attributes=0xC9B, limit=0xFFFF_FFFF)
_DATA: Final = Segment(selector=0x18, attributes=0xC93, limit=0xFFFF_FFFF)
_RESET_DR6, _RESET_DR7, _RESET_PAT = 0xFFFF_0FF0, 0x400, 0x0007_0406_0007_0406
_TASK: Final = Segment(attributes=0x8B, limit=0x67)

#: The table itself, as descriptors.
GDT: Final = (
    bytes(16) + (0x00CF9B00_0000FFFF).to_bytes(8, "little") + (0x00CF9300_0000FFFF).to_bytes(8, "little")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryState:
    """Registers at the first instruction; every register that is not here is 0.

    Attributes:
        rip: the 32-bit entry, the first byte of the loaded kernel.
        rsi: guest-physical address of the zero page.
        gdtr: base and limit of the descriptor table, which is in measured memory too.
        cs: flat code, selector 0x10.
        data: flat data, selector 0x18: ds, es, ss, fs and gs.
        tr: a task register that VMRUN accepts.
        idtr: empty: interrupts are off, and an exception before the kernel has a table ends in a shutdown.
        ldtr: empty.
        cr0: PE and ET: protected, paging off, caches on.
        cr4: nothing is on.
        rflags: interrupts off.
        efer: the guest's own bits: none (a VMCB adds SVME).
    """

    rip: int
    rsi: int
    gdtr: Segment
    cs: Segment = _CODE
    data: Segment = _DATA
    tr: Segment = _TASK
    idtr: Segment = EMPTY
    ldtr: Segment = EMPTY
    cr0: int = 0x11
    cr4: int = 0
    rflags: int = 0x2
    efer: int = 0

    def save_area(self) -> Vmsa:
        """Write it as the save area of a virtual CPU; debug registers and memory types are those of reset."""
        return Vmsa(
            cs=self.cs,
            ds=self.data,
            es=self.data,
            ss=self.data,
            fs=self.data,
            gs=self.data,
            tr=self.tr,
            gdtr=self.gdtr,
            idtr=self.idtr,
            ldtr=self.ldtr,
            cr0=self.cr0,
            cr4=self.cr4,
            efer=self.efer,
            rflags=self.rflags,
            rip=self.rip,
            rsi=self.rsi,
            dr6=_RESET_DR6,
            dr7=_RESET_DR7,
            g_pat=_RESET_PAT,
        )
