"""A victim with two virtual CPUs on one core: a program of the adversary's on one, a service on the other.

The execution engine empties its first-level TLB at each VMRUN, so these two go through the reference model of
the walk, whose TLB forgets nothing by itself.

    linear 0x150000 is the page of a password: in the service's tables its own, in the program's another one

Paper: attacks.md A15; memory-encryption.md §7.
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.attacks.lab.guest import Program, Victim, tables
from cbit.cpu.control import Cr0, Cr4, Efer
from cbit.cpu.guest_view import GuestView
from cbit.cpu.tlb import TlbControl
from cbit.cpu.vmcb import Vmcb
from cbit.hypervisor.vcpu import Vcpu
from cbit.spec.address import PAGE, Gva, Spa

PASSWORD: Final = 0x150000  #: linear address, in both address spaces
PROGRAMS_PAGE, SERVICES_PAGE = 0x20000, 0x21000
PROGRAMS_TABLES, SERVICES_TABLES = 0x30000, 0x38000
_SIZE: Final = 16


def victim(password: bytes, *, c_bit: int | None) -> Program:
    """Lay out both address spaces, and the password."""
    spaces = []
    for top, page in ((PROGRAMS_TABLES, PROGRAMS_PAGE), (SERVICES_TABLES, SERVICES_PAGE)):
        laid = bytearray(tables(c_bit=c_bit, top=top))
        c = 1 << c_bit if c_bit is not None else 0
        struct.pack_into("<Q", laid, 3 * PAGE + 8 * (PASSWORD // PAGE), page | c | 0x67)
        spaces.append((top, bytes(laid)))
    return Program("hlt", data=(*spaces, (SERVICES_PAGE, password)))


class TwoCpus:
    """The hypervisor's hand on the two virtual CPUs.

    Args:
        guest: the victim.
        c_bit: where its C-bit is.
        flushes: the processor flushes by itself when another virtual CPU runs.
    """

    def __init__(self, guest: Victim, *, c_bit: int, flushes: bool) -> None:
        self._guest, self._flushes = guest, flushes
        self._core = guest.vm.host.machine.cores[0]
        self._program = self._cpu(PROGRAMS_TABLES | 1 << c_bit)
        self._service = self._cpu(SERVICES_TABLES | 1 << c_bit)

    def _cpu(self, cr3: int) -> Vcpu:
        cpu = Vcpu(self._guest.vm)
        cpu.write(
            cpu.read().replace(
                cr0=int(Cr0.PE | Cr0.PG),
                cr3=cr3,
                cr4=int(Cr4.PAE),
                efer=int(Efer.SVME | Efer.LME | Efer.LMA | Efer.NXE),
            )
        )
        return cpu

    def _run(self, cpu: Vcpu) -> GuestView:
        """VMRUN without asking for a flush, which hardware does not see to."""
        control = TlbControl.THIS_ASID if self._flushes else TlbControl.NOTHING
        at = Spa(cpu.vmcb_at + Vmcb.FIELDS["tlb_control"].offset)
        self._guest.vm.host.write(at, bytes([control]))
        return self._core.vmrun(cpu.vmcb_at)

    def flush(self) -> None:
        """Flush the ASID's translations once, as a hypervisor may at any time."""
        cpu = self._program
        at = Spa(cpu.vmcb_at + Vmcb.FIELDS["tlb_control"].offset)
        self._guest.vm.host.write(at, bytes([TlbControl.THIS_ASID]))
        with self._core.vmrun(cpu.vmcb_at):
            pass

    def program_stores(self, data: bytes) -> None:
        """Let the unprivileged program store at the password's linear address, in its own address space."""
        with self._run(self._program) as view:
            view.write(Gva(PASSWORD), data)

    def ask(self, password: bytes, secret_at: int, length: int) -> bytes:
        """Let the service compare a password with its own, and answer with the secret or with nothing."""
        with self._run(self._service) as view:
            good = view.read(Gva(PASSWORD), _SIZE) == password
            return view.read(Gva(secret_at), length) if good else b""
