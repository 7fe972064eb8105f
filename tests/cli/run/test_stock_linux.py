"""The distribution's own kernel under `cbit run`, one boot a mode.

It finds its board and its encryption, opens its encrypted disk, works on another, takes commands, and ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.compiler import NoCompiler
from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.unlock import unlock_program
from cbit.guest.linux.user_space import user_space
from cbit.spec import secret_table
from cbit.spec.secret_table import DISK_PASSPHRASE
from engine_here import missing

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.timeout(1200)]

KEY = bytes(range(64))
PLANTED = b"a sentence that only memory holds"
SECTORS = b"".join(hashlib.sha256(bytes([i >> 8, i & 0xFF])).digest() * 16 for i in range(2048))
WORDS = b"written by the guest"
#: The sentence is put together in the guest, so that the image does not hold it.
COMMANDS = f"""
export S='a sentence that only'; export T="$S memory holds"
echo "size $(cat /sys/block/vdb/size)"
echo "serial $(cat /sys/block/vdb/serial)"
md5sum /dev/vdb
printf '{WORDS.decode()}' | dd of=/dev/vdb bs=512 seek=7 conv=sync 2>/dev/null
sync
date -u +year=%Y
cat /proc/interrupts
"""


@dataclass(frozen=True)
class Linux:
    """What every boot has in common."""

    folder: Path
    words: tuple[str, ...]


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory, machine: Path) -> Linux:
    if why := missing():
        pytest.skip(why)
    try:
        files, unlock = fetch_linux(), unlock_program()
    except (NoPackage, NoCompiler) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("linux")
    initrd = user_space(files.busybox.read_bytes(), modules=files.modules, unlock=unlock, commands=COMMANDS)
    (folder / "initrd").write_bytes(initrd)
    (folder / "secret").write_bytes(secret_table.build([(DISK_PASSPHRASE, KEY)]))
    words = ("--kernel", str(files.kernel), "--initrd", str(folder / "initrd"), "--state", str(machine))
    return Linux(folder, words)


def booted(linux: Linux, folder: Path, mode: str, typed: str) -> tuple[int, dict[str, Any]]:
    (folder / "encrypted").write_bytes(
        encrypted_disk.encrypt(encrypted_disk.archive({"note": b"the disk is open\n"}), KEY)
    )
    (folder / "plain").write_bytes(SECTORS)
    words = [*linux.words, "--mode", mode, "--memory", "192M", "--cache", "256M", "--seed", "1"]
    words += ["--disk", str(folder / "encrypted"), "--disk", str(folder / "plain"), "--timeout", "900"]
    if mode != "none":  # there, nobody gives a key away
        words += ["--secret", str(linux.folder / "secret")]
    words += ["--report", str(folder / "report.json"), "--dump-dram", str(folder / "dram.bin")]
    command = [sys.executable, "-m", "cbit", "run", *words]
    done = subprocess.run(command, input=typed.encode(), capture_output=True, check=False)
    return done.returncode, json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("mode", "last_words", "end"),
    [
        ("none", "reboot -f", "reboot"),
        ("sme", "echo c > /proc/sysrq-trigger", "panic"),
        ("sev", "poweroff -f", "power-off"),
    ],
)
def test_it_uses_its_board_opens_its_disk_takes_commands_and_ends(
    linux: Linux, tmp_path: Path, mode: str, last_words: str, end: str
) -> None:
    ended, report = booted(linux, tmp_path, mode, f"echo typed $((6 * 7))\n{last_words}\n")
    text = "\n".join(report["console"])
    assert (int(end == "panic"), end) == (ended, report["end"]), text[-2000:]
    says = re.findall("Memory Encryption Features active: AMD (SEV|SME)", text)
    assert ([] if mode == "none" else [mode.upper()]) == says
    assert "typed 42" in text, text[-3000:]
    assert ("the disk is open" in text) is (mode != "none")
    assert ("nobody injected a secret" in text) is (mode == "none")
    assert ("/dev/vda stays closed" in text) is (mode == "none")
    if end == "panic":
        assert "Kernel panic - not syncing: sysrq triggered crash" == report["why"]

    for found in (
        "ACPI: Using PIC for interrupt routing",
        "PCI: Using configuration type 1 for base access",
        "ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A",
        "registered as rtc0",
        "i8042: PNP: No PS/2 controller found.",
        "year=2023",
        f"size {len(SECTORS) // 512}\nserial cbit-disk-2\n",
        f"{hashlib.md5(SECTORS).hexdigest()}  /dev/vdb",
    ):
        assert found in text
    before_the_end = text.partition("typed 42")[0].lower()
    for wrong in (
        "ACPI Error",
        "ACPI Warning",
        "ACPI BIOS Error",
        "firmware bug",
        "Call Trace",
        "nobody cared",
    ):
        assert wrong.lower() not in before_the_end
    lines = dict(re.findall(r"^ +(\d+): +(\d+) +XT-PIC", text, re.MULTILINE))
    assert {"0", "2", "4", "8", "9", "10", "11"} <= set(lines)
    assert int(lines["0"]) > 10  # ticks
    assert int(lines["10"]) > 1  # requests to the second disk

    after = SECTORS[: 7 * 512] + WORDS.ljust(512, b"\0") + SECTORS[8 * 512 :]
    assert after == (tmp_path / "plain").read_bytes()
    # The positive control of the search is the same search in memory that nobody encrypted.
    assert (PLANTED in (tmp_path / "dram.bin").read_bytes()) is (mode == "none")


def test_one_seed_gives_the_same_boot(linux: Linux, machine: Path, tmp_path: Path) -> None:
    """As far as the first lines after the decompressor, which has drawn an address for the kernel by then."""
    reports = []
    for run in ("one", "other"):
        # Each on a copy of the machine: its first INIT draws keys that it keeps.
        shutil.copytree(machine, tmp_path / run)
        words = [
            *linux.words,
            "--state",
            str(tmp_path / run),
            "--mode",
            "sev",
            "--memory",
            "192M",
            "--seed",
            "5",
            "--timeout",
            "900",
        ]
        words += ["--until", "Memory Encryption Features active", "--report", str(tmp_path / "report.json")]
        command = [sys.executable, "-m", "cbit", "run", *words]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    one, other = reports
    for name in ("console", "executed_blocks", "exits", "fills", "evictions", "guest_seconds", "launch"):
        assert one[name] == other[name], name
    assert one["executed_blocks"] > 10_000_000


@pytest.mark.parametrize(("append", "ends"), [("", "panic"), ("swiotlb=8192", "seen")])
def test_a_small_encrypted_guest_lacks_what_its_bounce_buffers_take_until_it_takes_fewer(
    linux: Linux, tmp_path: Path, append: str, ends: str
) -> None:
    report = tmp_path / "report.json"
    words = [*linux.words, "--mode", "sev", "--append", append, "--memory", "128M", "--until", "/ #"]
    command = [sys.executable, "-m", "cbit", "run", *words, "--timeout", "240", "--report", str(report)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    account = json.loads(report.read_text())
    assert (int(ends == "panic"), ends) == (done.returncode, account["end"]), done.stderr[-500:]
    assert (ends == "panic") == ("64 MiB of its memory went to bounce buffers" in account["why"])
