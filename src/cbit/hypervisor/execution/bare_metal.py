"""Software on the bare machine: a core without a hypervisor, and a Linux that is the host.

      kernel's page tables: C-bit -> the host's key     SYSCFG bit 23: it may     CPUID: no hypervisor

Its physical addresses are the machine's own.  Ports, CPUID and MSRs are answered by the board and the core;
WBINVD really empties the caches.  What a guest would exit for to a hypervisor, such a core stops for here.

Paper: memory-encryption.md §2.2, §4.1, §5 (devices drive the C-bit), §6.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from cbit.cpu.control import AddressRules
from cbit.cpu.core import Core
from cbit.cpu.engine.block_loan import HeldBlock
from cbit.cpu.engine.checks import C_BIT
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.host_tables import HostTranslator
from cbit.cpu.physical import CachedMemory, PhysicalPort
from cbit.hypervisor.devices.chipset import ABSENT_REGISTERS, Chipset
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.devices.serial import Console
from cbit.hypervisor.execution import monitor
from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.exits import EXIT_NAMES, Exits, Stop
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.execution.msrs import msr_map
from cbit.hypervisor.execution.state import AT_INTERCEPTS, AT_SAVE, BARE_INTERCEPTS, ProcessorState
from cbit.hypervisor.execution.string_io import LinearMemory
from cbit.machine.board import Machine
from cbit.memory.dma import DmaPort
from cbit.memory.dram import anonymous
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED
from cbit.spec.linux_boot import BootImage, Unbootable
from cbit.spec.vmsa import Vmsa

_NO_ROM: Final = Spa(0xC0000)  # where a video adapter's ROM would be: a bus without one gives ones


class _Registers:
    """What a core keeps on the chip, in the form of a VMCB.  In no memory of the machine."""

    def __init__(self) -> None:
        self.view: Final = memoryview(anonymous(PAGE, dumpable=False))

    def read(self, at: int, length: int) -> bytes:
        return bytes(self.view[at : at + length])

    def write(self, at: int, data: bytes) -> None:
        self.view[at : at + len(data)] = data


class BareCpu(ProcessorState):
    """A core that executes software of the host."""

    def __init__(
        self,
        core: Core,
        start: Vmsa,
        *,
        memory: CachedMemory,
        memory_size: int,
        elsewhere: Mapping[Spa, Spa],
    ) -> None:
        """Put the core at its first instruction.

        Args:
            core: which.
            start: its registers.
            memory: what lies behind the core.
            memory_size: bytes of DRAM.
            elsewhere: pages behind DRAM that can be read, and the frame of DRAM that each shows.

        Raises:
            NoEngine: this computer cannot execute anything.
        """
        self._core = core
        self._port = PhysicalPort(memory)
        self._registers = _Registers()
        self._memory_size = memory_size
        self._elsewhere = elsewhere
        self._msrpm = msr_map()
        self._registers.write(0, bytes(AT_SAVE))
        self._registers.write(AT_INTERCEPTS, BARE_INTERCEPTS.to_bytes(8, "little"))
        super().__init__(self._registers, core.new_context(), start)
        self._held = HeldBlock(self._registers.view.cast("Q"))

    def enter(self, *, blocks: int | None) -> Exit:
        """Execute until the board is needed, or so many blocks (errors as ``Core.execute_bare``)."""
        done = self._core.execute_bare(
            self._registers.view,
            self._msrpm,
            self.context,
            memory_size=self._memory_size,
            elsewhere=self._elsewhere,
            blocks=blocks,
        )
        self.keep_event()
        return done

    def linear_memory(self) -> LinearMemory:
        """Walk its own tables, whose C-bit chooses the host's key."""
        rules = AddressRules(C_BIT, C_BIT) if self._core.encryption_on else AddressRules(C_BIT + 1, None)
        return LinearMemory(HostTranslator(self._port, rules), self._port, self.controls, user=self.user)

    @property
    def blocks(self) -> int:
        """The clock of the core that executes it."""
        return self._core.engine.blocks

    def flush_caches(self) -> None:
        """WBINVD."""
        self._core.wbinvd()


class BareDma:
    """Devices of the bare machine: they drive the C-bit where the software puts it into their addresses."""

    def __init__(self, port: DmaPort, core: Core) -> None:
        self._port = port
        self._core = core

    def read(self, gpa: int, length: int) -> bytes:
        """Read memory as a device sees it (errors as ``DmaPort.read``)."""
        return self._now().read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """Write memory (errors as ``DmaPort.write``)."""
        self._now().write(gpa, data)

    def _now(self) -> DmaPort:
        self._port.c_bit = self._core.guest_features.c_bit if self._core.encryption_on else None
        return self._port


class LinuxHost:
    """A Linux that owns the machine, and may encrypt itself with the host's key.

    Mutable.

    Attributes:
        machine: all of it is Linux's.
        monitor: what runs it.
    """

    def __init__(
        self, machine: Machine, image: BootImage, console: Console, *, epoch: int, disks: Sequence[Disk] = ()
    ) -> None:
        """Do what a boot loader does: put the image into memory, unencrypted, and go where it starts.

        Args:
            machine: it is on, and nothing else uses it.
            image: what to start.
            console: the other end of the serial line.
            epoch: seconds since 1970 in its clock.
            disks: virtio disks.

        Raises:
            NoEngine: this computer cannot execute anything.
            Unbootable: the machine has less memory than the image was made for.
        """
        if image.memory_size > machine.memory_size:
            there = f"the machine has {machine.memory_size}"
            raise Unbootable(f"an image made for {image.memory_size} bytes of memory; {there}")
        for region in image.regions:
            machine.memory.write(Spa(region.gpa), region.data, UNENCRYPTED)
        machine.memory.write(_NO_ROM, b"\xff" * PAGE, UNENCRYPTED)
        core, elsewhere = machine.cores[0], {Spa(ABSENT_REGISTERS): _NO_ROM}
        cpu = BareCpu(
            core,
            image.entry.save_area(),
            memory=machine.memory,
            memory_size=image.memory_size,
            elsewhere=elsewhere,
        )
        clock = BlockClock(core)
        dma = BareDma(DmaPort(machine.memory, c_bit=None), core)
        devices = Chipset(clock, console=console, epoch=epoch, disks=disks, dma=dma, trace=machine.trace)
        self._exits = Exits(cpu, cpuid=GuestCpuid(core, sev=False, host=True), ports=devices)
        self._exits.msrs.become_host(core)
        self.machine = machine
        self.monitor: Final = Monitor(cpu, self._exits, devices, clock)

    def run(self, *, until: Callable[[], bool] = lambda: False) -> Stop | Enum | None:
        """Execute until somebody says that it is enough (None), or the machine ends (why).

        Raises:
            EngineFault: as ``Core.execute_bare``.
        """
        monitor.run([self.monitor], until=until)
        return self.monitor.stop

    @property
    def exits(self) -> dict[str, int]:
        """How often the core stopped for the board, by what for."""
        return {EXIT_NAMES.get(code, hex(code)): count for code, count in sorted(self._exits.counts.items())}
