"""VMRUN: read the VMCB, check it, flush what the hypervisor asked for, enter guest mode.

Paper: memory-encryption.md §7 rule 3 (no other flush), §8 rules 1-5.
"""

from __future__ import annotations

import dataclasses

from cbit.cpu.faults import ExitCode, VmexitInvalid
from cbit.cpu.guest_view import GuestHost, GuestView
from cbit.cpu.mmu import Mmu
from cbit.cpu.nested import NestedWalker, World
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.tlb import LastRuns, Tag, Tlb, VmMode
from cbit.cpu.vmcb import CLEAN_ASID, Enable, HostState, Vmcb, guest_rules, refusal, require_modelled, vm_mode
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId
from cbit.trace import Trace


class VmcbPage:
    """A VMCB where it lies: in system physical memory, under the key that its address asked for."""

    def __init__(self, port: PhysicalPort, spa: Spa, key_id: KeyId) -> None:
        self.port = port
        self.spa = spa
        self._key_id = key_id

    def load(self) -> Vmcb:
        """Read the fields; other bytes may hold anything."""
        return Vmcb.parse(self.port.read(self.spa, PAGE, self._key_id), canonical=False)

    def store(self, vmcb: Vmcb, *names: str) -> None:
        """Write some fields, and no other byte."""
        for name in names:
            field = Vmcb.FIELDS[name]
            self.port.write(Spa(self.spa + field.offset), field.encode(getattr(vmcb, name)), self._key_id)


class LastVmcb:
    """What a core remembers of the VMCB that ran last: its ASID, while clean bit 2 vouches for it.

    Mutable.

    Attributes:
        runs: the last VMCB of each ASID, for a core that flushes when it is another.
    """

    def __init__(self) -> None:
        self._spa: Spa | None = None
        self._asid = 0
        self.runs = LastRuns()

    def with_asid(self, vmcb: Vmcb, spa: Spa) -> Vmcb:
        """Return the VMCB with the ASID that this VMRUN uses.

        MODEL CHOICE: with the clean bit set, the same VMCB on the same core keeps the ASID it had; with
        the bit cleared the core looks, and obeys.

        Paper: memory-encryption.md §8 rule 5.
        """
        unchanged = vmcb.clean & CLEAN_ASID and self._spa == spa
        return vmcb.replace(asid=self._asid) if unchanged else vmcb

    def remember(self, vmcb: Vmcb, spa: Spa) -> None:
        """Note the ASID that is running now."""
        self._spa, self._asid = spa, vmcb.asid


def vmrun(
    page: VmcbPage, last: LastVmcb, *, host: HostState, tlb: Tlb, core: GuestHost, trace: Trace
) -> GuestView:
    """Enter guest mode.

    Raises:
        VmexitInvalid: refused; EXITCODE in the VMCB says so too.
        NotModelled: what the model cannot run.
    """
    # 1. The ASID is reloaded unless the hypervisor vouches that it did not change.
    vmcb = last.with_asid(page.load(), page.spa)
    # 2. Checks.
    if why := refusal(vmcb, host):
        page.store(vmcb.replace(exit_code=ExitCode.INVALID), "exit_code")
        trace.emit("cpu.core", "VMRUN: VMEXIT_INVALID", why, core=core.index, asid=vmcb.asid)
        raise VmexitInvalid(why)
    require_modelled(vmcb, host)
    # 3. The flush that the VMCB asks for.  There is no other: hardware does not see that this VMCB is a
    # new one, if it has not learnt to.
    control = vmcb.tlb_control
    if host.mitigations.flushes_for_another_vcpu:
        control = last.runs.flush_for(vmcb.asid, page.spa, control)
    tlb.flush(control, core=core.index, asid=vmcb.asid)
    # 4. Enter.
    last.remember(vmcb, page.spa)
    world = _world(vmcb, host)
    walker = NestedWalker(page.port, world)
    tag = Tag(asid=vmcb.asid, core=core.index, mode=world.mode)
    mmu = Mmu(page.port, tlb, tag=tag, translator=walker, controls=vmcb.controls)
    trace.emit("cpu.core", "VMRUN", core=core.index, asid=vmcb.asid, mode=world.mode.value)
    return GuestView(core=core, page=page, vmcb=vmcb, mmu=mmu, walker=walker, trace=trace)


def _world(vmcb: Vmcb, host: HostState) -> World:
    mode = vm_mode(vmcb, encryption_on=host.encryption_on)
    return World(
        asid=vmcb.asid,
        mode=mode,
        vte=mode is VmMode.SEV and Enable.VTE in vmcb.enable,
        # The nested tables have the format of the host's own.
        nested=dataclasses.replace(host.controls, cr3=vmcb.ncr3, ac=False),
        host_rules=host.rules,
        guest_rules=guest_rules(vmcb, host),
    )
