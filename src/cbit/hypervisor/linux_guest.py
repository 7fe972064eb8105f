"""A directly booted Linux on one host: loaded, launched if it is to be encrypted, with a PC around it.

    LinuxGuest(host, image, …)      memory, LAUNCH_START, LAUNCH_UPDATE_DATA of every region, LAUNCH_MEASURE
    inject                          the owner's packet, into the hole of the image
    power_on                        LAUNCH_FINISH; virtual CPU and devices
    run                             until somebody says so, or the guest ends
    end                             everything goes back

Paper: sev-api.md §7, §13; launch-inputs.md §1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from cbit.hypervisor.devices.chipset import ABSENT_REGISTERS, Chipset
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.devices.serial import Console
from cbit.hypervisor.execution import monitor
from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.exits import EXIT_NAMES, Exits, Stop
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.execution.vcpu import ExecutingVcpu
from cbit.hypervisor.guest_dma import GuestDma
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa
from cbit.spec.errors import CbitError
from cbit.spec.linux_boot import BootImage
from cbit.spec.receipt import LaunchReceipt


class NotRunning(CbitError):
    """The guest has not been powered on, or has been taken away."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a guest is launched with; the defaults are a launch without an owner.

    Attributes:
        policy: the policy word.
        godh: the owner's Diffie-Hellman certificate.
        blob: the owner's session buffer.
        share_with: a guest of the same owner whose memory key this one gets, its policy permitting.
    """

    policy: int = 0
    godh: bytes = b""
    blob: bytes = b""
    share_with: SevGuest | None = None


class LinuxGuest:
    """The guest.

    Mutable.

    Attributes:
        image: what it starts from.
        vm: its memory.
        sev: its launch; None without SEV.
        receipt: what the launch measured; None without SEV.
        monitor: what runs it; None before ``power_on``.
    """

    def __init__(
        self, host: Host, image: BootImage, *, protection: Protection, session: Session | None = None
    ) -> None:
        """Load the image, and launch it if it is to be encrypted.

        Args:
            host: where.
            image: what it starts from.
            protection: how.
            session: the owner's; SEV only.

        Raises:
            OutOfMemory, NoAsid, FirmwareError: it cannot be launched here; nothing is left behind.
        """
        self.image = image
        self.sev: SevGuest | None = None
        self.receipt: LaunchReceipt | None = None
        self.monitor: Monitor | None = None
        self._exits: Exits | None = None
        self.vm = Vm(host, protection)
        try:
            self.vm.add_memory(Gpa(0), image.memory_size)
            self._add_absent_registers()
            for region in image.regions:
                self.vm.load(region.gpa, region.data)
            if protection is Protection.SEV:
                self._launch(session or Session())
        except BaseException:
            self.end()
            raise

    def _add_absent_registers(self) -> None:
        """Let reads of the chipset's registers in memory give ones, as on a board that has none there."""
        page = self.vm.take_page()
        self.vm.host.write(page, b"\xff" * PAGE, c=self.vm.c)
        frames = range(page, page + PAGE, PAGE)
        self.vm.tables.map(ABSENT_REGISTERS, frames, c=self.vm.c, writable=False)

    def _launch(self, session: Session) -> None:
        self.sev = SevGuest.start(
            self.vm,
            policy=session.policy,
            godh=session.godh,
            session=session.blob,
            share_with=session.share_with,
        )
        for region in self.image.regions:
            self.sev.update(region.gpa, len(region.data))
        self.receipt = self.sev.measure()

    def inject(self, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET: hand the owner's packet over.

        Raises:
            NotRunning: a guest without SEV, which has no launch.
            FirmwareError: the packet is not for this launch, or too large.
        """
        if self.sev is None:
            raise NotRunning("a secret is injected into a launch: this guest has none")
        self.sev.inject(self.image.secret_gpa, header, payload)

    def power_on(
        self,
        console: Console,
        *,
        epoch: int,
        disks: Sequence[Disk] = (),
        core: int = 0,
        clock: BlockClock | None = None,
    ) -> Monitor:
        """LAUNCH_FINISH, then the virtual CPU at its first instruction, with devices.

        Args:
            console: the other end of the serial line.
            epoch: seconds since 1970 in the guest's clock.
            disks: virtio disks, /dev/vda first.
            core: which core executes it.
            clock: the time that guests which take turns on a core share.

        Raises:
            NoEngine: this computer cannot execute guests.
            FirmwareError: the launch cannot be finished.
        """
        host = self.vm.host
        processor = host.machine.cores[core]
        sev = self.vm.protection is Protection.SEV
        vcpu = ExecutingVcpu(self.vm, self.image.entry.save_area(), core=core)
        if self.sev is not None:
            self.sev.finish()
        clock = clock or BlockClock(processor)
        dma = GuestDma(self.vm, host.machine.dma_port())
        devices = Chipset(clock, console=console, epoch=epoch, disks=disks, dma=dma, trace=host.machine.trace)
        self._exits = Exits(vcpu, cpuid=GuestCpuid(processor, sev=sev), ports=devices)
        self.monitor = Monitor(vcpu, self._exits, devices, clock)
        return self.monitor

    def run(self, *, until: Callable[[], bool] = lambda: False) -> Stop | Enum | None:
        """Execute until somebody says that it is enough (None), or the guest ends (why).

        Raises:
            NotRunning: it is not on.
            EngineFault, VmexitInvalid: as ``Core.execute``.
        """
        if self.monitor is None:
            raise NotRunning("the guest is not on")
        monitor.run([self.monitor], until=until)
        return self.monitor.stop

    @property
    def exits(self) -> dict[str, int]:
        """How many #VMEXITs it had, by their names."""
        counts = self._exits.counts if self._exits else {}
        return {EXIT_NAMES.get(code, hex(code)): count for code, count in sorted(counts.items())}

    def end(self) -> None:
        """Take the guest away; nothing happens the second time."""
        sev, self.sev, self.monitor = self.sev, None, None
        if sev is not None:
            sev.release()
        self.vm.destroy()
