"""What each power lets an adversary do; `cbit.attacks.lab.hands` hands these out.

Paper: attacks.md §0.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cbit.attacks.lab.built_in import BuiltIn
from cbit.attacks.lab.guest import (
    C_BIT,
    CPUID,
    HLT,
    IOIO,
    MSR,
    SHARED,
    VMMCALL,
    CpuAtExit,
    Crashed,
    Victim,
    VirtualCpu,
    describe,
)
from cbit.attacks.power import Power, PowerNotHeld
from cbit.cpu.engine.control_block import At, Exit
from cbit.cpu.msr import Hwcr, Msr
from cbit.driver.errors import FirmwareError
from cbit.guest.builtin.interface import Request
from cbit.hypervisor.devices.requests import Asked
from cbit.hypervisor.host import Host
from cbit.hypervisor.vm import Vm
from cbit.memory.dma import DmaPort
from cbit.spec import buffers
from cbit.spec.address import LINE, PAGE, Gpa, Spa
from cbit.spec.command import Command
from cbit.spec.errors import CbitError

_NX: Final = 1 << 63
_AT: Final = {
    **{"rax": 0x5F8, "rsp": 0x5D8, "rip": 0x578, "rflags": 0x570},
    **{"cr3": 0x550, "cr2": 0x640, "gs_base": 0x458},
}
_PAGING_MODE: Final = (0x4D0, 0x548, 0x558)  # EFER, CR4, CR0
_FAULTS: Final = 1 << 12 | 1 << 13 | 1 << 14  # exception intercepts: #SS, #GP, #PF
_NUMBERS: Final = {
    name: number
    for number, name in enumerate(
        ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    )
}

_ADDRESSES: Final = 1 << 40  # above are the C-bit and what no machine of the lab has
_PATIENCE: Final = 2_000_000  # blocks of code until a physical interrupt comes
#: Instructions that a hypervisor steps over once it has done their work, and their lengths.
_LENGTHS: Final = {HLT: 1, CPUID: 2, MSR: 2, VMMCALL: 3}
#: What a hypervisor that emulates an instruction reads and writes.
_EMULATED: Final = {
    CPUID: ("rax", "rbx", "rcx", "rdx"),
    IOIO: ("rax",),
    MSR: ("rax", "rcx", "rdx"),
}


class Thwarted(CbitError):
    """An attempt cannot go on; the message says what stood in its way."""


class _Reserved:
    """What lies in memory and is a power of its own: the victim's VMCB (p4), and its nested tables (p2).

    Who may map any memory, or owns a device, reaches them on a real machine too.  Here powers are told apart:
    an attack that wants them declares them.
    """

    def __init__(self, guest: Victim | None) -> None:
        self._guest = guest

    def insist(self, spa: int, length: int, *, write: bool) -> None:
        """See that an access touches neither; to look at nested tables is no power.

        Raises:
            PowerNotHeld: it does.
        """
        if self._guest is None:
            return
        start = spa % _ADDRESSES
        reserved = {self._guest.cpu.vmcb_at: Power.USE_REGISTERS}
        if write:
            reserved |= dict.fromkeys(self._guest.vm.tables.frames(), Power.EDIT_NESTED_TABLES)
        for page, power in reserved.items():
            if start < page + PAGE and page < start + length:
                raise PowerNotHeld(power)


class Memory:
    """Physical memory as host software reaches it, but for what is a power of its own."""

    def __init__(self, host: Host, guest: Victim | None) -> None:
        self._host, self._guest, self._reserved = host, guest, _Reserved(guest)
        self.size: Final = host.machine.memory_size

    def spa(self, gpa: int, length: int = 1) -> Spa:
        """Where the host put a page of the victim's."""
        assert self._guest is not None
        return self._guest.spa(gpa, length)

    def room(self, length: int) -> Spa:
        """Take free memory, for good."""
        return Spa(self._host.frames.take(length).start)

    def read(self, spa: int, length: int, *, c: bool = False) -> bytes:
        """Read through a mapping."""
        self._reserved.insist(spa, length, write=False)
        return self._host.read(Spa(spa), length, c=c)

    def write(self, spa: int, data: bytes, *, c: bool = False) -> None:
        """Write through a mapping."""
        self._reserved.insist(spa, len(data), write=True)
        self._host.write(Spa(spa), data, c=c)


class Caches:
    """Write-back of every cache."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def write_back(self) -> int:
        """WBINVD on every core."""
        return self._host.flush_caches()


class Dropper:
    """INVD, as far as HWCR lets it.

    Attributes:
        lost: lines of the victim's that are not what they were before the last INVD.
    """

    def __init__(self, host: Host, guest: Victim) -> None:
        self._host, self._guest = host, guest
        self._core = host.machine.cores[0]
        self.lost = 0

    def allow(self) -> bool:
        """Clear HWCR's INVD-to-WBINVD bit, and say whether it is clear then."""
        self._core.wrmsr(Msr.HWCR, self._core.rdmsr(Msr.HWCR) & ~int(Hwcr.INVD_TO_WBINVD))
        return not self._core.rdmsr(Msr.HWCR) & Hwcr.INVD_TO_WBINVD

    def invd(self) -> int:
        """INVD: pages that left the caches.

        The hypervisor's own last store, the VMCB that #VMEXIT wrote, would be lost as well: it is put back.
        """
        vmcb = self._host.read(self._guest.cpu.vmcb_at, PAGE)
        before = self._guest.cached_pages()
        dropped = self._core.invd()
        self.lost = sum(
            page[at : at + LINE] != now[at : at + LINE]
            for page, now in ((page, self._guest.peek(gpa, PAGE)) for gpa, page in before.items())
            for at in range(0, PAGE, LINE)
        )
        self._host.write(self._guest.cpu.vmcb_at, vmcb)
        return dropped


class Tables:
    """The victim's nested tables; every change asks for the flush that it needs."""

    def __init__(self, guest: Victim) -> None:
        self._guest = guest

    def pages(self) -> list[int]:
        """Guest physical addresses of all pages."""
        return self._guest.pages

    def spa(self, gpa: int) -> Spa:
        """Where a guest page is, as the host laid it out."""
        return self._guest.spa(gpa)

    def map(self, gpa: int, spa: int) -> None:
        """Let a guest page be another page of the machine's."""
        self._guest.vm.tables.map(Gpa(gpa), range(spa, spa + PAGE, PAGE), c=self._guest.vm.c)
        self._guest.cpu.flush()

    def home(self, gpa: int) -> None:
        """Let a guest page be its own again."""
        self.map(gpa, self._guest.spa(gpa & -PAGE))

    def unmap(self, *gpas: int) -> None:
        """Make pages absent: the next access to each is an exit."""
        for gpa in gpas:
            self._guest.vm.tables.unmap(Gpa(gpa))
        self._guest.cpu.flush()

    def forbid_execution(self, *gpas: int) -> None:
        """Set NX: the next fetch from each page is an exit."""
        vm = self._guest.vm
        for gpa in gpas:
            at = vm.tables.entry_at(Gpa(gpa))
            assert at is not None
            entry = int.from_bytes(vm.host.read(at, 8, c=vm.c), "little")
            vm.host.write(at, (entry | _NX).to_bytes(8, "little"), c=vm.c)
        self._guest.cpu.flush()


class Runner:
    """A virtual CPU, and the loop that runs it.

    Args:
        cpu: the virtual CPU.
        emulate: does what its devices do at an exit that is theirs, and says whether it was.
    """

    def __init__(self, cpu: CpuAtExit, emulate: Callable[[Exit], bool] = lambda _: False) -> None:
        self._cpu, self._emulate = cpu, emulate

    @property
    def exits(self) -> int:
        """How many #VMEXITs there have been, of every kind."""
        return self._cpu.exits

    def run(self, *, interrupts: bool = True) -> Exit:
        """VMRUN until #VMEXIT; without interrupts a guest that never leaves runs for ever."""
        return self._cpu.run(blocks=_PATIENCE if interrupts else None)

    def until(self, code: int, *, handle: Callable[[Exit], bool] = lambda _: False) -> Exit:
        """Run until an exit of one kind; ``handle`` deals with others and says whether it did; else devices.

        Raises:
            Crashed: an exit that nobody deals with.
        """
        while True:
            exit = self.run()
            if exit.code == code:
                return exit
            if not handle(exit) and not self._emulate(exit):
                raise Crashed(f"the victim crashed: {describe(exit)}")

    def go_on(self, exit: Exit) -> None:
        """Let the devices do at an exit what they would have done."""
        self._emulate(exit)

    def skip(self, length: int) -> None:
        """Step over the instruction that left the guest, as a hypervisor does that has emulated it.

        Raises:
            PowerNotHeld: it has another length, or was stepped over before: that would be to write rIP.
        """
        exit = self._cpu.left_by
        if exit is None or _LENGTHS.get(exit.code) != length:
            raise PowerNotHeld(Power.USE_REGISTERS)
        self._cpu.left_by = None
        self._cpu.set(_AT["rip"], self._cpu.get(_AT["rip"]) + length)


class Registers:
    """The general registers, rIP, rFLAGS, CR2, CR3 and the base of GS of a virtual CPU."""

    def __init__(self, cpu: CpuAtExit) -> None:
        self._cpu = cpu

    def __getitem__(self, name: str) -> int:
        """Read a register."""
        if name in _AT:
            return self._cpu.get(_AT[name])
        return int(self._cpu.context.registers[_NUMBERS[name]])

    def __setitem__(self, name: str, value: int) -> None:
        """Write a register."""
        if name in _AT:
            self._cpu.set(_AT[name], value)
        else:
            self._cpu.context.registers[_NUMBERS[name]] = value

    def all(self) -> dict[str, int]:
        """Read the general registers."""
        return {name: self[name] for name in _NUMBERS}

    def take_faults(self, *, on: bool) -> None:
        """Let #SS, #GP and #PF leave the guest before it hears of them; or no longer."""
        self._cpu.set(At.EXCEPTIONS, _FAULTS if on else 0, "I")


class Emulated:
    """The low halves of the registers that an emulated instruction reads and writes.

    Raises `PowerNotHeld` for any other register, and at an exit that leaves nothing to be emulated.
    """

    def __init__(self, cpu: CpuAtExit) -> None:
        self._cpu, self._registers = cpu, Registers(cpu)

    def __getitem__(self, name: str) -> int:
        """Read a register."""
        return self._registers[self._its_own(name)] & 0xFFFF_FFFF

    def __setitem__(self, name: str, value: int) -> None:
        """Write a register; its high half becomes zero."""
        self._registers[self._its_own(name)] = value & 0xFFFF_FFFF

    def _its_own(self, name: str) -> str:
        exit = self._cpu.left_by
        if exit is None or name not in _EMULATED.get(exit.code, ()):
            raise PowerNotHeld(Power.USE_REGISTERS)
        return name


class Stepper:
    """Stops a virtual CPU after each instruction: trap flag, and the intercept of #DB."""

    def __init__(self, cpu: CpuAtExit) -> None:
        self._cpu = cpu

    def on(self) -> None:
        """Leave the guest after its next instruction."""
        self._cpu.set(At.EXCEPTIONS, 1 << 1, "I")
        self._cpu.set(_AT["rflags"], self._cpu.get(_AT["rflags"]) | 1 << 8)


class Client:
    """Somebody on the network: a request goes into the shared page, the answer comes back in it.

    The hypervisor carries both; a request does not run the victim.
    """

    def __init__(self, guest: Victim) -> None:
        self._guest = guest

    def put(self, request: bytes) -> None:
        """Hand a request over: length, then the bytes."""
        self._guest.vm.load(Gpa(SHARED), struct.pack("<Q", len(request)) + request)

    def answer(self, length: int) -> bytes:
        """Read the answer behind the request's place."""
        vm = self._guest.vm
        return vm.host.read(self._guest.spa(SHARED + PAGE, length), length, c=vm.c)

    def ask(self, request: bytes, length: int) -> bytes:
        """Hand a request over, let the victim run until it halts, and read the answer.

        Raises:
            Crashed: the victim does not halt.
        """
        self.put(request)
        exit = self._guest.cpu.run()
        if exit.code != HLT:
            raise Crashed(f"the victim does not answer: {describe(exit)}")
        self._guest.cpu.set(0x578, self._guest.cpu.get(0x578) + 1)
        return self.answer(length)


class Service:
    """Somebody who asks the built-in guest for things; the hypervisor carries what goes to and fro."""

    def __init__(self, guest: BuiltIn) -> None:
        self._guest = guest

    def put(self, number: Request, *arguments: int) -> Asked:
        """Hand a request over; it is answered when the victim runs."""
        return self._guest.put(number, *arguments)

    def ask(self, number: Request, *arguments: int) -> Asked:
        """Hand a request over, and let the victim run until it halts.

        Raises:
            Crashed: it does not halt.
        """
        asked, runner = self.put(number, *arguments), Runner(self._guest.cpu, self._guest.emulate)
        runner.until(HLT)
        runner.skip(1)
        return asked

    def send(self, gpa: int, data: bytes) -> None:
        """Put something where the victim shares memory."""
        self._guest.vm.load(Gpa(gpa), data)

    def shared(self, gpa: int, length: int) -> bytes:
        """Read something where the victim shares memory."""
        vm = self._guest.vm
        return vm.host.read(self._guest.spa(gpa, length), length, c=vm.c)


class Device:
    """A malicious device."""

    def __init__(self, port: DmaPort, c_bit: int | None, guest: Victim | None) -> None:
        self._port, self._c_bit, self._guest = port, c_bit, guest
        self._reserved = _Reserved(guest)

    def spa(self, gpa: int) -> Spa:
        """Where a page of the victim's lies."""
        assert self._guest is not None
        return self._guest.spa(gpa)

    def read_plain(self, spa: int, length: int) -> bytes:
        """Read with C=0."""
        self._reserved.insist(spa, length, write=False)
        return self._port.read(spa, length)

    def read(self, spa: int, length: int) -> bytes:
        """Read with C=0, and with C=1 where the device drives that line."""
        loot = self.read_plain(spa, length)
        if self._c_bit is not None:
            loot += self._port.read(spa | 1 << self._c_bit, length)
        return loot

    def write(self, spa: int, data: bytes) -> None:
        """Write with C=0."""
        self._reserved.insist(spa, len(data), write=True)
        self._port.write(spa, data)


class Commands:
    """What a driver can ask of the secure processor."""

    def __init__(self, host: Host, guest: Victim | None) -> None:
        self._host, self._guest = host, guest

    def debug_decrypt(self, gpa: int, length: int) -> bytes:
        """DBG_DECRYPT of the victim's memory into the host's.

        Raises:
            Thwarted: refused; the message is the firmware's reason.
        """
        if self._guest is None or self._guest.sev is None:
            raise Thwarted("the victim has no firmware context to be debugged")
        with self._host.room(length) as target:
            request = buffers.Debug(
                handle=self._guest.sev.handle, length=length, src=self._guest.spa(gpa, length), dst=target
            )
            try:
                self._host.ccp.call(Command.DBG_DECRYPT, request)
            except FirmwareError as refusal:
                raise Thwarted(str(refusal)) from None
            return self._host.read(target, length)


class Spoofed:
    """A virtual CPU with its own nested tables, the victim's ASID and its way of paging (CR0, CR4, EFER).

    Attributes:
        runner: runs it.
        registers: its registers.
        stepper: stops it after each instruction.
        mapped: guest physical addresses of the pages that its nested tables have.
    """

    def __init__(
        self, host: Host, victim: Victim, *, rip: int, cr3: int, map_memory: bool, flush: bool
    ) -> None:
        self._vm = Vm(host, victim.vm.protection)
        self.mapped: set[int] = set()
        if map_memory:
            for gpa in victim.pages:
                self.map(gpa, victim.spa(gpa))
        self.cpu = VirtualCpu(self._vm, asid=victim.vm.asid, sev=victim.encrypted, cr3=cr3, rip=rip)
        for at in _PAGING_MODE:
            self.cpu.set(at, victim.cpu.get(at))
        if flush:
            self.cpu.flush()
        self.runner = Runner(self.cpu)
        self.registers = Registers(self.cpu)
        self.stepper = Stepper(self.cpu)

    def map(self, gpa: int, spa: int) -> None:
        """Map a page into the adversary's own nested tables."""
        self.mapped.add(gpa)
        self._vm.tables.map(Gpa(gpa), range(spa, spa + PAGE, PAGE), c=self._vm.c)

    def unmap(self, gpa: int) -> None:
        """Make a page absent."""
        self.mapped.discard(gpa)
        self._vm.tables.unmap(Gpa(gpa))


def gpa_of(address: int) -> int:
    """The guest physical address in EXITINFO2 of a nested fault, without the C-bit."""
    return address & ~(1 << C_BIT)
