"""Victims that execute: a small 64-bit program in measured memory, and the virtual CPU that runs it.

    linear 0 … 2 MiB       the guest's memory with C=1: private
    linear 2 … 4 MiB       the same memory with C=0: shared with the host

    GPA  0x1000 page tables   0x6000 GDT   0x8000 stack   0xA000 the owner's secret
         0x10000 program      0x40000 what is shared

The image is public; what the owner seals into it is not.  Without SEV there is no C-bit, and the owner has to
hand its secret to the host.

Paper: sev-api.md §7 (launch); memory-encryption.md §4.2, §10.1; launch-inputs.md §6.1 (reset state).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attested import digest_of
from cbit.attacks.launch import launch
from cbit.attacks.tenant import Tenant, expect_memory
from cbit.cpu.engine.control_block import REQUIRED, At, Exit, Intercept
from cbit.cpu.engine.processor import Context
from cbit.cpu.tlb import TlbControl
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import MIB, PAGE, Gpa, Spa
from cbit.spec.errors import CbitError
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest

C_BIT: Final = 39  #: of guests that execute, whatever the profile
TABLES, GDT, STACK_TOP, SECRET, CODE, SHARED = 0x1000, 0x6000, 0x9000, 0xA000, 0x10000, 0x40000
VIEW: Final = 2 * MIB  #: linear address of the C=0 view
SIZE: Final = 2 * MIB
_P, _W, _U, _A, _D = 1, 2, 4, 0x20, 0x40
_TLB_CONTROL: Final = 0x05C
CPUID, HLT, IOIO, MSR, SHUTDOWN, VMMCALL, NPF, INTR, DB, PAGE_FAULT = (
    *(0x72, 0x78, 0x7B, 0x7C, 0x7F, 0x81, 0x400, 0x60, 0x41, 0x4E),
)
NAMES: Final = {
    CPUID: "CPUID",
    HLT: "HLT",
    IOIO: "IOIO",
    MSR: "MSR",
    SHUTDOWN: "SHUTDOWN",
    VMMCALL: "VMMCALL",
    NPF: "NPF",
    INTR: "INTR",
    DB: "#DB",
    PAGE_FAULT: "#PF",
}


class Crashed(CbitError):
    """The victim is at its end: a triple fault, or an exit that nobody understands."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a victim runs.

    Attributes:
        source: GNU assembler, Intel syntax; origin at `CODE`.
        data: further contents of the image, by guest physical address; all below the shared page.
        size: bytes of guest memory.
    """

    source: str
    data: tuple[tuple[int, bytes], ...] = ()
    size: int = SIZE

    def image(self, *, c_bit: int | None) -> bytes:
        """Lay the measured image out, from `TABLES` on."""
        pieces = [(TABLES, tables(c_bit=c_bit)), (GDT, _GDT), (CODE, assemble(self.source, CODE)), *self.data]
        end = max(at + len(data) for at, data in pieces)
        image = bytearray(-(-(end - TABLES) // PAGE) * PAGE)
        for at, data in pieces:
            image[at - TABLES : at - TABLES + len(data)] = data
        return bytes(image)


_GDT: Final = struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)


def tables(*, c_bit: int | None, top: int = TABLES) -> bytes:
    """Make five pages of page tables: the private view and the shared one."""
    c, use = 1 << c_bit if c_bit is not None else 0, _P | _W | _U | _A
    pages = [bytearray(PAGE) for _ in range(5)]
    struct.pack_into("<Q", pages[0], 0, top + PAGE | c | use)
    struct.pack_into("<Q", pages[1], 0, top + 2 * PAGE | c | use)
    struct.pack_into("<2Q", pages[2], 0, top + 3 * PAGE | c | use, top + 4 * PAGE | c | use)
    for table, leaf_c in ((3, c), (4, 0)):
        for page in range(512):
            struct.pack_into("<Q", pages[table], 8 * page, page << 12 | leaf_c | use | _D)
    return b"".join(pages)


class CpuAtExit:
    """A virtual CPU as its hypervisor has it between two runs: a VMCB in memory, other registers beside it.

    Mutable.

    Attributes:
        core: what executes it.
        vmcb_at: where the VMCB lies.
        context: general registers but rAX and rSP, which are in the VMCB.
        exits: how many times it has left the guest: what figures are made of.
        left_by: the last exit, as long as nobody has stepped over its instruction.
    """

    def __init__(self, host: Host, vmcb_at: Spa, context: Context) -> None:
        self._host = host
        self.core = host.machine.cores[0]
        self.vmcb_at = vmcb_at
        self.context = context
        self.exits = 0
        self.left_by: Exit | None = None
        self._flushes = False

    def get(self, at: int, form: str = "Q") -> int:
        """Read a field of the VMCB."""
        raw = self._host.read(Spa(self.vmcb_at + at), struct.calcsize("<" + form))
        return int(struct.unpack("<" + form, raw)[0])

    def set(self, at: int, value: int, form: str = "Q") -> None:
        """Write a field of the VMCB."""
        self._host.write(Spa(self.vmcb_at + at), struct.pack("<" + form, value))

    def run(self, *, blocks: int | None = 2_000_000) -> Exit:
        """VMRUN until #VMEXIT; a physical interrupt comes after so many blocks of code."""
        self.left_by = exit = self.core.execute(self.vmcb_at, self.context, blocks=blocks)
        self.exits += 1
        if self._flushes:
            self._flushes = False
            self.set(_TLB_CONTROL, TlbControl.NOTHING, "B")
        return exit

    def flush(self) -> None:
        """Ask for a flush of the ASID's translations at the next VMRUN, and only there."""
        self.set(_TLB_CONTROL, TlbControl.THIS_ASID, "B")
        self._flushes = True


class VirtualCpu(CpuAtExit):
    """A virtual CPU with a VMCB of the lab's own."""

    def __init__(self, vm: Vm, *, asid: int, sev: bool, cr3: int, rip: int, rsp: int = STACK_TOP) -> None:
        super().__init__(vm.host, vm.take_page(), vm.host.machine.cores[0].new_context())
        self._vm = vm
        self._host.write(self.vmcb_at, self._first_vmcb(asid=asid, sev=sev, cr3=cr3, rip=rip, rsp=rsp))

    def _first_vmcb(self, *, asid: int, sev: bool, cr3: int, rip: int, rsp: int) -> bytes:
        vmcb = bytearray(PAGE)
        maps = self._host.frames.take(5 * PAGE)
        self._host.write(Spa(maps.start), b"\xff" * 5 * PAGE)  # every port and every register is intercepted
        for form, at, value in (
            ("Q", At.INTERCEPTS, int(REQUIRED | Intercept.VMRUN | Intercept.VMMCALL)),
            ("Q", At.IOPM, maps.start),
            ("Q", At.MSRPM, maps.start + 3 * PAGE),
            ("I", 0x058, asid),
            ("Q", 0x090, 1 | (2 if sev else 0)),
            ("Q", At.NCR3, self._vm.tables.ncr3),
            ("Q", 0x4D0, 0x1D01),  # SCE, LME, LMA, NXE, SVME
            ("Q", 0x548, 0x6A0),
            ("Q", 0x550, cr3),
            ("Q", 0x558, 0x8005_0033),
            ("Q", 0x570, 2),
            ("Q", 0x578, rip),
            ("Q", 0x5D8, rsp),
        ):
            struct.pack_into("<" + form, vmcb, at, value)
        for index in range(4):
            selector, attributes = (0x10, 0xA9B) if index == 1 else (0x18, 0xC93)
            struct.pack_into("<HHIQ", vmcb, 0x400 + 16 * index, selector, attributes, 0xFFFFFFFF, 0)
        struct.pack_into("<HHIQ", vmcb, 0x460, 0, 0, 0xFF, GDT)
        struct.pack_into("<HHIQ", vmcb, 0x480, 0, 0, 0, 0)
        return bytes(vmcb)


@dataclass(slots=True)
class Victim:
    """A guest as the adversary's tools meet it.

    Mutable: it runs.

    Attributes:
        vm: its memory.
        cpu: its virtual CPU.
        sev: its firmware context, with SEV.
    """

    vm: Vm
    cpu: CpuAtExit
    sev: SevGuest | None

    @property
    def pages(self) -> list[int]:
        """Guest physical addresses of all pages that the host gave it."""
        return [gpa for part in self.vm.regions for gpa in range(part.gpa, part.gpa + part.size, PAGE)]

    def emulate(self, exit: Exit) -> bool:
        """Do what the devices do at an exit that is theirs, and say whether it was; here are none."""
        return False

    @property
    def encrypted(self) -> bool:
        """Whether it has a key of its own."""
        return self.sev is not None

    def spa(self, gpa: int, length: int = 1) -> Spa:
        """Where a guest physical address lies, before anybody remapped it."""
        return self.vm.spa(Gpa(gpa), length)

    def peek(self, gpa: int, length: int) -> bytes:
        """Read private memory with the guest's key: the power that only the lab has."""
        return self.vm.host.machine.memory.read(self.spa(gpa, length), length, self._key)

    def end(self) -> None:
        """End it: its memory goes back to the host."""
        if self.sev is not None:
            self.sev.end()
        else:
            self.vm.destroy()

    def cached_pages(self) -> dict[int, bytes]:
        """Copies of its pages in the caches, by guest physical address: a power of the lab's as well."""
        cached = {copy.page for copy in self.vm.host.machine.memory.snapshot() if copy.key_id == self._key}
        return {gpa: self.peek(gpa, PAGE) for gpa in self.pages if self.spa(gpa) in cached}

    @property
    def _key(self) -> KeyId:
        return guest(self.sev.asid) if self.sev else HOST if self.vm.c else UNENCRYPTED


@dataclass(slots=True)
class Guest(Victim):
    """A victim with a small program.

    Attributes:
        program: what it runs.
        image: what was launched.
    """

    program: Program
    image: bytes

    def until_idle(self) -> None:
        """Let an honest hypervisor run it until it halts.

        Raises:
            Crashed: it does something else.
        """
        exit = self.cpu.run()
        if exit.code != HLT:
            raise Crashed(f"the victim was to halt: {describe(exit)}")
        self.cpu.set(0x578, self.cpu.get(0x578) + 1)


def describe(exit: Exit) -> str:
    """Say what an exit is."""
    name = NAMES.get(exit.code, f"{exit.code:#x}")
    return f"#VMEXIT({name}), info {exit.info_1:#x} {exit.info_2:#x}"


def boot(
    host: Host,
    protection: Protection,
    program: Program,
    secret: bytes,
    *,
    tenant: Tenant,
    entropy: Entropy,
    pieces: Sequence[tuple[int, bytes]] | None = None,
) -> Guest:
    """Start a victim; with SEV its owner verifies the platform, measures the image and seals the secret.

    Args:
        host: where.
        protection: how.
        program: what it runs.
        secret: what its owner gives it.
        tenant: its owner.
        entropy: the owner's randomness.
        pieces: what the host loads and measures, in this order, each at its guest address; by default the
            image, as its owner means it.

    Raises:
        FirmwareError, BadMeasurement, Untrusted: the launch fails.
        NoEngine: this computer cannot execute guests.
    """
    sev_mode = protection is Protection.SEV
    image = program.image(c_bit=C_BIT if sev_mode else None)
    vm = Vm(host, protection)
    vm.add_memory(Gpa(0), program.size)
    pieces = [(TABLES, image)] if pieces is None else pieces
    tenant = replace(tenant, image=image, expected=expect_memory(image))
    sev = install(vm, pieces, secret, SECRET, tenant=tenant, entropy=entropy)
    c = 1 << C_BIT if sev_mode else 0
    cpu = VirtualCpu(vm, asid=vm.asid, sev=sev_mode, cr3=TABLES | c, rip=CODE)
    return Guest(vm, cpu, sev, program, image)


def install(
    vm: Vm,
    pieces: Sequence[tuple[int, bytes]],
    secret: bytes,
    secret_at: int,
    *,
    tenant: Tenant,
    entropy: Entropy,
) -> SevGuest | None:
    """Load a guest and give it its secret: sealed for it with SEV, else by the host (errors as `boot`).

    Args:
        vm: its memory.
        pieces: what is loaded and measured, in this order, each at its guest address.
        secret: what its owner gives it; b"" for nothing.
        secret_at: where that goes.
        tenant: its owner.
        entropy: the owner's randomness.

    Returns:
        Its firmware context, with SEV.
    """
    for at, data in pieces:
        vm.load(Gpa(at), data)
    if vm.protection is Protection.SEV:
        return launch(
            vm,
            pieces,
            secret,
            secret_at,
            tenant=tenant,
            entropy=entropy,
            attest=lambda sev: digest_of(sev, pieces),
        )
    if secret:
        vm.load(Gpa(secret_at), secret)
    return None
