"""A virtual CPU that executes: its VMCB in the machine's memory, its registers, events on their way in.

      start state (a save area) ──> VMCB ── VMRUN … #VMEXIT ──> handlers ──> VMRUN …

Plain SEV leaves the save area in the clear: the hypervisor reads and writes it, and so can an attack.

Paper: memory-encryption.md §7 rule 3 (who flushes), §8 rules 3 and 5, §10.1; the control area is the AMD64
architecture's own.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from cbit.cpu.control import AddressRules
from cbit.cpu.engine.checks import C_BIT
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.nested import NestedWalker, World
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.tlb import TlbControl, VmMode
from cbit.cpu.vmcb import Enable
from cbit.hypervisor.execution.msrs import msr_map
from cbit.hypervisor.execution.state import AT_INTERCEPTS, AT_SAVE, INTERCEPTS, ProcessorState
from cbit.hypervisor.execution.string_io import LinearMemory
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Spa
from cbit.spec.vmsa import Vmsa

_AT_TLB, _AT_CLEAN = 0x05C, 0x0C0
_CLEAN_MAPS: Final = 1 << 1


class ExecutingVcpu(ProcessorState):
    """One virtual CPU.

    Mutable.  Its frames go back with the guest's memory.

    Attributes:
        vm: the guest.
        core: number of the core that executes it.
        vmcb_at: where its VMCB lies; who has the power to write there may.
        context: its registers outside the VMCB.
    """

    def __init__(
        self,
        vm: Vm,
        start: Vmsa,
        *,
        core: int = 0,
        asid: int | None = None,
        sev: bool | None = None,
    ) -> None:
        """Make a virtual CPU in its start state.

        Args:
            vm: the guest.
            start: its registers: what a save area holds, and the general registers behind it.
            core: which core executes it.
            asid: another ASID than the guest's own.
            sev: whether the VMCB asks for SEV, if that is not what the guest's protection says.

        Raises:
            NoEngine: this computer cannot execute guests.
        """
        self.vm = vm
        self.core = core
        self._host = vm.host
        self._core = vm.host.machine.cores[core]
        self._asid = vm.asid if asid is None else asid
        self._executes = self._core.engine
        self._place = (core, self._asid)
        context = self._core.new_context()
        self._sev = sev = vm.protection is Protection.SEV if sev is None else sev
        self.vmcb_at = vm.take_page()
        page = vm.host.window(self.vmcb_at)
        page.write(0, self._control_area(self._asid, sev=sev) + bytes(PAGE - AT_SAVE))
        super().__init__(page, context, start)

    def _control_area(self, asid: int, *, sev: bool) -> bytes:
        area = bytearray(AT_SAVE)
        iopm, msrpm = permission_maps(self.vm)
        for form, at, value in (
            ("Q", AT_INTERCEPTS, INTERCEPTS),
            ("Q", 0x040, iopm),
            ("Q", 0x048, msrpm),
            ("I", 0x058, asid),
            ("Q", 0x090, int(Enable.NP_ENABLE | (Enable.SEV if sev else Enable(0)))),
            ("Q", 0x0B0, self.vm.tables.ncr3),
        ):
            struct.pack_into("<" + form, area, at, value)
        return bytes(area)

    # --- VMRUN

    def enter(self, *, blocks: int | None) -> Exit:
        """VMRUN until #VMEXIT, with the flush that a change of VMCB under one ASID needs.

        Raises:
            VmexitInvalid, NotModelled, EngineFault: as ``Core.execute``.
        """
        last, place = self._host.last_vmcb, self._place
        mine = last.get(place) == self.vmcb_at
        if not mine:
            self._page.write(_AT_TLB, bytes((TlbControl.THIS_ASID,)))
            self._page.write(_AT_CLEAN, b"\0\0\0\0")
        done = self._core.execute(self.vmcb_at, self.context, blocks=blocks)
        self._held = self._executes.held_block
        if not mine:
            last[place] = self.vmcb_at
            self._page.write(_AT_TLB, bytes((TlbControl.NOTHING,)))
            self._page.write(_AT_CLEAN, _CLEAN_MAPS.to_bytes(4, "little"))
        self.keep_event()
        return done

    def linear_memory(self) -> LinearMemory | None:
        """Walk the guest's tables through its nested ones, unless they are ciphertext to the hypervisor."""
        if self._sev:
            return None
        core = self._core
        world = World(
            asid=self._asid,
            mode=VmMode.PLAIN,
            vte=False,
            nested=replace(core.controls, cr3=self.vm.tables.ncr3, ac=False),
            host_rules=core.rules,
            guest_rules=AddressRules(C_BIT + 1, None),
        )
        port = PhysicalPort(self._host.machine.memory)
        return LinearMemory(NestedWalker(port, world), port, self.controls, user=self.user)

    def everything(self) -> Vmsa:
        """All registers as the hypervisor can read them, those among them that VMRUN does not load."""
        return self.save_area().replace(**self._core.engine.processor.vectors(self.context))

    def take_vectors(self, state: Vmsa) -> None:
        """Take over the x87, SSE and AVX registers of a save area; the start state is without them."""
        self._core.engine.processor.set_vectors(self.context, state)

    @property
    def blocks(self) -> int:
        """The clock of the core that executes it."""
        return self._core.engine.blocks

    def flush_caches(self) -> None:
        """WBINVD, and INVD like it: a guest must not lose the host's data."""
        self._host.flush_caches()


def permission_maps(vm: Vm) -> tuple[Spa, Spa]:
    """Build the I/O and MSR permission maps of a guest: every port and all but a few registers exit."""
    frames = vm.take_run(5 * PAGE)
    vm.host.write(Spa(frames.start), b"\xff" * (3 * PAGE))
    vm.host.write(Spa(frames.start + 3 * PAGE), msr_map())
    return Spa(frames.start), Spa(frames.start + 3 * PAGE)
