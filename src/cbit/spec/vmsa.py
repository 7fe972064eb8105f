"""The save area of a virtual CPU, which SEV-ES and SNP encrypt and measure.

A segment's attributes are packed into 12 bits:

    11 G | 10 D/B | 9 L | 8 AVL | 7 P | 6 … 5 DPL | 4 S | 3 … 0 type

Paper: launch-inputs.md §6, memory-encryption.md §10.2.
"""

from __future__ import annotations

from enum import KEEP, IntFlag
from typing import Final

from cbit.spec.wire import Wire, at


class SevFeatures(IntFlag, boundary=KEEP):
    """The SEV_FEATURES word; what KVM calls debug-swap is DEBUG_VIRT.

    Paper: memory-encryption.md §10.2.
    """

    SNP_ACTIVE = 1 << 0
    VTOM = 1 << 1
    REFLECT_VC = 1 << 2
    RESTRICTED_INJECTION = 1 << 3
    ALTERNATE_INJECTION = 1 << 4
    DEBUG_VIRT = 1 << 5
    PREVENT_HOST_IBS = 1 << 6
    BTB_ISOLATION = 1 << 7
    VMPL_SSS = 1 << 8
    SECURE_TSC = 1 << 9
    VMGEXIT_PARAMETER = 1 << 10
    PMC_VIRT = 1 << 11
    IBS_VIRT = 1 << 12
    GUEST_INTERCEPT_CTL = 1 << 13
    VMSA_REG_PROT = 1 << 14
    SMT_PROTECTION = 1 << 15
    SECURE_AVIC = 1 << 16
    IBPB_ON_ENTRY = 1 << 21


class Segment(Wire, size=0x10):
    """A segment register.

    Paper: launch-inputs.md §6.
    """

    selector: int = at(0x0, 2, default=0)
    attributes: int = at(0x2, 2, default=0)
    limit: int = at(0x4, 4, default=0)
    base: int = at(0x8, 8, default=0)


EMPTY: Final = Segment()
NO_FEATURES: Final = SevFeatures(0)


class Vmsa(Wire, size=0x1000):
    """The page, zero except as given.

    The words at 0x380 and 0x388 are the firmware's: it writes them after measuring (sev-api.md §7).

    Paper: launch-inputs.md §6.1, memory-encryption.md §10.2.
    """

    es: Segment = at(0x000, 16, default=EMPTY)
    cs: Segment = at(0x010, 16, default=EMPTY)
    ss: Segment = at(0x020, 16, default=EMPTY)
    ds: Segment = at(0x030, 16, default=EMPTY)
    fs: Segment = at(0x040, 16, default=EMPTY)
    gs: Segment = at(0x050, 16, default=EMPTY)
    gdtr: Segment = at(0x060, 16, default=EMPTY)
    ldtr: Segment = at(0x070, 16, default=EMPTY)
    idtr: Segment = at(0x080, 16, default=EMPTY)
    tr: Segment = at(0x090, 16, default=EMPTY)
    vmpl: int = at(0x0CA, 1, default=0)
    cpl: int = at(0x0CB, 1, default=0)
    efer: int = at(0x0D0, 8, default=0)
    xss: int = at(0x140, 8, default=0)
    cr4: int = at(0x148, 8, default=0)
    cr3: int = at(0x150, 8, default=0)
    cr0: int = at(0x158, 8, default=0)
    dr7: int = at(0x160, 8, default=0)
    dr6: int = at(0x168, 8, default=0)
    rflags: int = at(0x170, 8, default=0)
    rip: int = at(0x178, 8, default=0)
    dr0: int = at(0x180, 8, default=0)
    dr1: int = at(0x188, 8, default=0)
    dr2: int = at(0x190, 8, default=0)
    dr3: int = at(0x198, 8, default=0)
    dr0_mask: int = at(0x1A0, 8, default=0)
    dr1_mask: int = at(0x1A8, 8, default=0)
    dr2_mask: int = at(0x1B0, 8, default=0)
    dr3_mask: int = at(0x1B8, 8, default=0)
    rsp: int = at(0x1D8, 8, default=0)
    s_cet: int = at(0x1E0, 8, default=0)
    ssp: int = at(0x1E8, 8, default=0)
    isst_addr: int = at(0x1F0, 8, default=0)
    rax: int = at(0x1F8, 8, default=0)
    star: int = at(0x200, 8, default=0)
    lstar: int = at(0x208, 8, default=0)
    cstar: int = at(0x210, 8, default=0)
    sfmask: int = at(0x218, 8, default=0)
    kernel_gs_base: int = at(0x220, 8, default=0)
    sysenter_cs: int = at(0x228, 8, default=0)
    sysenter_esp: int = at(0x230, 8, default=0)
    sysenter_eip: int = at(0x238, 8, default=0)
    cr2: int = at(0x240, 8, default=0)
    g_pat: int = at(0x268, 8, default=0)
    dbgctl: int = at(0x270, 8, default=0)
    br_from: int = at(0x278, 8, default=0)
    br_to: int = at(0x280, 8, default=0)
    last_excp_from: int = at(0x288, 8, default=0)
    last_excp_to: int = at(0x290, 8, default=0)
    pkru: int = at(0x2E8, 4, default=0)
    tsc_aux: int = at(0x2EC, 4, default=0)
    tsc_scale: int = at(0x2F0, 8, default=0)
    tsc_offset: int = at(0x2F8, 8, default=0)
    reg_prot_nonce: int = at(0x300, 8, default=0)
    rcx: int = at(0x308, 8, default=0)
    rdx: int = at(0x310, 8, default=0)
    rbx: int = at(0x318, 8, default=0)
    secure_avic_control: int = at(0x320, 8, default=0)
    rbp: int = at(0x328, 8, default=0)
    rsi: int = at(0x330, 8, default=0)
    rdi: int = at(0x338, 8, default=0)
    r8: int = at(0x340, 8, default=0)
    r9: int = at(0x348, 8, default=0)
    r10: int = at(0x350, 8, default=0)
    r11: int = at(0x358, 8, default=0)
    r12: int = at(0x360, 8, default=0)
    r13: int = at(0x368, 8, default=0)
    r14: int = at(0x370, 8, default=0)
    r15: int = at(0x378, 8, default=0)
    firmware_zero: int = at(0x380, 8, default=0)
    firmware_checksum_paddr: int = at(0x388, 8, default=0)
    exit_info_1: int = at(0x390, 8, default=0)
    exit_info_2: int = at(0x398, 8, default=0)
    exit_int_info: int = at(0x3A0, 8, default=0)
    next_rip: int = at(0x3A8, 8, default=0)
    sev_features: SevFeatures = at(0x3B0, 8, default=NO_FEATURES)
    vintr_ctrl: int = at(0x3B8, 8, default=0)
    exit_code: int = at(0x3C0, 8, default=0)
    virtual_tom: int = at(0x3C8, 8, default=0)
    tlb_id: int = at(0x3D0, 8, default=0)
    pcpu_id: int = at(0x3D8, 8, default=0)
    event_inj: int = at(0x3E0, 8, default=0)
    xcr0: int = at(0x3E8, 8, default=0)
    x87_dp: int = at(0x400, 8, default=0)
    mxcsr: int = at(0x408, 4, default=0)
    x87_ftw: int = at(0x40C, 2, default=0)
    x87_fsw: int = at(0x40E, 2, default=0)
    x87_fcw: int = at(0x410, 2, default=0)
    x87_fop: int = at(0x412, 2, default=0)
    x87_ds: int = at(0x414, 2, default=0)
    x87_cs: int = at(0x416, 2, default=0)
    x87_rip: int = at(0x418, 8, default=0)
    x87_registers: bytes = at(0x420, 80, default=bytes(80))
    xmm: bytes = at(0x470, 256, default=bytes(256))
    ymm_high: bytes = at(0x570, 256, default=bytes(256))
    unused: bytes = at(0x670, 0x990, default=bytes(0x990))
