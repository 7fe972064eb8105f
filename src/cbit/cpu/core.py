"""One logical core: registers, and what its accesses and privileged instructions do.

The core is in host mode (ASID 0) or, between VMRUN and #VMEXIT, in guest mode; then the `GuestView` acts
and host work is refused.

Paper: memory-encryption.md §2.2 (MSRs), §4.1 (host accesses), §6.2-6.5 (cache maintenance), §8 (VMRUN).
Not modelled: execution, segmentation, interrupts, memory types; host state is kept on the chip
(VM_HSAVE_PA is checked, not used).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cbit.cpu.control import AddressRules, Controls, Cr0, Cr4, Efer, with_bit
from cbit.cpu.cpuid import Encryption, EncryptionFeatures, Registers, cpuid
from cbit.cpu.encryption_rules import HostSituation
from cbit.cpu.engine.checks import HostSide, executing_features
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.engine.engine import Engine
from cbit.cpu.engine.processor import Context
from cbit.cpu.faults import GeneralProtection, InvalidOpcode, PageFault, WrongCoreMode
from cbit.cpu.guest_view import GuestView
from cbit.cpu.host_tables import HostTables, HostTranslator
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.cpu.mmu import Mmu, Request
from cbit.cpu.msr import Hwcr, Msr, MsrFile, Syscfg
from cbit.cpu.paging import Access, Kind
from cbit.cpu.physical import CachedMemory, PhysicalPort
from cbit.cpu.tlb import Tag, Tlb, TlbControl, VmMode
from cbit.cpu.translation import Translation
from cbit.cpu.vmcb import AsidUsable, HostState
from cbit.cpu.vmrun import LastVmcb, VmcbPage, vmrun
from cbit.cpu.window import Window
from cbit.spec.address import PAGE, Hva, Spa
from cbit.spec.errors import NotModelled
from cbit.trace import SILENT, Trace

_OUT_OF_RESET: Final = Controls()


class Core:
    """A logical core.

    Mutable: registers, TLB, mode.  A fault or refusal leaves all of them as they were.

    Args:
        memory: DRAM behind cache and engine.
        features: the part's numbers.
        asid_usable: asks the secure processor whether an ASID's key is in place.
        index: which logical core this is.
        mmio: device registers.
        tlb: the TLB, when two logical cores share one.
        engine: makes what executes guests; None: this core only walks and checks.
        mitigations: rules that the first generations do not have.
        trace: who hears what happened.

    Attributes:
        wbinvd_done: a WBINVD completed since the secure processor last cleared this (§8 rule 7).
    """

    def __init__(
        self,
        *,
        memory: CachedMemory,
        features: EncryptionFeatures,
        asid_usable: AsidUsable,
        index: int = 0,
        mmio: Sequence[range] = (),
        tlb: Tlb | None = None,
        engine: Callable[[], Engine] | None = None,
        mitigations: Mitigations = NONE,
        trace: Trace = SILENT,
    ) -> None:
        """Come out of reset: paging off, encryption off."""
        self.features: Final = features
        self.index: Final = index
        self.tlb: Final = tlb if tlb is not None else Tlb(trace)
        self._memory = memory
        self._port = PhysicalPort(memory, mmio=mmio)
        self._asid_usable = asid_usable
        self._trace = trace
        self._mitigations = mitigations
        self._make_engine = engine
        self._engine: Engine | None = None
        self.reset()

    def reset(self) -> None:
        """Put registers and translations into their reset state; caches and DRAM are not touched."""
        self._msrs = MsrFile(self.features, self._trace, mitigations=self._mitigations)
        self._guest: GuestView | None = None
        self._side: HostSide | None = None
        self._entered = -1  # the VMCB whose address was found to be one
        self._last_vmcb = LastVmcb()
        self.wbinvd_done = False
        tag = Tag(asid=0, core=self.index, mode=VmMode.PLAIN)
        self._mmu = Mmu(self._port, self.tlb, tag=tag, translator=self._translator(), controls=_OUT_OF_RESET)
        self.tlb.flush(TlbControl.ALL_ASIDS, core=self.index, asid=0)
        if self._engine is not None:
            self._engine.flush(TlbControl.ALL_ASIDS)

    # --- what can be seen

    @property
    def asid(self) -> int:
        """The ASID that tags this core's accesses now: 0 in the host (software cannot read it)."""
        return self._guest.asid if self._guest else 0

    @property
    def controls(self) -> Controls:
        """The host's control registers."""
        return self._mmu.controls

    @property
    def encryption_on(self) -> bool:
        """SYSCFG.MemEncryptionModEn."""
        return bool(self._msrs[Msr.SYSCFG] & Syscfg.MEM_ENCRYPTION_MOD_EN)

    @property
    def rules(self) -> AddressRules:
        """Which physical address bits exist now: reduced, with a C-bit, once encryption is on."""
        if not self.encryption_on:
            return AddressRules(self.features.physical_bits, None)
        return AddressRules(self.features.reduced_bits, self.features.c_bit)

    # --- accesses

    def read(self, hva: Hva, length: int, *, user: bool = False) -> bytes:
        """Load bytes.

        Raises:
            PageFault, GeneralProtection: the host's tables refuse.
            EncryptedMmio: C=1 on a device's registers.
            WrongCoreMode: a guest is running.
        """
        return self._host().read(hva, length, Access(Kind.READ, user))

    def write(self, hva: Hva, data: bytes, *, user: bool = False) -> None:
        """Store bytes; all pages are translated before the first byte moves (errors as `read`)."""
        self._host().write(hva, data, Access(Kind.WRITE, user))

    def fetch(self, hva: Hva, length: int, *, user: bool = False) -> bytes:
        """Fetch instruction bytes (errors as `read`)."""
        return self._host().read(hva, length, Access(Kind.FETCH, user))

    def walk(self, hva: Hva) -> Translation:
        """Translate by the tables alone, past the TLB (errors as `read`)."""
        return self._host().walk(hva)

    def window(self, hva: Hva) -> Window:
        """Hold the translation of a page that the host may read and write (errors as `read`)."""
        spa, _, key = self._locate(Hva(hva & -PAGE), Access(Kind.WRITE))
        return Window(self._port, spa, key)

    def host_tables(self) -> HostTables:
        """Give host software a hand on tables in memory, as through a direct map with the right C-bit."""
        on = self.encryption_on
        return HostTables(self._port, HostSituation.WITH_PAE if on else HostSituation.OFF)

    # --- control registers

    def mov_cr0(self, value: int) -> None:
        """Execute MOV CR0; switching paging empties this core's host translations."""
        self._changing().move_control(cr0=value)

    def mov_cr3(self, value: int) -> None:
        """Execute MOV CR3 (``value`` with the top table's C-bit); flushes ASID 0 but for global pages."""
        self._changing().move_control(cr3=value)

    def mov_cr4(self, value: int) -> None:
        """Execute MOV CR4."""
        self._changing().move_control(cr4=value)

    def set_alignment_check(self, *, on: bool) -> None:
        """Execute STAC or CLAC."""
        self._changing().set_alignment_check(on=on)

    def enter_long_mode(self, root: int) -> None:
        """Do what start-up code does: PAE, LME, NXE, paging, and a top table that may have its C-bit set."""
        mmu = self._host()
        address, _ = self.rules.split(root)
        self.mov_cr4(mmu.controls.cr4 | Cr4.PAE | Cr4.PGE)
        self.wrmsr(Msr.EFER, mmu.controls.efer | Efer.LME | Efer.NXE)
        self.mov_cr3(address)  # a C-bit does not fit the register yet
        self.mov_cr0(mmu.controls.cr0 | Cr0.PE | Cr0.PG | Cr0.WP)
        self.mov_cr3(root)

    # --- model-specific registers

    def rdmsr(self, number: int) -> int:
        """Execute RDMSR in the host (errors as `MsrFile.rdmsr`)."""
        mmu = self._host()
        value = self._msrs.rdmsr(number)
        return int(mmu.controls.efer) if number == Msr.EFER else value  # with LMA, which is the core's

    def wrmsr(self, number: int, value: int) -> None:
        """Execute WRMSR in the host, with what the register does.

        Raises:
            GeneralProtection: no such register, wrong access, reserved bit, or a value that the register
                refuses.
            NotModelled: a bit whose effect the model lacks.
        """
        mmu = self._changing()
        if number == Msr.EFER:
            self._check_efer(value)
        elif number == Msr.SYSCFG:
            self._check_address_bits(value)
        elif number == Msr.VM_HSAVE_PA and value & self.rules.reserved | value >> 52:
            raise GeneralProtection(f"VM_HSAVE_PA {value:#x} has address bits that do not exist")
        self._msrs.wrmsr(number, value)
        if number == Msr.EFER:
            active = bool(mmu.controls.efer & Efer.LMA)  # the processor's answer, not software's wish
            mmu.controls = dataclasses.replace(mmu.controls, efer=with_bit(value, Efer.LMA, on=active))
        elif number == Msr.SYSCFG and self.rules != mmu.translator.rules:
            mmu.translator = self._translator()
            self.tlb.flush_mode_change(mmu.tag)
        elif number == Msr.VMPAGE_FLUSH:
            self._vmpage_flush(value)

    # --- cache maintenance

    def wbinvd(self) -> int:
        """Write back and invalidate all caches; return how many pages were written back.

        Paper: memory-encryption.md §6.5, §8 rule 7 (the DONE flag).
        """
        self._host()
        written = self._memory.wbinvd()
        self.wbinvd_done = True
        return written

    def clear_wbinvd_done(self) -> None:
        """Clear the DONE flag: the secure processor does, at INIT and DEACTIVATE."""
        self.wbinvd_done = False

    def invd(self) -> int:
        """Invalidate all caches *without* writing back, unless HWCR bit 4 makes it a WBINVD.

        Returns:
            Pages dropped, or written back if converted.

        Paper: memory-encryption.md §2.2 (HWCR), §6.5.
        """
        self._host()
        if self._msrs[Msr.HWCR] & Hwcr.INVD_TO_WBINVD:
            return self.wbinvd()
        return self._memory.invd()

    def clflush(self, hva: Hva) -> None:
        """Flush the line of a linear address under the tag that its mapping gives it (errors as `read`).

        Where hardware keeps encryption domains coherent, all tags are flushed.

        Paper: memory-encryption.md §6.2.
        """
        spa, _, key = self._locate(hva, Access(Kind.READ))
        self._memory.clflush(spa, key)

    def invlpg(self, hva: Hva) -> None:
        """Drop the host translations of one page, global ones too."""
        self._host().invalidate_page(hva)

    def invlpga(self, linear: int, asid: int) -> None:
        """Drop one guest page's translations, by guest linear address.

        Raises:
            InvalidOpcode: EFER.SVME is clear.
        """
        if not self._host().controls.efer & Efer.SVME:
            raise InvalidOpcode("INVLPGA without EFER.SVME")
        self.tlb.flush_page(linear, core=self.index, asid=asid)
        if self._engine is not None:
            self._engine.flush(TlbControl.THIS_ASID, asid=asid)  # more than was asked for, as hardware may

    # --- guest mode

    def vmrun(self, vmcb: int) -> GuestView:
        """Execute VMRUN and hand the core to the guest until its #VMEXIT.

        Args:
            vmcb: rAX: physical address of the VMCB; its C-bit chooses the host's key.

        Raises:
            InvalidOpcode: EFER.SVME is clear.
            GeneralProtection: ``vmcb`` is not a page of this machine.
            VmexitInvalid: the VMCB was refused, which EXITCODE says as well.
            NotModelled: SEV-ES and other things that the model lacks.

        Paper: memory-encryption.md §8 rules 1-5.
        """
        self._check_vmrun(self._host(), vmcb)
        host = self._host_state()
        spa, key = self._translator().address_key(vmcb)
        page = VmcbPage(self._port, spa, key)
        self._guest = vmrun(page, self._last_vmcb, host=host, tlb=self.tlb, core=self, trace=self._trace)
        return self._guest

    @property
    def engine(self) -> Engine:
        """What executes guests on this core, made at the first use.

        Raises:
            NoEngine: this computer, or this machine, cannot execute guests.
        """
        if self._engine is None:
            if self._make_engine is None:
                raise NotModelled("a core without an execution engine")
            self._engine = self._make_engine()
        return self._engine

    @property
    def guest_features(self) -> EncryptionFeatures:
        """The numbers that guests which execute are told, whatever the part (errors as `engine`)."""
        return executing_features(self.features)

    def executing_cpuid(self, leaf: int, subleaf: int = 0) -> Registers:
        """Execute CPUID for the leaves that have nothing to do with encryption (errors as `engine`)."""
        return Registers(*self.engine.cpuid(leaf, subleaf))

    def new_context(self) -> Context:
        """Make the registers of a virtual CPU that are not in its VMCB (errors as `engine`)."""
        return self.engine.new_context()

    def execute(self, vmcb: int, context: Context, *, blocks: int | None = None) -> Exit:
        """Execute VMRUN and the guest behind it, until its #VMEXIT.

        Args:
            vmcb: rAX: physical address of the VMCB; its C-bit chooses the host's key.
            context: the virtual CPU's other registers.
            blocks: a physical interrupt comes after so many blocks of guest code.

        Raises:
            NoEngine: this computer cannot execute guests.
            InvalidOpcode, GeneralProtection, VmexitInvalid, NotModelled: as `vmrun`.
            EngineFault: the engine failed.
        """
        if self._side is None or vmcb != self._entered:
            self._check_vmrun(self._host(), vmcb)
            self._side = self._side or self._host_side()
            self._entered = vmcb
        return self.engine.run(Spa(vmcb), context, self._side, blocks=blocks)

    def used_pages(self, asid: int) -> dict[int, bool]:
        """Say which guest physical pages guests used here under an ASID, and whether with a key.

        It is what the core was asked for when it last made the page accessible; nothing of a core that never
        executed a guest.
        """
        return {} if self._engine is None else self._engine.used_pages(asid)

    def forget_use(self, asid: int) -> None:
        """Forget which pages an ASID used: its guest is gone."""
        if self._engine is not None:
            self._engine.forget_use(asid)

    def execute_bare(
        self,
        registers: memoryview,
        msrpm: bytes,
        context: Context,
        *,
        memory_size: int,
        elsewhere: Mapping[Spa, Spa],
        blocks: int | None = None,
    ) -> Exit:
        """Execute software of the host itself until it needs the board.

        Args:
            registers: its registers, in the form of a VMCB.
            msrpm: which MSRs the core keeps itself, in the form of an MSR permission map.
            context: the other registers.
            memory_size: bytes of DRAM.
            elsewhere: pages behind DRAM that can be read, and the frame of DRAM that each shows.
            blocks: come back after so many blocks.

        Raises:
            NoEngine: this computer cannot execute anything.
            EngineFault: the engine failed.

        Paper: memory-encryption.md §4.1.
        """
        self._host()
        self._side = self._side or self._host_side()
        side = self._side
        return self.engine.run_bare(
            registers, msrpm, context, side, memory_size=memory_size, elsewhere=elsewhere, blocks=blocks
        )

    def runs(self, guest: GuestView) -> bool:
        """Whether this turn of a guest is the one that the core is in; a reset ends it as #VMEXIT does."""
        return self._guest is guest

    def leave_guest_mode(self) -> None:
        """Return to ASID 0: the core's half of #VMEXIT."""
        self._guest = None

    def cpuid(self, leaf: int) -> Registers:
        """Execute CPUID (errors as `cbit.cpu.cpuid.cpuid`)."""
        return cpuid(self.features, leaf)

    # --- inside

    def _check_vmrun(self, mmu: Mmu, vmcb: int) -> None:
        if not mmu.controls.efer & Efer.SVME:
            raise InvalidOpcode("VMRUN without EFER.SVME")
        if vmcb % PAGE or vmcb & self.rules.reserved or vmcb >> 52:
            raise GeneralProtection(f"VMCB address {vmcb:#x}")

    def _host_state(self) -> HostState:
        return HostState(
            features=self.features,
            controls=self._mmu.controls,
            rules=self.rules,
            encryption_on=self.encryption_on,
            smm_lock=bool(self._msrs[Msr.HWCR] & Hwcr.SMM_LOCK),
            asid_usable=self._asid_usable,
            mitigations=self._mitigations,
        )

    def _host_side(self) -> HostSide:
        return HostSide(
            state=self._host_state(),
            port=self._port,
            invd_is_wbinvd=bool(self._msrs[Msr.HWCR] & Hwcr.INVD_TO_WBINVD),
            wbinvd_done=self._note_wbinvd,
        )

    def _note_wbinvd(self) -> None:
        self.wbinvd_done = True

    def _host(self) -> Mmu:
        if self._guest is not None:
            raise WrongCoreMode(f"core {self.index} runs a guest (ASID {self._guest.asid})")
        return self._mmu

    def _changing(self) -> Mmu:
        """The host's MMU, for an instruction that changes what VMRUN looks at."""
        self._side = None
        return self._host()

    def _translator(self) -> HostTranslator:
        return HostTranslator(self._port, self.rules)

    def _locate(self, hva: Hva, access: Access) -> Request:
        return self._host().locate(hva, 1, access)[0]

    def _check_efer(self, value: int) -> None:
        controls = self._mmu.controls
        if controls.cr0 & Cr0.PG and (value ^ controls.efer) & Efer.LME:
            raise GeneralProtection("EFER.LME cannot change while paging is on")

    def _check_address_bits(self, syscfg: int) -> None:
        """Refuse to switch under software that uses the address bits in question (§2.2)."""
        on = bool(syscfg & Syscfg.MEM_ENCRYPTION_MOD_EN)
        if on and not self.features.eax & (Encryption.SME | Encryption.SEV):
            raise NotModelled("SYSCFG.MemEncryptionModEn on a part without SME and SEV")
        if on == self.encryption_on or not self._mmu.controls.cr0 & Cr0.PG:
            return
        changing = ((1 << 52) - (1 << self.features.reduced_bits)) | 1 << self.features.c_bit
        if self._mmu.controls.cr3 & changing:
            raise NotModelled("switching encryption while CR3 uses bits that change their meaning")

    def _vmpage_flush(self, value: int) -> None:
        """Write back and drop one page's private copy of one ASID.

        Paper: memory-encryption.md §6.4.
        """
        asid, page = value % PAGE, Hva(value & -PAGE)
        if asid == 0:
            raise GeneralProtection("VMPAGE_FLUSH: ASID 0 is the host's")
        if asid > self.features.guests:
            raise NotModelled(f"VMPAGE_FLUSH: ASID {asid} is above the encrypted guests' range")
        try:
            found = self._mmu.translate(page, Access(Kind.READ))
        except PageFault as fault:
            raise GeneralProtection(f"VMPAGE_FLUSH: {fault}") from None
        if self._mmu.controls.cr4 & Cr4.SMAP and found.leaf.user:
            raise GeneralProtection("VMPAGE_FLUSH: with SMAP the mapping must be a supervisor's")
        self._memory.vmpage_flush(found.page, asid)
