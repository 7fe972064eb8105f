"""A guest of the adversary's own: one page of code, and a window onto a page of the host's choice.

It executes, or a reference model of its page walks does what its program would.
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
from cbit.guest.builtin.image import helper
from cbit.guest.builtin.interface import HELPER, WINDOW, flat_state
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.small_guest import SmallGuest, Turn
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gva, Spa
from cbit.spec.policy import Policy

CODE: Final = HELPER
PATIENCE: Final = 100_000  #: blocks of its code; under another ASID's key it may well not end by itself
PROGRAM: Final = b"\xa1" + WINDOW.to_bytes(4, "little") + b"\xf4"  # mov eax, [WINDOW]; hlt


@dataclass(frozen=True, slots=True)
class HelperGuest:
    """The helper; as a context manager it ends with the block.

    Attributes:
        vm: its memory.
        sev: its firmware context, with SEV.
        executes: whether its program executes.
    """

    vm: Vm
    sev: SevGuest | None
    executes: bool = False

    @classmethod
    def start(
        cls,
        host: Host,
        protection: Protection,
        *,
        onto: Spa,
        executes: bool = False,
        policy: Policy = Policy.NODBG,
        share_with: SevGuest | None = None,
    ) -> HelperGuest:
        """Start the helper with its window onto one page of system memory.

        Args:
            host: where.
            protection: how it is protected itself.
            onto: what its window shows.
            executes: whether its program executes.
            policy: its policy, with SEV.
            share_with: a guest whose memory key it gets, its policy permitting.

        Raises:
            NoEngine: it should execute, and this computer cannot.
            FirmwareError: the key is not shared.
            NoAsid, OutOfMemory: the host has no room for another guest; nothing is left behind.
        """
        vm, sev = Vm(host, protection), None
        try:
            vm.add_memory(CODE, PAGE)
            vm.load(CODE, helper() if executes else PROGRAM)
            vm.tables.map(WINDOW, range(onto, onto + PAGE, PAGE), c=vm.c)
            if protection is Protection.SEV:
                sev = SevGuest.start(vm, policy=int(policy), share_with=share_with)
                sev.update(CODE, PAGE)
                sev.measure()
                sev.finish()
        except BaseException:
            cls(vm, sev).end()
            raise
        return cls(vm, sev, executes)

    def run(self, offset: int, length: int, *, asid: int | None = None) -> tuple[bytes, str]:
        """Run the program under the guest's own ASID, or under another that its VMCB names.

        Returns:
            Every byte that came out of it, and how it went.
        """
        return self._execute(offset, length, asid) if self.executes else self._walk(offset, length, asid)

    def _execute(self, offset: int, length: int, asid: int | None) -> tuple[bytes, str]:
        """Execute the program; what it hands out is its answers, and its registers when it ends."""
        guest = SmallGuest(self.vm, flat_state(CODE), asid=asid)
        said = guest.requests.listen(offset, -(-length // 4))
        try:
            turn = guest.turn(PATIENCE)
        except VmExit as refusal:
            return b"", f"{type(refusal).__name__}: {refusal}"
        if said.status is not None:
            return said.data, f"its program ran and handed out {len(said.data)} bytes"
        how = guest.stopped if turn is Turn.ENDED else f"after {PATIENCE} blocks {turn.value}"
        return said.data + guest.registers, f"its program became garbage: {how}"

    def _walk(self, offset: int, length: int, asid: int | None) -> tuple[bytes, str]:
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
