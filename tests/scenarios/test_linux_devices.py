"""A stock kernel and the devices of its board: it finds them, uses its disk under SEV, powers off, resets."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.cpu.engine.errors import NoEngine
from cbit.guest.linux.user_space import user_space
from cbit.hypervisor.devices.chipset import Chipset
from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.devices.power import Power
from cbit.hypervisor.execution.bare_metal import LinuxHost
from cbit.hypervisor.execution.exits import Stop
from cbit.hypervisor.host import Protection
from cbit.hypervisor.linux_guest import LinuxGuest
from cbit.spec.acpi import tables
from cbit.spec.address import MIB
from cbit.spec.linux_boot import ACPI_BASE, boot_image, command_line
from machine.worlds import host, machine

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.timeout(600)]

EPOCH = 1_700_000_000  # in 2023
MEMORY = 192 * MIB
SECTORS = b"".join(hashlib.sha256(bytes([i >> 8, i & 0xFF])).digest() * 16 for i in range(2048))
WORDS = b"written by the guest"
COMMANDS = f"""
echo "size $(cat /sys/block/vda/size)"
echo "serial $(cat /sys/block/vda/serial)"
md5sum /dev/vda
printf '{WORDS.decode()}' | dd of=/dev/vda bs=512 seek=7 conv=sync 2>/dev/null
sync
date -u +year=%Y
cat /proc/interrupts
"""


@dataclass
class Ended:
    """What a run left behind."""

    text: str
    stop: Stop | Enum | None
    disk: MemoryDisk
    chipset: Chipset


class Printer:
    """A console that nobody types at."""

    def __init__(self) -> None:
        self.text = bytearray()

    def write(self, byte: int) -> None:
        self.text.append(byte)

    def read(self) -> bytes:
        return b""


def boot(folder: Path, mode: str, last_words: str) -> Ended:
    files = fetch_linux()
    image = boot_image(
        files.kernel.read_bytes(),
        user_space(files.busybox.read_bytes(), modules=files.modules, commands=COMMANDS + last_words),
        cmdline=command_line("mem_encrypt=on" if mode == "sme" else ""),
        memory_size=MEMORY,
        acpi=tables(ACPI_BASE),
    )
    console, disk = Printer(), MemoryDisk(SECTORS)
    runs: LinuxHost | LinuxGuest
    if mode == "sme":
        bare = machine(folder, memory_size=MEMORY, cache_size=256 * MIB)
        runs = LinuxHost(bare, image, console, epoch=EPOCH, disks=[disk])
        monitor = runs.monitor
    else:
        on = host(folder, memory_size=MEMORY + 64 * MIB, cache_size=256 * MIB)
        runs = LinuxGuest(on, image, protection=Protection(mode))
        monitor = runs.power_on(console, epoch=EPOCH, disks=[disk])
    stop = runs.run(until=lambda: monitor.clock.ns > 60 * 10**9)
    text = console.text.decode(errors="replace").replace("\r", "")
    assert isinstance(monitor.devices, Chipset)
    return Ended(text, stop, disk, monitor.devices)


@pytest.mark.parametrize(
    ("mode", "last_words", "expected"),
    [
        ("none", "reboot -f", Power.RESET),
        ("sme", "poweroff -f", Power.OFF),
        ("sev", "poweroff -f", Power.OFF),
    ],
)
def test_linux_uses_its_board(tmp_path: Path, mode: str, last_words: str, expected: Power) -> None:
    try:
        ended = boot(tmp_path, mode, last_words)
    except (NoPackage, NoEngine) as error:
        pytest.skip(str(error))
    text = ended.text
    assert expected is ended.stop, text
    says = re.findall("Memory Encryption Features active: AMD (SEV|SME)", text)
    assert ([] if mode == "none" else [mode.upper()]) == says

    for found in (
        "ACPI: Using PIC for interrupt routing",
        "PCI: Using configuration type 1 for base access",
        "ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A",
        "registered as rtc0",
        "i8042: PNP: No PS/2 controller found.",
        "year=2023",
    ):
        assert found in text
    for wrong in (
        "ACPI Error",
        "ACPI Warning",
        "ACPI BIOS Error",
        "firmware bug",
        "Call Trace",
        "nobody cared",
    ):
        assert wrong.lower() not in text.lower()
    lines = dict(re.findall(r"^ +(\d+): +(\d+) +XT-PIC", text, re.MULTILINE))
    assert {"0", "2", "4", "8", "9", "11"} <= set(lines)
    assert int(lines["0"]) > 10  # ticks
    assert int(lines["11"]) > 1  # requests to the disk

    assert f"size {len(SECTORS) // 512}\nserial cbit-disk-1\n" in text
    assert f"{hashlib.md5(SECTORS).hexdigest()}  /dev/vda" in text
    assert SECTORS[: 7 * 512] + WORDS.ljust(512, b"\0") + SECTORS[8 * 512 :] == ended.disk.data
    assert 0 == ended.chipset.interrupts.spurious
