"""The devices of one guest, wired: what the run loop sees of them.

    on an I/O exit          value = chipset.read(port, size)        chipset.write(port, size, value)
    before each VMRUN       chipset.advance()                       time has passed, somebody may have typed
                            if chipset.interrupts.pending and the guest accepts interrupts:
                                vector = chipset.interrupts.acknowledge()
    when the guest halts    ns = chipset.next_event_ns()            move the clock there, then advance()
                            None: only the console can wake it: wait for it, then chipset.poll()
    after each exit         chipset.power_event                     None, Power.OFF or Power.RESET

``pending`` is a plain attribute: look before you call.  ``acknowledge`` is for the moment of injection: it
takes the request away, and the guest's end-of-interrupt is awaited.
Everything that time decides is computed from the guest's clock; nothing here reads the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cbit.hypervisor.devices.clock import GuestClock
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.devices.pci import Function, HostBridge, PciBus
from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.pit import Pit
from cbit.hypervisor.devices.ports import Ports
from cbit.hypervisor.devices.power import Power, PowerControl
from cbit.hypervisor.devices.rtc import Rtc
from cbit.hypervisor.devices.serial import Console, Serial
from cbit.hypervisor.devices.virtio.block import Block
from cbit.hypervisor.devices.virtio.console import RECEIVE, Channel, VirtioConsole
from cbit.hypervisor.devices.virtio.function import VirtioFunction
from cbit.hypervisor.devices.virtio.queue import Dma
from cbit.spec.address import Gpa
from cbit.trace import SILENT, Trace

#: Where AMD's chipsets have their power management registers, and none of these devices has any.  Linux on a
#: Zen processor reads there unasked (why it was reset last, since 6.16); where nothing answers, that is ones.
ABSENT_REGISTERS: Final = Gpa(0xFED8_0000)

CHANNEL_SLOT: Final = 31
POLL_NS: Final = 1_000_000  # how often the console is asked for input, in guest time
_POST: Final = 0x80  # a power-on code, or a delay


class Chipset:
    """The board of one guest.

    Mutable.

    Args:
        clock: the guest's time.
        console: the other end of the serial line.
        epoch: seconds since 1970 when the guest is powered on.
        disks: virtio disks; the first is /dev/vda of a Linux guest.
        channel: the other end of a virtio console (/dev/hvc0 of a Linux guest); None: it has none.
        dma: how devices reach guest memory; a machine without virtio devices can do without.
        trace: who watches.

    Attributes:
        interrupts: the interrupt controllers.
        pci: the bus: disks in the slots from 1 on, the virtio console in the last.
        ports: the table of ports, with a count of accesses that nobody answered.
        power: power management.
    """

    def __init__(
        self,
        clock: GuestClock,
        *,
        console: Console,
        epoch: int,
        disks: Sequence[Disk] = (),
        channel: Channel | None = None,
        dma: Dma | None = None,
        trace: Trace = SILENT,
    ) -> None:
        if (disks or channel) and dma is None:
            raise ValueError("virtio devices reach guest memory by DMA: give the chipset a way")
        if len(disks) >= CHANNEL_SLOT:
            raise ValueError(f"{len(disks)} disks: {CHANNEL_SLOT - 1} at most")
        self._clock = clock
        self.ports = Ports(trace)
        self.interrupts = Interrupts()
        self.serial = Serial(console, self.interrupts)
        self.pit = Pit(clock, self.interrupts)
        self.rtc = Rtc(clock, epoch=epoch, interrupts=self.interrupts)
        self.power = PowerControl(clock, self.interrupts, trace)
        self._timers = (self.pit, self.rtc, self.power)
        functions: dict[int, Function] = {0: HostBridge()}
        if dma is not None:
            for slot, disk in enumerate(disks, 1):
                functions[slot] = VirtioFunction(Block(disk, f"cbit-disk-{slot}"), dma, trace)
        self._channel: tuple[VirtioConsole, VirtioFunction] | None = None
        if dma is not None and channel is not None:
            console_device = VirtioConsole(channel)
            functions[CHANNEL_SLOT] = function = VirtioFunction(console_device, dma, trace)
            self._channel = console_device, function
        self.pci = PciBus(functions, interrupts=self.interrupts, trace=trace)
        for device in (self.interrupts, self.serial, self.pit, self.rtc, self.power, self.pci):
            device.attach(self.ports)
        self.ports.byte(_POST, lambda: 0, lambda value: None)
        self.read = self.ports.read
        self.write = self.ports.write
        self._next_poll = 0

    @property
    def power_event(self) -> Power | None:
        """What the guest asked for, if it wants to end."""
        return self.power.event

    def advance(self) -> None:
        """Let the devices see that time has passed, and fetch what was typed."""
        now = self._clock.ns
        for timer in self._timers:
            if timer.due_ns is not None and now >= timer.due_ns:
                timer.advance()
        if now >= self._next_poll:
            self._next_poll = now + POLL_NS
            self.poll()

    def poll(self) -> None:
        """Fetch what was typed or sent, whatever the time."""
        self.serial.poll()
        if self._channel is not None:
            device, function = self._channel
            if device.fetch():
                function.notify(RECEIVE)

    def next_event_ns(self) -> int | None:
        """When the next timer will raise a line; None: no timer is set."""
        first = None
        for timer in self._timers:  # asked at every exit: a loop is faster than a generator
            due = timer.due_ns
            if due is not None and (first is None or due < first):
                first = due
        return first
