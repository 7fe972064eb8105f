"""A guest of the adversary's own: one page of code, and a window onto a page of the host's choice.

The CPU fetches the program before it obeys it.  Under another ASID the bytes that arrive in its decoder are
garbage, so no load happens: the victim's key is in the machine, and the helper cannot make use of it.

Paper: attacks.md A14 (helper VM); memory-encryption.md §4.2 (fetches are always private), §8 rule 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from cbit.cpu.faults import Fault, VmExit
from cbit.cpu.guest_view import GuestView
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa, Gva, Spa
from cbit.spec.policy import Policy

CODE: Final = Gpa(0x1000)
WINDOW: Final = Gpa(0x100000)
PROGRAM: Final = b"\xa1" + WINDOW.to_bytes(4, "little") + b"\xf4"  # mov eax, [WINDOW]; hlt


@dataclass(frozen=True, slots=True)
class HelperGuest:
    """The helper; as a context manager it ends with the block.

    Attributes:
        vm: its memory.
        sev: its firmware context, with SEV.
    """

    vm: Vm
    sev: SevGuest | None

    @classmethod
    def start(cls, host: Host, protection: Protection, *, onto: Spa) -> HelperGuest:
        """Start the helper with its window onto one page of system memory.

        Raises:
            NoAsid, OutOfMemory: the host has no room for another guest; nothing is left behind.
        """
        vm, sev = Vm(host, protection), None
        try:
            vm.add_memory(CODE, PAGE)
            vm.load(CODE, PROGRAM)
            vm.tables.map(WINDOW, range(onto, onto + PAGE, PAGE), c=vm.c)
            if protection is Protection.SEV:
                sev = SevGuest.start(vm, policy=int(Policy.NODBG))
                sev.update(CODE, PAGE)
                sev.measure()
                sev.finish()
        except BaseException:
            cls(vm, sev).end()
            raise
        return cls(vm, sev)

    def run(self, offset: int, length: int, *, asid: int | None = None) -> tuple[bytes, str]:
        """Run the program under the guest's own ASID, or under another that its VMCB names.

        Returns:
            Every byte that came out of it, and how it went.
        """
        vcpu = Vcpu(self.vm, asid=asid)
        try:
            with vcpu.run() as view:
                return _run_program(view, offset, length)
        except (VmExit, Fault) as fault:
            return b"", f"{type(fault).__name__}: {fault}"
        finally:
            vcpu.free()

    def end(self) -> None:
        """End the guest."""
        if self.sev is not None:
            self.sev.end()
        else:
            self.vm.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _run_program(view: GuestView, offset: int, length: int) -> tuple[bytes, str]:
    """Do what the fetched instructions say: nothing is loaded unless the load arrives intact."""
    fetched = view.fetch(Gva(CODE), len(PROGRAM))
    if fetched != PROGRAM:
        return fetched, f"fetched {fetched.hex()} in place of its program {PROGRAM.hex()}: it crashes"
    return view.read(Gva(WINDOW + offset), length), "its program ran and loaded from the window"
