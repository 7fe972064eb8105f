"""The adversary's hands: one object for each power, and none that was not granted.

An attempt never sees the machine.  What it may do it does through these; asking for more raises.  Each power
that is used is noted, so that a test finds powers that an attack declares and does not need.

Paper: attacks.md §0.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cbit.attacks.lab.guest import C_BIT, HLT, SHARED, Crashed, Guest, VirtualCpu, describe
from cbit.attacks.lab.own_guest import OwnGuest
from cbit.attacks.power import Power
from cbit.cpu.msr import Hwcr, Msr
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host
from cbit.memory.dma import DmaPort
from cbit.spec import buffers
from cbit.spec.address import PAGE, Gpa, Spa
from cbit.spec.command import Command
from cbit.spec.errors import CbitError

if TYPE_CHECKING:
    from cbit.cpu.engine.control_block import Exit

_NX: Final = 1 << 63
_AT: Final = {"rax": 0x5F8, "rsp": 0x5D8, "rip": 0x578, "rflags": 0x570, "cr3": 0x550, "cr2": 0x640}
_NUMBERS: Final = {
    name: number
    for number, name in enumerate(
        ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    )
}


class PowerNotHeld(CbitError):
    """An attempt does what it has no power to do; the message names the power."""


class Thwarted(CbitError):
    """An attempt cannot go on; the message says what stood in its way."""


class Hands:
    """What one adversary can do.

    Args:
        host: the host that it has (partly) taken over.
        guest: the victim.
        holds: the powers granted.
        own_sev: whether a guest of its own is a SEV guest.
        hwcr_locked: whether the processor keeps INVD harmless.

    Attributes:
        used: the powers that it made use of.
    """

    def __init__(
        self, host: Host, guest: Guest | None, holds: frozenset[Power], *, own_sev: bool, hwcr_locked: bool
    ) -> None:
        self._host, self._guest, self._holds = host, guest, holds
        self._own_sev, self._hwcr_locked = own_sev, hwcr_locked
        self.used: set[Power] = set()

    def _take(self, power: Power) -> None:
        if power not in self._holds:
            raise PowerNotHeld(f"the attack does not hold the power to {power.value}")
        self.used.add(power)

    def _victim(self) -> Guest:
        if self._guest is None:
            raise Thwarted("there is no victim here")
        return self._guest

    @property
    def memory(self) -> Memory:
        """Any memory, mapped with C=0 or with C=1 (p1)."""
        self._take(Power.MAP_MEMORY)
        return Memory(self._host, self._guest)

    @property
    def caches(self) -> Caches:
        """WBINVD (p7)."""
        self._take(Power.FLUSH_CACHES)
        return Caches(self._host)

    @property
    def dropper(self) -> Dropper:
        """INVD, and HWCR (p7)."""
        self._take(Power.DROP_CACHES)
        return Dropper(self._host, self._victim(), locked=self._hwcr_locked)

    @property
    def tables(self) -> Tables:
        """The victim's nested tables (p2)."""
        self._take(Power.EDIT_NESTED_TABLES)
        return Tables(self._victim())

    @property
    def victim(self) -> Runner:
        """VMRUN of the victim, and its exits (p3)."""
        self._take(Power.TAKE_EXITS)
        return Runner(self._victim().cpu)

    @property
    def registers(self) -> Registers:
        """The victim's registers at an exit (p4)."""
        self._take(Power.USE_REGISTERS)
        return Registers(self._victim().cpu)

    @property
    def emulation(self) -> Registers:
        """The registers that an emulated instruction reads and writes (p9)."""
        self._take(Power.EMULATE)
        return Registers(self._victim().cpu)

    @property
    def stepper(self) -> Stepper:
        """A physical interrupt after a chosen number of instructions (p13)."""
        self._take(Power.STEP)
        return Stepper(self._victim().cpu)

    @property
    def client(self) -> Client:
        """The victim's service, from its network (A6)."""
        self._take(Power.CLIENT)
        return Client(self._victim())

    @property
    def device(self) -> Device:
        """A device on the bus (p10); driving the C-bit is a power of its own."""
        self._take(Power.DMA)
        c_bit = None
        if Power.DMA_C_BIT in self._holds:
            self._take(Power.DMA_C_BIT)
            c_bit = self._host.machine.profile.features.c_bit
        return Device(self._host.machine.dma_port(), c_bit, self._guest)

    @property
    def commands(self) -> Commands:
        """The secure processor's mailbox (p12)."""
        self._take(Power.COMMAND)
        return Commands(self._host, self._guest)

    def spoofed(self, *, rip: int, cr3: int, map_memory: bool = True) -> Spoofed:
        """A virtual CPU of the adversary's own that runs under the victim's ASID (p5)."""
        self._take(Power.EDIT_VMCB)
        return Spoofed(self._host, self._victim(), rip=rip, cr3=cr3, map_memory=map_memory)

    def own_guest(self) -> OwnGuest:
        """A guest of the adversary's own (p12), protected as the host likes."""
        self._take(Power.RUN_GUEST)
        return OwnGuest(self._host, sev=self._own_sev)

    def second_cpu(self, *, rip: int, rsp: int, flush: bool) -> Runner:
        """Another virtual CPU of the victim's; whether the TLB is flushed before it runs is p6."""
        if not flush:
            self._take(Power.WITHHOLD_FLUSH)
        victim = self._victim()
        cpu = VirtualCpu(
            victim.vm,
            asid=victim.vm.asid,
            sev=victim.encrypted,
            cr3=victim.cpu.get(_AT["cr3"]),
            rip=rip,
            rsp=rsp,
        )
        if flush:
            cpu.flush()
        return Runner(cpu)

    @contextmanager
    def bus(self) -> Iterator[list[bytes]]:
        """Record every line that passes on the DRAM bus (A2)."""
        self._take(Power.TAP_BUS)
        lines: list[bytes] = []
        with self._host.machine.bus.tap(lambda op, spa, data: lines.append(bytes(data))):
            yield lines

    def carry_away(self, *, decay: float) -> bytes:
        """Cut the power, carry the modules away, read every cell elsewhere (p14)."""
        self._take(Power.CUT_POWER)
        machine = self._host.machine
        machine.power_off(decay=decay)
        return machine.probe.read(Spa(0), machine.memory_size)


class Memory:
    """Physical memory as host software reaches it."""

    def __init__(self, host: Host, guest: Guest | None) -> None:
        self._host, self._guest = host, guest
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
        return self._host.read(Spa(spa), length, c=c)

    def write(self, spa: int, data: bytes, *, c: bool = False) -> None:
        """Write through a mapping."""
        self._host.write(Spa(spa), data, c=c)


class Caches:
    """Write-back of every cache."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def write_back(self) -> int:
        """WBINVD on every core."""
        return self._host.flush_caches()


class Dropper:
    """INVD, as far as HWCR lets it."""

    def __init__(self, host: Host, guest: Guest, *, locked: bool) -> None:
        self._host, self._guest, self._locked = host, guest, locked
        self._core = host.machine.cores[0]

    def allow(self) -> None:
        """Clear HWCR's INVD-to-WBINVD bit; a processor that keeps it set ignores the write."""
        if not self._locked:
            self._core.wrmsr(Msr.HWCR, self._core.rdmsr(Msr.HWCR) & ~int(Hwcr.INVD_TO_WBINVD))

    def invd(self) -> int:
        """INVD: pages that left the caches.

        The hypervisor's own last store, the VMCB that #VMEXIT wrote, would be lost as well: it is put back.
        """
        vmcb = self._host.read(self._guest.cpu.vmcb_at, PAGE)
        dropped = self._core.invd()
        self._host.write(self._guest.cpu.vmcb_at, vmcb)
        return dropped


class Tables:
    """The victim's nested tables; every change asks for the flush that it needs."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def pages(self) -> list[int]:
        """Guest physical addresses of all pages."""
        return list(range(0, self._guest.program.size, PAGE))

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
    """A virtual CPU, and the loop that runs it."""

    def __init__(self, cpu: VirtualCpu) -> None:
        self._cpu = cpu

    def run(self, *, blocks: int | None = 2_000_000) -> Exit:
        """VMRUN until #VMEXIT."""
        return self._cpu.run(blocks=blocks)

    def until(self, code: int, *, handle: Callable[[Exit], bool] = lambda _: False) -> Exit:
        """Run until an exit of one kind; ``handle`` deals with others and says whether it did.

        Raises:
            Crashed: an exit that nobody deals with.
        """
        while True:
            exit = self.run()
            if exit.code == code:
                return exit
            if not handle(exit):
                raise Crashed(f"the victim crashed: {describe(exit)}")

    def skip(self, length: int) -> None:
        """Step over the instruction that left the guest, as a hypervisor does that has emulated it."""
        self._cpu.set(0x578, self._cpu.get(0x578) + length)


class Registers:
    """The general registers, rIP, rFLAGS, CR2 and CR3 of a virtual CPU."""

    def __init__(self, cpu: VirtualCpu) -> None:
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


class Stepper:
    """Stops a virtual CPU after each instruction: trap flag, and the intercept of #DB."""

    def __init__(self, cpu: VirtualCpu) -> None:
        self._cpu = cpu

    def on(self) -> None:
        """Leave the guest after its next instruction."""
        self._cpu.set(0x008, 1 << 1, "I")
        self._cpu.set(_AT["rflags"], self._cpu.get(_AT["rflags"]) | 1 << 8)

    def off(self) -> None:
        """Let it run."""
        self._cpu.set(0x008, 0, "I")
        self._cpu.set(_AT["rflags"], self._cpu.get(_AT["rflags"]) & ~(1 << 8))


class Client:
    """Somebody on the network: a request goes into the shared page, the answer comes back in it.

    The hypervisor carries both; a request does not run the victim.
    """

    def __init__(self, guest: Guest) -> None:
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


class Device:
    """A malicious device."""

    def __init__(self, port: DmaPort, c_bit: int | None, guest: Guest | None) -> None:
        self._port, self._c_bit, self._guest = port, c_bit, guest

    def spa(self, gpa: int) -> Spa:
        """Where a page of the victim's lies."""
        assert self._guest is not None
        return self._guest.spa(gpa)

    def read_plain(self, spa: int, length: int) -> bytes:
        """Read with C=0."""
        return self._port.read(spa, length)

    def read(self, spa: int, length: int) -> bytes:
        """Read with C=0, and with C=1 where the device drives that line."""
        loot = self._port.read(spa, length)
        if self._c_bit is not None:
            loot += self._port.read(spa | 1 << self._c_bit, length)
        return loot

    def write(self, spa: int, data: bytes) -> None:
        """Write with C=0."""
        self._port.write(spa, data)


class Commands:
    """What a driver can ask of the secure processor."""

    def __init__(self, host: Host, guest: Guest | None) -> None:
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
    """A virtual CPU with its own nested tables and the victim's ASID.

    Attributes:
        runner: runs it.
        registers: its registers.
        stepper: stops it after each instruction.
    """

    def __init__(self, host: Host, victim: Guest, *, rip: int, cr3: int, map_memory: bool) -> None:
        from cbit.hypervisor.vm import Vm

        self._vm = Vm(host, victim.vm.protection)
        self._victim = victim
        if map_memory:
            for gpa in range(0, victim.program.size, PAGE):
                self.map(gpa, victim.spa(gpa))
        self.cpu = VirtualCpu(self._vm, asid=victim.vm.asid, sev=victim.encrypted, cr3=cr3, rip=rip)
        self.cpu.flush()
        self.runner = Runner(self.cpu)
        self.registers = Registers(self.cpu)
        self.stepper = Stepper(self.cpu)

    def map(self, gpa: int, spa: int) -> None:
        """Map a page into the adversary's own nested tables."""
        self._vm.tables.map(Gpa(gpa), range(spa, spa + PAGE, PAGE), c=self._vm.c)

    def unmap(self, gpa: int) -> None:
        """Make a page absent."""
        self._vm.tables.unmap(Gpa(gpa))


def gpa_of(address: int) -> int:
    """The guest physical address in EXITINFO2 of a nested fault, without the C-bit."""
    return address & ~(1 << C_BIT)
