"""A virtual CPU: its VMCB in memory, and VMRUN on a core.

Execution comes with the engine; until then the reference walker does what a guest can do with memory.

Paper: memory-encryption.md §10.1 (VMCB), §7 rule 3 (who flushes), §8 rules 3 and 5 (who chooses the ASID).
"""

from __future__ import annotations

from typing import Final

from cbit.cpu.control import Efer
from cbit.cpu.guest_view import GuestView
from cbit.cpu.tlb import TlbControl
from cbit.cpu.vmcb import Enable, Vmcb
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Spa

RESET_CR0: Final = 0x10  #: caches on, paging and protection off: launch-inputs.md §6.1
_TLB_CONTROL: Final = Vmcb.FIELDS["tlb_control"].offset


class Vcpu:
    """One virtual CPU of a guest, in its reset state: paging is off.

    Its VMCB's frame goes back with ``free``, or with the guest's memory.

    Args:
        vm: the guest.
        asid: another ASID than the guest's own.
        sev: whether the VMCB asks for SEV, if that is not what the guest's protection says.

    Attributes:
        vmcb_at: where its VMCB lies; the hypervisor may write there what it likes.
    """

    def __init__(self, vm: Vm, *, asid: int | None = None, sev: bool | None = None) -> None:
        self._vm = vm
        self._host = vm.host
        sev = vm.protection is Protection.SEV if sev is None else sev
        vmcb = Vmcb(
            asid=vm.asid if asid is None else asid,
            enable=Enable.NP_ENABLE | (Enable.SEV if sev else Enable(0)),
            ncr3=vm.tables.ncr3,
            cr0=RESET_CR0,
            efer=Efer.SVME,
        )
        self.vmcb_at = vm.take_page()
        self.write(vmcb)

    def read(self) -> Vmcb:
        """Read the VMCB."""
        return Vmcb.parse(self._host.read(self.vmcb_at, PAGE), canonical=False)

    def write(self, vmcb: Vmcb) -> None:
        """Write the VMCB: nothing but ranges is checked, and that at VMRUN."""
        self._host.write(self.vmcb_at, bytes(vmcb))

    def run(self, *, core: int = 0) -> GuestView:
        """VMRUN: the core is the guest's until its #VMEXIT (errors as ``Core.vmrun``).

        An ASID that another VMCB used on this core is flushed from its TLB: hardware does not see the change.
        A hypervisor that withholds the flush executes VMRUN by itself.
        """
        asid = self.read().asid
        last = self._host.last_vmcb.get((core, asid))
        control = TlbControl.NOTHING if last == self.vmcb_at else TlbControl.THIS_ASID
        self._host.write(Spa(self.vmcb_at + _TLB_CONTROL), bytes([control]))
        view = self._host.machine.cores[core].vmrun(self.vmcb_at)
        self._host.last_vmcb[core, asid] = self.vmcb_at
        return view

    def free(self) -> None:
        """Give the VMCB's frame back."""
        self._host.forget(self.vmcb_at)
        self._vm.give_back_page(self.vmcb_at)
