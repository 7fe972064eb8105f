"""A guest that boots directly: launched, measured, given its secret, run; kernels here are short."""

from __future__ import annotations

import pytest

from cbit.driver.errors import FirmwareError
from cbit.hypervisor.devices.power import Power
from cbit.hypervisor.execution.exits import Next, Stop
from cbit.hypervisor.frames import OutOfMemory
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.linux_guest import LinuxGuest, NotRunning
from cbit.hypervisor.small_guest import Transcript
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi
from cbit.spec.address import MIB
from cbit.spec.linux_boot import ACPI_BASE, SECRET_AT, BootImage, boot_image, command_line
from cbit.testing.kernels import a_kernel
from cpu.engine.worlds import assemble
from hypervisor.worlds import account

LOAD = 2 * MIB
SIZE = 8 * MIB
BOTH = pytest.mark.parametrize("protection", [Protection.NONE, Protection.SEV], ids=lambda p: p.value)
# What the boot protocol promises, told on the serial line: "HdrS", two letters of the command line.
TELL = """
    mov dx, 0x3F8
    mov al, [esi + 0x202]; out dx, al
    mov al, [esi + 0x203]; out dx, al
    mov edi, [esi + 0x228]
    mov al, [edi]; out dx, al
    mov al, [edi + 1]; out dx, al
    mov edi, [esi + 0x218]; add edi, [esi + 0x21C]
    mov al, [edi - 0x1000 + {secret}]; out dx, al
    {end}
"""
HALT = "cli; hlt"
OFF = "mov dx, 0x604; mov ax, 0x3400; out dx, ax; spin: jmp spin"


def kernel(end: str = HALT) -> bytes:
    code = assemble(TELL.format(secret=SECRET_AT, end=end), LOAD, 32)
    return a_kernel(code=code, pref_address=LOAD, init_size=MIB)


def an_image(image: bytes | None = None, *, secret: bytes = b"") -> BootImage:
    return boot_image(
        kernel() if image is None else image,
        cmdline=command_line("quiet"),
        memory_size=SIZE,
        acpi=acpi.tables(ACPI_BASE),
        secret=secret,
    )


def run(guest: LinuxGuest) -> tuple[bytes, Stop | object]:
    console = Transcript()
    guest.power_on(console, epoch=1_700_000_000)
    stop = guest.run()
    return bytes(console.bytes), stop


@BOTH
def test_a_kernel_starts_with_what_the_protocol_promises(host: Host, protection: Protection) -> None:
    before = account(host)
    guest = LinuxGuest(host, an_image(), protection=protection)
    said, stop = run(guest)
    assert b"Hdco\x00" == said  # no secret yet: zeros
    assert isinstance(stop, Stop)
    assert Next.HALTED is stop.next
    assert 5 == guest.exits["IOIO"]
    guest.end()
    guest.end()
    assert before == account(host)


def test_the_owner_measures_what_was_launched(host: Host) -> None:
    guest = LinuxGuest(host, an_image(), protection=Protection.SEV)
    launch = DirectLaunch(kernel=Kernel(kernel=kernel(), cmdline="quiet"), memory_size=SIZE)
    assert launch.expectation().digest == guest.image.digest()
    assert guest.receipt is not None
    for region in guest.image.regions:  # and nobody on the host can read it any more
        at = guest.vm.spa(region.gpa)
        assert region.data[:16] != host.read(at, 16)
    guest.end()


def test_a_guest_without_sev_gets_its_secret_from_the_host(host: Host) -> None:
    guest = LinuxGuest(host, an_image(secret=b"!"), protection=Protection.NONE)
    assert b"Hdco!" == run(guest)[0]
    with pytest.raises(NotRunning, match="has none"):
        guest.inject(b"", b"")
    guest.end()


def test_a_packet_that_nobody_sealed_is_refused_and_the_launch_goes_on(host: Host) -> None:
    guest = LinuxGuest(host, an_image(), protection=Protection.SEV)
    with pytest.raises(FirmwareError):
        guest.inject(bytes(0x34), bytes(16))
    assert b"Hdco\x00" == run(guest)[0]
    guest.end()


def test_a_guest_may_switch_itself_off(host: Host) -> None:
    guest = LinuxGuest(host, an_image(kernel(OFF)), protection=Protection.SEV)
    assert Power.OFF is run(guest)[1]
    guest.end()


def test_a_guest_that_is_not_on_does_not_run(host: Host) -> None:
    guest = LinuxGuest(host, an_image(), protection=Protection.NONE)
    with pytest.raises(NotRunning, match="is not on"):
        guest.run()
    guest.end()


@BOTH
def test_a_launch_that_does_not_fit_leaves_nothing_behind(host: Host, protection: Protection) -> None:
    before = account(host)
    large = boot_image(kernel(), cmdline="", memory_size=64 * MIB)
    with pytest.raises(OutOfMemory):
        LinuxGuest(host, large, protection=protection)
    assert before == account(host)
