"""A stock Linux as the victim: the distribution's kernel, its encrypted disk open.

With SEV its owner verifies the platform, measures the launch and seals the disk's key; otherwise it has to
hand the key to the host, as part of what is loaded.

Paper: sev-api.md §7 (launch); launch-inputs.md §1.
Source: virtio 1.1 (OASIS), chapter 2.6 (what the host reads of its own disk's queue).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cbit.attacks.lab.guest import CpuAtExit, Crashed, Victim
from cbit.attacks.linux_launch import check, launch
from cbit.attacks.linux_owner import OwnersFiles
from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.devices.chipset import Chipset
from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.devices.virtio.function import VirtioFunction
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.execution.vcpu import ExecutingVcpu
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.linux_guest import LinuxGuest
from cbit.spec.address import MIB
from cbit.spec.errors import CbitError

MEMORY: Final = 192 * MIB  #: of the guest; 64 MiB of it become bounce buffers
HOST_MEMORY: Final = 64 * MIB  #: what the machine has besides
_EPOCH: Final = 1_700_000_000
_PROMPT: Final = b"/ # "
_BOOT_NS: Final = 120_000_000_000  # of guest time
_ANSWER_NS: Final = 10_000_000_000
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_INDIRECT: Final = 4


class NoLinux(CbitError):
    """There is no Linux to be attacked on this computer; the message says why."""


class Terminal:
    """The other end of the guest's serial line.

    Mutable.

    Attributes:
        text: what the guest has written.
        typed: what it has not read yet.
    """

    def __init__(self) -> None:
        self.text = bytearray()
        self.typed = b""

    def write(self, byte: int) -> None:
        """Take a byte."""
        self.text.append(byte)

    def read(self) -> bytes:
        """Give what was typed."""
        typed, self.typed = self.typed, b""
        return typed


@dataclass(slots=True)
class LinuxVictim(Victim):
    """The victim.

    Attributes:
        linux: the guest.
        monitor: what runs it, with its devices.
        terminal: the other end of its console.
    """

    linux: LinuxGuest
    monitor: Monitor
    terminal: Terminal

    def type(self, line: bytes) -> bytes:
        """Type a line at the shell, let the guest run until it waits again, and return what it wrote.

        Raises:
            Crashed: it does not come back to its shell.
        """
        before = len(self.terminal.text)
        self.terminal.typed = line + b"\n"
        self._until_idle(before, self.monitor.clock.ns + _ANSWER_NS)
        return bytes(self.terminal.text[before:])

    def _until_idle(self, before: int, deadline_ns: int) -> None:
        """Run until the shell waits and the processor with it; the VMCB then is as the guest left it."""
        text, monitor = self.terminal.text, self.monitor

        def idle() -> bool:
            if monitor.clock.ns > deadline_ns:
                raise Crashed("Linux does not come to its shell")
            return monitor.asleep and text.find(_PROMPT, max(before, text.rfind(b"\n"))) >= 0

        self.linux.run(until=idle)
        if monitor.stop is not None:
            raise Crashed(f"Linux has ended: {monitor.stop}")

    def disk_requests(self) -> list[tuple[int, int]]:
        """Where the guest has let its disk read or write last, as the device knows it: (address, bytes)."""
        devices = self.monitor.devices
        assert isinstance(devices, Chipset)
        function = devices.pci.functions[1]
        assert isinstance(function, VirtioFunction)
        queue = function.queues[0]
        found = []
        for gpa, length, flags, _ in self._descriptors(queue.desc, 16 * queue.size):
            found += self._descriptors(gpa, length) if flags & _INDIRECT else [(gpa, length, flags, 0)]
        return [(gpa, length) for gpa, length, _, _ in found if length]

    def _descriptors(self, gpa: int, length: int) -> list[tuple[int, int, int, int]]:
        table = self.vm.host.read(self.spa(gpa, length), length, c=self.vm.c)
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in _DESCRIPTOR.iter_unpack(table)]


def boot_linux(
    host: Host, protection: Protection, files: OwnersFiles, *, tenant: Tenant, entropy: Entropy
) -> LinuxVictim:
    """Boot a Linux up to its shell, with its encrypted disk open.

    Args:
        host: where.
        protection: how.
        files: its owner's.
        tenant: its owner, with SEV.
        entropy: the owner's randomness.

    Raises:
        FirmwareError, BadMeasurement, Untrusted: the launch fails.
        Crashed: it does not come to its shell.
        NoEngine: this computer cannot execute guests.
    """
    if protection is Protection.SEV:
        guest = _launch(host, files, tenant, entropy)
    else:
        guest = LinuxGuest(host, files.image(MEMORY, secret=files.secret), protection=protection)
    terminal = Terminal()
    monitor = guest.power_on(terminal, epoch=_EPOCH, disks=[MemoryDisk(files.disk)])
    vcpu = monitor.vcpu
    assert isinstance(vcpu, ExecutingVcpu)
    cpu = CpuAtExit(host, vcpu.vmcb_at, vcpu.context)
    victim = LinuxVictim(guest.vm, cpu, guest.sev, guest, monitor, terminal)
    victim._until_idle(0, _BOOT_NS)
    return victim


def _launch(host: Host, files: OwnersFiles, tenant: Tenant, entropy: Entropy) -> LinuxGuest:
    measuring, guest = launch(host, files.image(MEMORY), tenant, entropy=entropy)
    trusted = check(tenant, measuring, guest, files.launch(MEMORY))
    guest.inject(*trusted.seal(files.secret, entropy=entropy))
    return guest
