"""A virtual CPU: its VMCB in memory, and VMRUN on a core.

Execution comes with the engine; until then what a guest can do with memory is done through the reference walker.

Paper: memory-encryption.md §10.1 (VMCB), §8 rules 3 and 5 (who chooses the ASID).
"""

from __future__ import annotations

from cbit.cpu.control import Efer
from cbit.cpu.guest_view import GuestView
from cbit.cpu.vmcb import Enable, Vmcb
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE

RESET_CR0 = 0x10  # caches on, paging and protection off: launch-inputs.md §6.1


class Vcpu:
    """One virtual CPU of a guest, in its reset state: paging is off.

    Attributes:
        vmcb_at: where its VMCB lies; the hypervisor may write there what it likes.
    """

    def __init__(self, vm: Vm, *, asid: int, sev: bool) -> None:
        self._host = vm.host
        self.vmcb_at = vm.host.frames.take_page()
        self.write(
            Vmcb(
                asid=asid,
                enable=Enable.NP_ENABLE | (Enable.SEV if sev else Enable(0)),
                ncr3=vm.tables.ncr3,
                cr0=RESET_CR0,
                efer=Efer.SVME,
            )
        )

    def read(self) -> Vmcb:
        """Read the VMCB."""
        return Vmcb.parse(self._host.read(self.vmcb_at, PAGE), canonical=False)

    def write(self, vmcb: Vmcb) -> None:
        """Write the VMCB: nothing but ranges is checked, and that at VMRUN."""
        self._host.write(self.vmcb_at, bytes(vmcb))

    def run(self, *, core: int = 0) -> GuestView:
        """VMRUN: the core is the guest's until its #VMEXIT (errors as ``Core.vmrun``)."""
        return self._host.machine.cores[core].vmrun(self.vmcb_at)

    def free(self) -> None:
        """Give the VMCB's frame back."""
        self._host.frames.give_back(range(self.vmcb_at, self.vmcb_at + PAGE, PAGE))
