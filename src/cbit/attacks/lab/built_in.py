"""The built-in guest as the victim: launched for its owner like any guest, with its few devices.

    GPA  0x800000 its memory   0x80F000 the owner's secrets   0x1000000 a kernel, if it is to have one
         0xFFFF0000 its image, where it starts out of reset

Its image is public, and so is the kernel; what its owner seals into it is not.

Paper: sev-api.md §7 (launch); launch-inputs.md §6.1 (reset state).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cbit.attacks.lab.guest import CPUID, IOIO, MSR, CpuAtExit, Victim, install
from cbit.attacks.tenant import Tenant, expect_memory
from cbit.cpu.engine.control_block import Exit
from cbit.crypto.entropy import Entropy
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import IMAGE, MEMORY, MEMORY_SIZE, SECRET, Request, reset_state
from cbit.hypervisor.devices.requests import Asked
from cbit.hypervisor.execution.exits import Next
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.small_guest import SmallGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import Gpa

KERNEL: Final = 0x1000000  #: guest physical; the guest itself does not look at it


@dataclass(slots=True)
class BuiltIn(Victim):
    """The victim.

    Attributes:
        small: the guest, with its console and its box of requests.
    """

    small: SmallGuest

    def emulate(self, exit: Exit) -> bool:
        """Answer its ports, CPUID and model-specific registers as an honest hypervisor does."""
        return exit.code in (IOIO, CPUID, MSR) and self.small.emulate(exit) is Next.RUN

    def put(self, number: Request, *arguments: int) -> Asked:
        """Put a request into its box; it finds it there when it runs."""
        return self.small.requests.ask(number, *arguments)


def boot_built_in(
    host: Host,
    protection: Protection,
    secrets: bytes,
    *,
    kernel: bytes,
    tenant: Tenant,
    entropy: Entropy,
    pieces: Sequence[tuple[int, bytes]] | None = None,
    addresses: bool = False,
) -> BuiltIn:
    """Launch the guest up to its first instruction.

    Args:
        host: where.
        protection: how.
        secrets: the owner's secret table.
        kernel: what is measured behind the image and lies at `KERNEL`; may be empty.
        tenant: its owner.
        entropy: the owner's randomness.
        pieces: what the host loads and measures, in this order, each at its guest address; by default the
            image and the kernel, as the owner means it.
        addresses: its owner wants a digest that covers addresses.

    Raises:
        FirmwareError, BadMeasurement, Untrusted: the launch fails.
        NoEngine: this computer cannot execute guests.
    """
    firmware = image()
    vm = Vm(host, protection)
    vm.load_firmware(firmware)
    vm.add_memory(MEMORY, MEMORY_SIZE)
    whole: Sequence[tuple[int, bytes]] = [(IMAGE, firmware)]
    if kernel:
        vm.add_memory(Gpa(KERNEL), len(kernel))
        whole = [*whole, (KERNEL, kernel)]
    tenant = replace(
        tenant,
        image=firmware + kernel,
        expected=expect_memory(firmware + kernel),
        layout=tuple(whole) if addresses else (),
    )
    pieces = whole if pieces is None else pieces
    sev = install(vm, pieces, secrets, SECRET, tenant=tenant, entropy=entropy)
    small = SmallGuest(vm, reset_state())
    return BuiltIn(vm, CpuAtExit(host, small.vcpu.vmcb_at, small.vcpu.context), sev, small)
