"""The adversary's hands: one object for each power, and none that was not granted.

An attempt never sees the machine.  What it may do it does through these; asking for more raises.  Each power
that is used is noted, so that a test finds powers that an attack declares and does not need.

Paper: attacks.md §0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cbit.attacks.lab.built_in import BuiltIn
from cbit.attacks.lab.guest import Victim
from cbit.attacks.lab.linux_victim import LinuxVictim
from cbit.attacks.lab.own_guest import OwnGuest
from cbit.attacks.lab.scene import Scene
from cbit.attacks.lab.tools import (
    Caches,
    Client,
    Commands,
    Device,
    Dropper,
    Emulated,
    Memory,
    Registers,
    Runner,
    Service,
    Spoofed,
    Stepper,
    Tables,
    Thwarted,
)
from cbit.attacks.lab.two_cpus import TwoCpus
from cbit.attacks.power import Power, PowerNotHeld
from cbit.hypervisor.host import Host
from cbit.owner.errors import Untrusted
from cbit.spec.address import Spa
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import HOST, UNENCRYPTED


class Hands:
    """What one adversary can do.

    Args:
        host: the host that it has (partly) taken over.
        scene: the victim, and what the processor does by itself.
        holds: the powers granted.
        own_sev: whether a guest of its own is a SEV guest.

    Attributes:
        used: the powers that it made use of.
    """

    def __init__(self, host: Host, scene: Scene, holds: frozenset[Power], *, own_sev: bool) -> None:
        self._host, self._scene, self._guest, self._holds = host, scene, scene.guest, holds
        self._own_sev = own_sev
        self.used: set[Power] = set()

    def _take(self, power: Power) -> None:
        if power not in self._holds:
            raise PowerNotHeld(power)
        self.used.add(power)

    def _victim(self) -> Victim:
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
        return Dropper(self._host, self._victim())

    @property
    def tables(self) -> Tables:
        """The victim's nested tables (p2)."""
        self._take(Power.EDIT_NESTED_TABLES)
        return Tables(self._victim())

    @property
    def victim(self) -> Runner:
        """VMRUN of the victim, and its exits (p3)."""
        self._take(Power.TAKE_EXITS)
        return Runner(self._victim().cpu, self._victim().emulate)

    @property
    def registers(self) -> Registers:
        """The victim's registers at an exit (p4)."""
        self._take(Power.USE_REGISTERS)
        return Registers(self._victim().cpu)

    @property
    def emulation(self) -> Emulated:
        """What the instruction that has left the guest reads and writes (p9)."""
        self._take(Power.EMULATE)
        return Emulated(self._victim().cpu)

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
    def service(self) -> Service:
        """What the built-in guest does for whoever asks (A6)."""
        self._take(Power.CLIENT)
        if not isinstance(self._guest, BuiltIn):
            raise Thwarted("the victim is not the built-in guest")
        return Service(self._guest)

    def type(self, line: bytes) -> bytes:
        """Type a line at the shell of a Linux victim, and read what it writes (A6)."""
        self._take(Power.CLIENT)
        return self._linux().type(line)

    def disk_requests(self) -> list[tuple[int, int]]:
        """Where a Linux victim has let its disk, which the host emulates, read or write last (p9)."""
        self._take(Power.EMULATE)
        return self._linux().disk_requests()

    def _linux(self) -> LinuxVictim:
        if not isinstance(self._guest, LinuxVictim):
            raise Thwarted("the victim is no Linux")
        return self._guest

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

    @property
    def two_cpus(self) -> TwoCpus:
        """Two virtual CPUs of the victim's (p6), and an unprivileged program on one of them (A15)."""
        self._take(Power.WITHHOLD_FLUSH)
        self._take(Power.PROCESS)
        return TwoCpus(self._victim())

    def launch(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Launch the victim by one LAUNCH_UPDATE_DATA for each piece, at the adversary's places (p12).

        Raises:
            Thwarted: its owner does not trust what it sees.
        """
        self._take(Power.CARRY_LAUNCH)
        if self._scene.launcher is None:
            raise Thwarted("there is nothing to launch")
        try:
            self._guest = self._scene.launcher(pieces)
        except (BadMeasurement, Untrusted) as refusal:
            raise Thwarted(str(refusal)) from None

    def spoofed(self, *, rip: int, cr3: int, map_memory: bool = True, flush: bool = True) -> Spoofed:
        """A virtual CPU of the adversary's own that runs under the victim's ASID (p5).

        Args:
            rip: where it begins.
            cr3: its page tables.
            map_memory: its nested tables map the victim's memory; else nothing.
            flush: it begins without the translations of that ASID; with them is a power of its own (p6).
        """
        self._take(Power.EDIT_VMCB)
        if not flush:
            self._take(Power.WITHHOLD_FLUSH)
        return Spoofed(self._host, self._victim(), rip=rip, cr3=cr3, map_memory=map_memory, flush=flush)

    def own_guest(self) -> OwnGuest:
        """A guest of the adversary's own (p12), protected as the host likes."""
        self._take(Power.RUN_GUEST)
        return OwnGuest(self._host, sev=self._own_sev)

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

    def reset(self) -> tuple[bytes, bytes]:
        """Reset the machine, and read all of memory with C=0 and with C=1 from what is started then (p14)."""
        self._take(Power.RESET)
        machine = self._host.machine
        machine.reset()
        plain, decrypted = (
            machine.memory.read(Spa(0), machine.memory_size, key) for key in (UNENCRYPTED, HOST)
        )
        return plain, decrypted
