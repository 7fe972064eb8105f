"""Guest mode: from VMRUN to #VMEXIT.

A `GuestView` is what software inside the guest can do with memory: under the VMCB's ASID, mode and tables,
and nothing else.  It ends with #VMEXIT, also by itself at a nested page fault, and is useless afterwards.

Paper: memory-encryption.md §2.2 (SEV_STATUS), §4.2, §6.1 rule 3 (the ASID), §7 (TLB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Protocol, Self

from cbit.cpu.control import LONG_MODE, Controls, with_bit
from cbit.cpu.cpuid import Encryption, EncryptionFeatures
from cbit.cpu.faults import ExitCode, Fault, GeneralProtection, NestedPageFault, PageFault, WrongCoreMode
from cbit.cpu.mmu import Mmu, Request
from cbit.cpu.msr import Msr, SevStatus
from cbit.cpu.nested import NestedWalker
from cbit.cpu.paging import Access, Kind, Leaf
from cbit.cpu.tlb import VmMode
from cbit.cpu.translation import Translation, pieces
from cbit.cpu.vmcb import RFLAGS_AC, Vmcb
from cbit.spec.address import PAGE, Gpa, Gva
from cbit.spec.errors import NotModelled
from cbit.trace import Trace

_USER_CPL: Final = 3


class GuestHost(Protocol):
    """What guest mode needs of the core that it runs on."""

    @property
    def index(self) -> int:
        """Which logical core."""
        ...

    @property
    def features(self) -> EncryptionFeatures:
        """The part's numbers."""
        ...

    def runs(self, guest: GuestView) -> bool:
        """Whether this turn lasts."""
        ...

    def leave_guest_mode(self) -> None:
        """Return to the host."""
        ...


class StoredVmcb(Protocol):
    """The VMCB in memory, as #VMEXIT writes it."""

    def store(self, vmcb: Vmcb, *names: str) -> None:
        """Write some fields, and no other byte."""
        ...


class GuestView:
    """A running guest, as seen from inside.

    Mutable: its control registers.  As a context manager it ends with a
    physical interrupt.

    Attributes:
        asid: the ASID that tags its accesses.
        mode: SEV or not.
    """

    def __init__(
        self, *, core: GuestHost, page: StoredVmcb, vmcb: Vmcb, mmu: Mmu, walker: NestedWalker, trace: Trace
    ) -> None:
        """Stand in guest mode; VMRUN has done its checks."""
        self.asid: Final = vmcb.asid
        self.mode: Final = mmu.tag.mode
        self._core = core
        self._page = page
        self._vmcb = vmcb
        self._mmu = mmu
        self._walker = walker
        self._trace = trace

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running:
            self.vmexit(ExitCode.INTR)

    @property
    def running(self) -> bool:
        """Whether the guest's turn lasts."""
        return self._core.runs(self)

    @property
    def controls(self) -> Controls:
        """The guest's control registers."""
        return self._mmu.controls

    # --- accesses, at the VMCB's privilege level

    def read(self, gva: Gva, length: int) -> bytes:
        """Load bytes from a guest linear address (a guest physical one while the guest's paging is off).

        Raises:
            PageFault, GeneralProtection: the guest's own fault; it runs on.
            NestedPageFault: the nested tables refuse: #VMEXIT has happened.
            EncryptedMmio: a key on a device's registers.
            WrongCoreMode: the guest's turn is over.
        """
        with self._inside():
            return self._mmu.read(gva, length, self._access(Kind.READ))

    def write(self, gva: Gva, data: bytes) -> None:
        """Store bytes (errors as `read`)."""
        with self._inside():
            self._mmu.write(gva, data, self._access(Kind.WRITE))

    def fetch(self, gva: Gva, length: int) -> bytes:
        """Fetch instruction bytes: private in a SEV guest, whatever the C-bit says (errors as `read`)."""
        with self._inside():
            return self._mmu.read(gva, length, self._access(Kind.FETCH))

    def read_physical(self, address: int, length: int) -> bytes:
        """Load bytes as through a long-mode leaf that holds ``address``, C-bit included (errors as `read`).

        For guests that have no tables of their own; past the TLB.
        """
        with self._inside():
            return self._mmu.load(self._through_leaf(address, length, Kind.READ))

    def write_physical(self, address: int, data: bytes) -> None:
        """Store bytes as `read_physical` loads them (errors as `read`)."""
        with self._inside():
            self._mmu.store(self._through_leaf(address, len(data), Kind.WRITE), data)

    def walk(self, gva: Gva) -> Translation:
        """Translate by both sets of tables, past the TLB (errors as `read`)."""
        with self._inside():
            return self._mmu.walk(gva)

    # --- registers

    def mov_cr0(self, value: int) -> None:
        """Execute MOV CR0 in the guest."""
        with self._inside():
            self._mmu.move_control(cr0=value)

    def mov_cr3(self, value: int) -> None:
        """Execute MOV CR3 in the guest: flushes its own entries, global pages excepted."""
        with self._inside():
            self._mmu.move_control(cr3=value)

    def mov_cr4(self, value: int) -> None:
        """Execute MOV CR4 in the guest."""
        with self._inside():
            self._mmu.move_control(cr4=value)

    def invlpg(self, gva: Gva) -> None:
        """Drop the guest's own translations of one page."""
        with self._inside():
            self._mmu.invalidate_page(gva)

    def rdmsr(self, number: int) -> int:
        """Read SEV_STATUS: what this VMRUN enabled; the hypervisor cannot intercept it.

        Raises:
            GeneralProtection: a part without SEV.
            NotModelled: any other register: those are the hypervisor's to emulate.

        Paper: memory-encryption.md §2.2.
        """
        with self._inside():
            if number != Msr.SEV_STATUS:
                raise NotModelled(f"guest RDMSR {number:#x}")
            if Encryption.SEV not in self._core.features.eax:
                raise GeneralProtection("no SEV_STATUS on a part without SEV")
            return int(SevStatus.SEV if self.mode is VmMode.SEV else SevStatus(0))

    def wrmsr(self, number: int, value: int) -> None:
        """Refuse: SEV_STATUS is read-only, the rest is the hypervisor's (errors as `rdmsr`)."""
        with self._inside():
            if number != Msr.SEV_STATUS:
                raise NotModelled(f"guest WRMSR {number:#x}")
            raise GeneralProtection(f"WRMSR SEV_STATUS: read-only (value {value:#x})")

    # --- the end

    def vmexit(self, exit_code: ExitCode, *, exit_info_1: int = 0, exit_info_2: int = 0) -> None:
        """Do #VMEXIT: save the guest's state in the VMCB, and give the core back to the host.

        Raises:
            WrongCoreMode: the guest's turn is over already.
        """
        self._require_running()
        controls = self._mmu.controls
        after = self._vmcb.replace(
            exit_code=exit_code,
            exit_info_1=exit_info_1,
            exit_info_2=exit_info_2,
            cr0=controls.cr0,
            cr3=controls.cr3,
            cr4=controls.cr4,
            efer=controls.efer,
            rflags=with_bit(self._vmcb.rflags, RFLAGS_AC, on=controls.ac),
        )
        self._page.store(after, *Vmcb.written_back())
        self._core.leave_guest_mode()
        self._trace.emit("cpu.core", f"#VMEXIT({exit_code.name})", core=self._core.index, asid=self.asid)

    # --- inside

    def _require_running(self) -> None:
        if not self.running:
            raise WrongCoreMode("this guest's turn is over: VMRUN again")

    def _access(self, kind: Kind) -> Access:
        return Access(kind, user=self._vmcb.cpl == _USER_CPL)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Let a nested fault inside the block be #VMEXIT, and a page fault set CR2."""
        self._require_running()
        try:
            yield
        except NestedPageFault as fault:
            self.vmexit(ExitCode.NPF, exit_info_1=fault.exit_info_1, exit_info_2=fault.exit_info_2)
            raise
        except Fault as fault:
            if isinstance(fault, PageFault):
                self._vmcb = self._vmcb.replace(cr2=fault.address)
            what = type(fault).__name__
            self._trace.emit("cpu.core", f"guest: {what}", str(fault), core=self._core.index, asid=self.asid)
            raise

    def _through_leaf(self, address: int, length: int, kind: Kind) -> list[Request]:
        start, c = self._walker.rules.split(address)
        requests = []
        for gpa, count in pieces(start, length):
            leaf = Leaf(base=gpa & -PAGE, size=PAGE, c=c)
            found = self._walker.second_level(Gpa(gpa), leaf, kind)
            requests.append(Request(found.spa(gpa), count, self._walker.key(kind.use, found, LONG_MODE)))
        return requests
