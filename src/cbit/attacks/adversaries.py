"""Who might want to read a guest's memory, and what each of them gets: bytes, not opinions.

An attempt returns every byte that its adversary could lay hands on.  Whether it succeeded is decided outside, by
looking for the victim's secret in them.

Paper: attacks.md §0.1 (powers), §2 A1, A2, A14; memory-encryption.md §4.5, §5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cbit.attacks.victim import Victim, page_of
from cbit.cpu.faults import Fault, VmExit
from cbit.cpu.guest_view import GuestView
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.machine.board import Machine
from cbit.memory.dma import DmaPort
from cbit.spec.address import PAGE, Gpa, Gva, Spa
from cbit.spec.policy import Policy


@dataclass(slots=True)
class Loot:
    """What an adversary got, and how it went."""

    data: bytes
    note: str


@dataclass(frozen=True, slots=True)
class BusProbe:
    """Wires on the DRAM bus: sees every line that passes."""

    machine: Machine

    def listen(self, while_this_happens: Callable[[], object]) -> Loot:
        """Record the bus while the victim works."""
        lines: list[bytes] = []
        with self.machine.bus.tap(lambda op, spa, data: lines.append(bytes(data))):
            while_this_happens()
        return Loot(b"".join(lines), f"{len(lines)} transfers seen")


@dataclass(frozen=True, slots=True)
class ColdBoot:
    """Hands on the memory modules: cuts the power, carries them away, reads them elsewhere."""

    machine: Machine
    decay: float = 0.0

    def carry_away(self) -> Loot:
        """Cut the power and read every cell."""
        size = self.machine.memory_size
        self.machine.power_off(decay=self.decay)
        return Loot(self.machine.probe.read(Spa(0), size), f"{size >> 20} MiB read, {self.decay:.1%} of the bits lost")


@dataclass(frozen=True, slots=True)
class Device:
    """A malicious device on the bus of the machine; it may or may not drive the C-bit's address line."""

    port: DmaPort
    c_bit: int
    drives_c_bit: bool

    def read(self, spa: Spa, length: int) -> Loot:
        """Read by DMA, in every way that the device can."""
        loot = self.port.read(spa, length)
        if self.drives_c_bit:
            loot += self.port.read(spa | 1 << self.c_bit, length)
        return Loot(loot, "read with C=0 and C=1" if self.drives_c_bit else "read with C=0")


@dataclass(frozen=True, slots=True)
class Administrator:
    """Root on the host: may map any memory, with or without the C-bit."""

    host: Host

    def read(self, spa: Spa, length: int) -> Loot:
        """Read through both kinds of mapping."""
        return Loot(self.host.read(spa, length) + self.host.read(spa, length, c=True), "mapped with C=0 and with C=1")


CODE: Final = Gpa(0x1000)
WINDOW: Final = Gpa(0x100000)


class GarbageCode(Exception):
    """The bytes that the CPU fetched are not the program that its owner wrote."""


@dataclass(slots=True)
class HelperGuest:
    """A guest of the adversary's own: one page of code, and a window onto a page of the host's choice."""

    host: Host
    protection: Protection
    window_onto: Spa
    vm: Vm = field(init=False)
    sev: SevGuest | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.vm = Vm(self.host, self.protection)
        self.vm.add_memory(CODE, PAGE)
        self.vm.load(CODE, _load_program(WINDOW))
        window = range(self.window_onto, self.window_onto + PAGE, PAGE)
        self.vm.tables.map(WINDOW, window, c=self.vm.c)
        if self.protection is Protection.SEV:
            self.sev = SevGuest.start(self.vm, policy=int(Policy.NODBG))
            self.sev.update(CODE, PAGE)
            self.sev.measure()
            self.sev.finish()

    def run(self, offset: int, length: int, *, asid: int | None = None) -> Loot:
        """Run the program under the guest's own ASID, or under another that the hypervisor writes into the VMCB."""
        features = self.host.machine.profile.features
        own = self.sev.asid if self.sev else features.guests + 2
        vcpu = Vcpu(self.vm, asid=own if asid is None else asid, sev=self.sev is not None)
        try:
            with vcpu.run() as view:
                return _run_program(view, offset, length)
        except (VmExit, Fault) as fault:
            return Loot(b"", f"{type(fault).__name__}: {fault}")
        finally:
            vcpu.free()


def _load_program(target: Gpa) -> bytes:
    return b"\xa1" + target.to_bytes(4, "little") + b"\xf4"  # mov eax, [target]; hlt


def _run_program(view: GuestView, offset: int, length: int) -> Loot:
    """Do what the fetched instructions say: nothing is loaded unless the load arrives intact in the decoder."""
    program = _load_program(WINDOW)
    fetched = view.fetch(Gva(CODE), len(program))
    if fetched != program:
        return Loot(fetched, f"fetched {fetched.hex()} in place of its program {program.hex()}: it crashes")
    return Loot(view.read(Gva(WINDOW + offset), length), "its program ran and loaded from the window")


@dataclass(frozen=True, slots=True)
class Stage:
    """One victim on its host, before one attempt."""

    host: Host
    protection: Protection
    victim: Victim

    @property
    def secret_at(self) -> Spa:
        """Where the secret lies in system memory: the adversary may know."""
        return self.victim.vm.spa(self.victim.secret_gpa, len(self.victim.secret))


def bus_probe(stage: Stage) -> Loot:
    """Probe on the DRAM bus while the guest uses its secret."""
    machine = stage.host.machine
    machine.wbinvd_on_all_cores()
    return BusProbe(machine).listen(stage.victim.use_secret)


def device_without_c_bit(stage: Stage) -> Loot:
    """Malicious device that cannot drive the C-bit."""
    return _device(stage, drives_c_bit=False)


def device_with_c_bit(stage: Stage) -> Loot:
    """Malicious device that can drive the C-bit."""
    return _device(stage, drives_c_bit=True)


def _device(stage: Stage, *, drives_c_bit: bool) -> Loot:
    machine = stage.host.machine
    device = Device(machine.dma_port(), machine.profile.features.c_bit, drives_c_bit)
    return device.read(stage.secret_at, len(stage.victim.secret))


def administrator(stage: Stage) -> Loot:
    """Rogue administrator of the host."""
    return Administrator(stage.host).read(stage.secret_at, len(stage.victim.secret))


def other_guest(stage: Stage) -> Loot:
    """Another guest, into which the host maps the victim's page."""
    return _helper(stage).run(stage.secret_at % PAGE, len(stage.victim.secret))


def spoofed_asid(stage: Stage) -> Loot:
    """Hypervisor that runs its helper guest under the victim's ASID."""
    return _helper(stage).run(stage.secret_at % PAGE, len(stage.victim.secret), asid=stage.victim.asid)


def _helper(stage: Stage) -> HelperGuest:
    return HelperGuest(stage.host, stage.protection, Spa(page_of(Gpa(stage.secret_at))))


def cold_boot(stage: Stage) -> Loot:
    """Cold boot: the modules are carried away."""
    stage.host.machine.wbinvd_on_all_cores()  # the hardest case for the victim: nothing is left in a cache
    return ColdBoot(stage.host.machine).carry_away()


Attempt = Callable[[Stage], Loot]

#: Adversaries that meet a launched guest; the last one ends the machine.
AGAINST_MEMORY: Final[Mapping[str, Attempt]] = MappingProxyType(
    {
        "bus probe": bus_probe,
        "device, C-bit not driven": device_without_c_bit,
        "device that drives the C-bit": device_with_c_bit,
        "rogue administrator": administrator,
        "other guest, victim's page mapped in": other_guest,
        "hypervisor with a spoofed ASID": spoofed_asid,
        "cold boot": cold_boot,
    }
)
