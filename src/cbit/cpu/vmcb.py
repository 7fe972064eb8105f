"""The virtual machine control block, and what VMRUN insists on before a guest runs.

Paper: memory-encryption.md §10.1 (layout), §8 rules 1-5 (checks); the checks that have no encryption in
them are the AMD64 architecture's own.
Not modelled: SEV-ES, SEV-SNP, shadow paging, event injection (each raises ``NotModelled``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from cbit.cpu.control import AddressRules, Controls, Efer, PagingMode
from cbit.cpu.cpuid import Encryption, EncryptionFeatures
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.cpu.tlb import TlbControl, VmMode
from cbit.spec.address import PAGE
from cbit.spec.errors import NotModelled
from cbit.spec.wire import Dir, Wire, at

RFLAGS_AC: Final = 1 << 18
INTERCEPT_VMRUN: Final = 1 << 0
CLEAN_ASID: Final = 1 << 2
_EVENT_VALID: Final = 1 << 31


class Enable(IntFlag):
    """VMCB offset 0x90."""

    NP_ENABLE = 1 << 0
    SEV = 1 << 1
    SEV_ES = 1 << 2
    VTE = 1 << 5


class Vmcb(Wire, size=PAGE):
    """The fields that this model reads or writes; all other bytes are the hypervisor's business.

    Control area to 0x3FF, save area from 0x400.  In plain SEV the save area is plaintext to the hypervisor.

    Paper: memory-encryption.md §10.1.
    """

    intercept_svm: int = at(0x010, 4, default=INTERCEPT_VMRUN)
    asid: int = at(0x058, 4, default=0)
    tlb_control: TlbControl = at(0x05C, 1, default=TlbControl.NOTHING)
    exit_code: int = at(0x070, 8, Dir.OUT, default=0)
    exit_info_1: int = at(0x078, 8, Dir.OUT, default=0)
    exit_info_2: int = at(0x080, 8, Dir.OUT, default=0)
    enable: Enable = at(0x090, 8, default=Enable.NP_ENABLE)
    event_injection: int = at(0x0A8, 8, default=0)
    ncr3: int = at(0x0B0, 8, default=0)
    clean: int = at(0x0C0, 4, default=0)
    cpl: int = at(0x4CB, 1, Dir.IN_OUT, default=0)
    efer: int = at(0x4D0, 8, Dir.IN_OUT, default=0)
    cr4: int = at(0x548, 8, Dir.IN_OUT, default=0)
    cr3: int = at(0x550, 8, Dir.IN_OUT, default=0)
    cr0: int = at(0x558, 8, Dir.IN_OUT, default=0)
    rflags: int = at(0x570, 8, Dir.IN_OUT, default=2)
    rip: int = at(0x578, 8, Dir.IN_OUT, default=0)
    rsp: int = at(0x5D8, 8, Dir.IN_OUT, default=0)
    rax: int = at(0x5F8, 8, Dir.IN_OUT, default=0)
    cr2: int = at(0x640, 8, Dir.IN_OUT, default=0)
    g_pat: int = at(0x668, 8, Dir.IN_OUT, default=0)

    @property
    def controls(self) -> Controls:
        """The guest's control registers."""
        ac = bool(self.rflags & RFLAGS_AC)
        return Controls(cr0=self.cr0, cr3=self.cr3, cr4=self.cr4, efer=self.efer, ac=ac)


AsidUsable = Callable[[int], bool]
"""Asks the secure processor (its INVALID_ASID bitmap, §8 rule 7) whether this core may use an ASID's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """What VMRUN looks at besides the VMCB."""

    features: EncryptionFeatures
    controls: Controls
    rules: AddressRules
    encryption_on: bool
    smm_lock: bool
    asid_usable: AsidUsable
    mitigations: Mitigations = NONE


def vm_mode(vmcb: Vmcb, *, encryption_on: bool) -> VmMode:
    """Say what kind of guest a VMCB describes; without MemEncryptionModEn its SEV bits are ignored.

    Paper: memory-encryption.md §2.2 (SYSCFG), §10.1.
    """
    if not encryption_on or Enable.SEV not in vmcb.enable:
        return VmMode.PLAIN
    return VmMode.SEV_ES if Enable.SEV_ES in vmcb.enable else VmMode.SEV


def guest_rules(vmcb: Vmcb, host: HostState) -> AddressRules:
    """Which address bits a guest's entries have: all of the part's, and the C-bit if SEV is on.

    Paper: memory-encryption.md §3 rule 6.
    """
    mode = vm_mode(vmcb, encryption_on=host.encryption_on)
    return AddressRules(host.features.physical_bits, None if mode is VmMode.PLAIN else host.features.c_bit)


def refusal(vmcb: Vmcb, host: HostState) -> str | None:
    """Say why VMRUN ends in VMEXIT_INVALID, or None.

    The hardware does not remember which VMCB owns an ASID: only ranges and usability are checked (§8 rule 5).

    Paper: memory-encryption.md §8 rules 1, 2, 4 and 7.
    """
    for wrong, why in (
        (not vmcb.intercept_svm & INTERCEPT_VMRUN, "the VMRUN intercept is clear"),
        (vmcb.asid == 0, "ASID 0 is the host's"),
        # MODEL CHOICE: also for ordinary guests; the dossier gives the number, not the consequence.
        (vmcb.asid >= host.features.asids, f"ASID {vmcb.asid}: this part has 0 … {host.features.asids - 1}"),
        (not vmcb.efer & Efer.SVME, "the guest's EFER.SVME is clear"),
    ):
        if wrong:
            return why
    if illegal := vmcb.controls.illegal(guest_rules(vmcb, host)):
        return f"guest state: {illegal}"
    if Enable.NP_ENABLE in vmcb.enable and vmcb.ncr3 & (host.rules.reserved | ~((1 << 52) - 1)):
        return f"nCR3 {vmcb.ncr3:#x} has reserved address bits set"
    mode = vm_mode(vmcb, encryption_on=host.encryption_on)
    return None if mode is VmMode.PLAIN else _sev_refusal(vmcb, host, mode)


def _sev_refusal(vmcb: Vmcb, host: HostState, mode: VmMode) -> str | None:
    features, asid = host.features, vmcb.asid
    not_long = host.controls.mode is not PagingMode.LONG
    for wrong, why in (
        (Encryption.SEV not in features.eax, "this part has no SEV"),
        (Enable.NP_ENABLE not in vmcb.enable, "SEV needs nested paging"),
        (not host.smm_lock, "SEV needs HWCR.SmmLock"),
        (Encryption.HOST_64_BIT in features.eax and not_long, "SEV guests run from a 64-bit host only"),
        (asid > features.guests, f"ASID {asid}: encrypted guests have 1 … {features.guests}"),
        (
            mode is VmMode.SEV and asid < features.min_sev_no_es_asid,
            f"ASID {asid}: without SEV-ES at least {features.min_sev_no_es_asid}",
        ),
        # MODEL CHOICE: the INVALID_ASID bitmap is consulted here (§8 rule 7, derived).
        (not host.asid_usable(asid), f"ASID {asid} has no usable key on this core"),
    ):
        if wrong:
            return why
    return None


def require_modelled(vmcb: Vmcb, host: HostState) -> None:
    """Refuse loudly what real hardware would run and this model cannot.

    Raises:
        NotModelled: with the feature's name.
    """
    mode = vm_mode(vmcb, encryption_on=host.encryption_on)
    sev = mode is not VmMode.PLAIN
    unknown = int(vmcb.enable) & ~_KNOWN
    for wanted, what in (
        (mode is VmMode.SEV_ES, "SEV-ES guests"),
        (host.encryption_on and not sev and Enable.SEV_ES in vmcb.enable, "SEV-ES without SEV"),
        (
            sev and Enable.VTE in vmcb.enable and Encryption.VTE not in host.features.eax,
            "VTE on a part without it",
        ),
        (Enable.NP_ENABLE not in vmcb.enable, "guests without nested paging"),
        (host.controls.mode is not PagingMode.LONG, "nested tables of a host outside long mode"),
        (unknown != 0, f"VMCB 0x90 bits {unknown:#x}"),
        (not isinstance(vmcb.tlb_control, TlbControl), f"TLB_CONTROL {vmcb.tlb_control}"),
        (bool(vmcb.event_injection & _EVENT_VALID), "event injection"),
    ):
        if wanted:
            raise NotModelled(f"VMRUN: {what}")


_KNOWN: Final = int(Enable.NP_ENABLE | Enable.SEV | Enable.SEV_ES | Enable.VTE)
