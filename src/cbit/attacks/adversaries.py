"""Who might want to read a guest's memory, and what each of them gets: bytes, not opinions.

An attempt returns every byte that its adversary could lay hands on.  Whether it succeeded is decided outside,
by looking for the victim's secret in them.

Paper: attacks.md §0.1 (powers), §2 A1, A2, A14; memory-encryption.md §4.5, §5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cbit.attacks.helper_guest import HelperGuest
from cbit.attacks.power import Power
from cbit.attacks.victim import Victim
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.small_guest import Turn
from cbit.machine.board import Machine
from cbit.memory.dma import DmaPort
from cbit.spec.address import PAGE, Spa

MOST_REGISTERS: Final = 1 << 22  #: bytes of registers that an adversary keeps


@dataclass(frozen=True, slots=True)
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
        with self.machine.bus.tap(lambda op, spa, data: lines.append(data)):
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
        cells = self.machine.probe.read(Spa(0), size)
        return Loot(cells, f"{size >> 20} MiB read, {self.decay:.1%} of the charged cells faded")


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
        return Loot(loot, "read with C=0 and with C=1" if self.drives_c_bit else "read with C=0")


@dataclass(frozen=True, slots=True)
class Administrator:
    """Root on the host: may map any memory, with or without the C-bit."""

    host: Host

    def read(self, spa: Spa, length: int) -> Loot:
        """Read through both kinds of mapping."""
        both = self.host.read(spa, length) + self.host.read(spa, length, c=True)
        return Loot(both, "mapped with C=0 and with C=1")


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
    """Probe the DRAM bus while the guest uses its secret."""
    machine = stage.host.machine
    machine.wbinvd_on_all_cores()  # the hardest case for the victim: its load goes over the wires
    return BusProbe(machine).listen(stage.victim.use_secret)


def device_without_c_bit(stage: Stage) -> Loot:
    """Read with a device that cannot drive the C-bit."""
    return _device(stage, drives_c_bit=False)


def device_with_c_bit(stage: Stage) -> Loot:
    """Read with a device that can drive the C-bit."""
    return _device(stage, drives_c_bit=True)


def _device(stage: Stage, *, drives_c_bit: bool) -> Loot:
    machine = stage.host.machine
    device = Device(machine.dma_port(), machine.profile.features.c_bit, drives_c_bit)
    return device.read(stage.secret_at, len(stage.victim.secret))


def administrator(stage: Stage) -> Loot:
    """Read as a rogue administrator of the host."""
    return Administrator(stage.host).read(stage.secret_at, len(stage.victim.secret))


def other_guest(stage: Stage) -> Loot:
    """Run another guest, into which the host maps the victim's page."""
    return _help_by_a_guest(stage, asid=None)


def spoofed_asid(stage: Stage) -> Loot:
    """Run the helper guest under the victim's ASID."""
    return _help_by_a_guest(stage, asid=stage.victim.asid)


def _help_by_a_guest(stage: Stage, *, asid: int | None) -> Loot:
    """Try a helper that is protected as the victim is, and one that is not: the host runs what it likes."""
    at, data, notes = stage.secret_at, b"", []
    for protection in dict.fromkeys((stage.protection, Protection.NONE)):
        executes = stage.victim.guest is not None
        with HelperGuest.start(stage.host, protection, onto=Spa(at & -PAGE), executes=executes) as helper:
            got, note = helper.run(at % PAGE, len(stage.victim.secret), asid=asid)
        data += got
        notes.append(f"helper ({protection}): {note}")
    return Loot(data, "; ".join(notes))


def registers_at_exits(stage: Stage) -> Loot:
    """Interrupt the guest after every block of its code while it uses its secret, and read its registers."""
    victim, guest = stage.victim, stage.victim.guest
    assert guest is not None, "a guest that does not execute has no registers"
    assert victim.letter is not None
    asked, seen = victim.deliver(victim.letter.sealed), bytearray()
    while asked.status is None and guest.turn(1) is not Turn.ENDED and len(seen) < MOST_REGISTERS:
        seen += guest.registers
    return Loot(
        bytes(seen), f"interrupted {len(seen) // len(guest.registers)} times, registers read each time"
    )


def cold_boot(stage: Stage) -> Loot:
    """Carry the modules away."""
    stage.host.machine.wbinvd_on_all_cores()  # the hardest case for the victim: nothing is left in a cache
    return ColdBoot(stage.host.machine).carry_away()


@dataclass(frozen=True, slots=True)
class Adversary:
    """One row of the survey: a name, the powers that the attempt uses, and the attempt."""

    name: str
    powers: tuple[Power, ...]
    attempt: Callable[[Stage], Loot]


_GUEST: Final = (Power.RUN_GUEST, Power.EDIT_NESTED_TABLES)

#: Adversaries that meet a launched guest, executing or not; the last one ends the machine.
AGAINST_MEMORY: Final = (
    Adversary("bus probe", (Power.TAP_BUS,), bus_probe),
    Adversary("device, C-bit not driven", (Power.DMA,), device_without_c_bit),
    Adversary("device that drives the C-bit", (Power.DMA, Power.DMA_C_BIT), device_with_c_bit),
    Adversary("rogue administrator", (Power.MAP_MEMORY,), administrator),
    Adversary("other guest, victim's page mapped in", _GUEST, other_guest),
    Adversary("hypervisor with a spoofed ASID", (*_GUEST, Power.EDIT_VMCB), spoofed_asid),
    Adversary("cold boot", (Power.CUT_POWER,), cold_boot),
)

_REGISTERS: Final = Adversary(
    "hypervisor that reads registers at exits", (Power.STEP, Power.USE_REGISTERS), registers_at_exits
)


def against(*, executes: bool) -> tuple[Adversary, ...]:
    """List the adversaries that meet a launched guest; a guest that executes has registers, too."""
    return (*AGAINST_MEMORY[:-1], _REGISTERS, AGAINST_MEMORY[-1]) if executes else AGAINST_MEMORY
