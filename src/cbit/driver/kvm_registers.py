"""A virtual processor's registers as programs set and get them: KVM's structures, with the values of a reset.

Layouts: linux, asm/kvm.h.  Paper: launch-inputs.md §6.1 for what a reset leaves.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.wire import Wire, at

#: RDX of a processor whose CPUID nobody has set.
NO_CPUID: Final = 0x600


class KvmSegment(Wire, size=0x18):
    """A segment register, ``struct kvm_segment``."""

    base: int = at(0x00, 8, default=0)
    limit: int = at(0x08, 4, default=0xFFFF)
    selector: int = at(0x0C, 2, default=0)
    type: int = at(0x0E, 1, default=3)
    present: int = at(0x0F, 1, default=1)
    dpl: int = at(0x10, 1, default=0)
    db: int = at(0x11, 1, default=0)
    s: int = at(0x12, 1, default=1)
    l: int = at(0x13, 1, default=0)  # noqa: E741  # the kernel's name
    g: int = at(0x14, 1, default=0)
    avl: int = at(0x15, 1, default=0)
    unusable: int = at(0x16, 1, default=0)


class KvmTable(Wire, size=0x10):
    """A descriptor-table register, ``struct kvm_dtable``."""

    base: int = at(0x0, 8, default=0)
    limit: int = at(0x8, 2, default=0xFFFF)


_CODE: Final = KvmSegment(base=0xFFFF_0000, selector=0xF000, type=0xB)
_DATA: Final = KvmSegment()
_TASK: Final = KvmSegment(type=0xB, s=0)
_LOCAL: Final = KvmSegment(type=2, s=0)
_TABLE: Final = KvmTable()


class KvmSregs(Wire, size=0x138):
    """Argument of KVM_GET_SREGS and KVM_SET_SREGS, ``struct kvm_sregs``."""

    cs: KvmSegment = at(0x000, 24, default=_CODE)
    ds: KvmSegment = at(0x018, 24, default=_DATA)
    es: KvmSegment = at(0x030, 24, default=_DATA)
    fs: KvmSegment = at(0x048, 24, default=_DATA)
    gs: KvmSegment = at(0x060, 24, default=_DATA)
    ss: KvmSegment = at(0x078, 24, default=_DATA)
    tr: KvmSegment = at(0x090, 24, default=_TASK)
    ldt: KvmSegment = at(0x0A8, 24, default=_LOCAL)
    gdt: KvmTable = at(0x0C0, 16, default=_TABLE)
    idt: KvmTable = at(0x0D0, 16, default=_TABLE)
    cr0: int = at(0x0E0, 8, default=0x6000_0010)
    cr2: int = at(0x0E8, 8, default=0)
    cr3: int = at(0x0F0, 8, default=0)
    cr4: int = at(0x0F8, 8, default=0)
    cr8: int = at(0x100, 8, default=0)
    efer: int = at(0x108, 8, default=0)
    apic_base: int = at(0x110, 8, default=0)
    interrupt_bitmap: bytes = at(0x118, 32, default=bytes(32))


class KvmRegs(Wire, size=0x90):
    """Argument of KVM_GET_REGS and KVM_SET_REGS, ``struct kvm_regs``."""

    rax: int = at(0x00, 8, default=0)
    rbx: int = at(0x08, 8, default=0)
    rcx: int = at(0x10, 8, default=0)
    rdx: int = at(0x18, 8, default=NO_CPUID)
    rsi: int = at(0x20, 8, default=0)
    rdi: int = at(0x28, 8, default=0)
    rsp: int = at(0x30, 8, default=0)
    rbp: int = at(0x38, 8, default=0)
    r8: int = at(0x40, 8, default=0)
    r9: int = at(0x48, 8, default=0)
    r10: int = at(0x50, 8, default=0)
    r11: int = at(0x58, 8, default=0)
    r12: int = at(0x60, 8, default=0)
    r13: int = at(0x68, 8, default=0)
    r14: int = at(0x70, 8, default=0)
    r15: int = at(0x78, 8, default=0)
    rip: int = at(0x80, 8, default=0xFFF0)
    rflags: int = at(0x88, 8, default=2)
