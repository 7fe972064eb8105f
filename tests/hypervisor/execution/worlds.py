"""Guests of a few instructions in 32-bit protected mode without paging, and devices that write down."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.exits import Exits
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.execution.vcpu import ExecutingVcpu
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import MIB, PAGE, Gpa
from cbit.spec.vmsa import Segment, Vmsa
from cpu.engine.worlds import assemble

CODE_AT: Final = Gpa(0x1000)
IDT_AT: Final = Gpa(0x3000)
STACK: Final = 0x8000
SIZE: Final = MIB
_CODE = Segment(selector=0x8, attributes=0xC9B, limit=0xFFFF_FFFF)
_DATA = Segment(selector=0x10, attributes=0xC93, limit=0xFFFF_FFFF)
GDT_AT: Final = Gpa(0x800)
_GDT = b"".join(entry.to_bytes(8, "little") for entry in (0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
START: Final = Vmsa(
    gdtr=Segment(base=GDT_AT, limit=len(_GDT) - 1),
    cs=_CODE,
    ds=_DATA,
    es=_DATA,
    ss=_DATA,
    cr0=0x11,
    rip=CODE_AT,
    rsp=STACK,
    rflags=2,
    dr6=0xFFFF_0FF0,
    dr7=0x400,
)


class Power(Enum):
    OFF = "off"


@dataclass
class Interrupts:
    waiting: list[int] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        return bool(self.waiting)

    def acknowledge(self) -> int:
        return self.waiting.pop(0)


class Desk:
    """Devices: remembers what was written, answers reads with what it was given, interrupts when told to."""

    def __init__(self, clock: BlockClock) -> None:
        self.clock = clock
        self.interrupts = Interrupts()
        self.written: list[tuple[int, int, int]] = []
        self.answers: dict[int, int] = {}
        self.alarms: list[tuple[int, int]] = []  # (ns, vector)
        self.power_event: Power | None = None

    def read(self, port: int, size: int) -> int:
        return self.answers.get(port, (1 << 8 * size) - 1)

    def write(self, port: int, size: int, value: int) -> None:
        self.written.append((port, size, value))
        if port == 0x604:
            self.power_event = Power.OFF

    def advance(self) -> None:
        while self.alarms and self.alarms[0][0] <= self.clock.ns:
            self.interrupts.waiting.append(self.alarms.pop(0)[1])

    def next_event_ns(self) -> int | None:
        return self.alarms[0][0] if self.alarms else None


@dataclass
class Room:
    """One guest with everything around it."""

    vm: Vm
    vcpu: ExecutingVcpu
    exits: Exits
    desk: Desk
    monitor: Monitor
    guest: SevGuest | None = None

    def output(self, port: int = 0x3F8) -> bytes:
        return bytes(value & 0xFF for at, _, value in self.desk.written if at == port)

    def end(self) -> None:
        if self.guest is not None:
            self.guest.end()
        else:
            self.vm.destroy()


def a_room(host: Host, source: str, *, protection: Protection = Protection.NONE, start: Vmsa = START) -> Room:
    """Load a program, launch it if it is to be encrypted, and put a virtual CPU at its first instruction."""
    vm = Vm(host, protection)
    vm.add_memory(Gpa(0), SIZE)
    vm.load(GDT_AT, _GDT)
    vm.load(CODE_AT, assemble(source, CODE_AT, 32))
    guest = None
    if protection is Protection.SEV:
        guest = SevGuest.start(vm, policy=0)
        guest.update(Gpa(0), 16 * PAGE)
        guest.measure_alone()
        guest.finish()
    core = host.machine.cores[0]
    clock = BlockClock(core)
    vcpu = ExecutingVcpu(vm, start)
    desk = Desk(clock)
    exits = Exits(vcpu, cpuid=GuestCpuid(core, sev=guest is not None), ports=desk)
    return Room(vm, vcpu, exits, desk, Monitor(vcpu, exits, desk, clock), guest)
