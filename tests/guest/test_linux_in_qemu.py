"""QEMU's own CPU and disk, Debian's kernel: they start from our layout, unpack our archives, open our disk.

The layout goes into memory as it stands; a ROM of a few instructions does what the entry state says.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.compiler import NoCompiler
from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.unlock import unlock_program
from cbit.guest.linux.user_space import user_space
from cbit.spec import secret_table
from cbit.spec.linux_boot import BootImage, EntryState, boot_image, command_line
from cbit.spec.secret_table import DISK_PASSPHRASE

RequireProgram = Callable[[str, str], list[str]]
KEY = bytes(range(64))
ROM = 0x10000  # bytes; it ends at 4 GiB and at 1 MiB


def rom(entry: EntryState) -> bytes:
    """Leave real mode with the entry state's segments and registers, and jump."""
    out = bytearray(ROM)
    base = 0x100000 - ROM
    out[0x100:0x106] = struct.pack("<HI", entry.gdtr.limit, entry.gdtr.base)
    real = bytes.fromhex("fa 66 2e 0f 01 16 00 01")  # cli; lgdt cs:[0x100]
    real += bytes.fromhex("0f 20 c0 0c 01 0f 22 c0")  # cr0 |= 1
    real += b"\x66\xea" + struct.pack("<IH", base + 0x200, entry.cs.selector)  # jmp far
    out[: len(real)] = real
    flat = b"\x66\xb8" + struct.pack("<H", entry.data.selector)  # mov ax; ds, es, ss, fs, gs
    flat += bytes.fromhex("8ed8 8ec0 8ed0 8ee0 8ee8") + b"\xbe" + struct.pack("<I", entry.rsi)
    flat += bytes.fromhex("31db 31ff 31ed") + b"\xb8" + struct.pack("<I", entry.rip) + b"\xff\xe0"
    out[0x200 : 0x200 + len(flat)] = flat
    out[0xFFF0:0xFFF5] = b"\xea" + struct.pack("<HH", 0, base >> 4)
    return bytes(out)


def boot(qemu: list[str], image: BootImage, disk: bytes, folder: Path) -> str:
    (folder / "rom").write_bytes(rom(image.entry))
    (folder / "disk").write_bytes(disk)
    words = [*qemu, "-accel", "tcg", "-m", str(image.memory_size >> 20), "-bios", str(folder / "rom")]
    words += ["-display", "none", "-serial", "stdio", "-no-reboot", "-net", "none"]
    words += ["-drive", f"file={folder / 'disk'},format=raw,if=none,id=disk"]
    words += ["-device", "virtio-blk-pci,drive=disk,disable-legacy=on"]
    for number, region in enumerate(image.regions):
        file = folder / f"region{number}"
        file.write_bytes(region.data)
        words += ["-device", f"loader,file={file},addr={region.gpa:#x},force-raw=on"]
    ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=800, check=False)
    assert b"" == ended.stderr
    return ended.stdout.decode(errors="replace").replace("\r", "")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.timeout(1800)
def test_linux_starts_from_the_layout_and_opens_the_disk(
    require_program: RequireProgram, tmp_path: Path
) -> None:
    qemu = require_program("qemu-system-x86_64", "apt install qemu-system-x86")
    try:
        files, unlock = fetch_linux(), unlock_program()
    except (NoPackage, NoCompiler) as error:
        pytest.skip(str(error))
    commands = "cat /proc/cmdline; reboot -f"  # a machine without ACPI cannot be switched off
    initrd = user_space(files.busybox.read_bytes(), modules=files.modules, unlock=unlock, commands=commands)
    kernel = files.kernel.read_bytes()
    disk = encrypted_disk.encrypt(encrypted_disk.archive({"note": b"the disk is open\n"}), KEY)
    secret = secret_table.build([(DISK_PASSPHRASE, KEY)])

    line = command_line("quiet tenant=alice")
    printed = boot(qemu, boot_image(kernel, initrd, cmdline=line, secret=secret), disk, tmp_path)
    assert "\n/dev/dm-0 is open\nthe disk is open\n" in printed
    assert f"\n{line}\n" in printed

    wrong = secret_table.build([(DISK_PASSPHRASE, KEY[::-1])])
    printed = boot(qemu, boot_image(kernel, initrd, cmdline=line, secret=wrong), disk, tmp_path)
    assert "\n/dev/dm-0 is open\n" in printed
    assert "the disk is open" not in printed  # a wrong key gives noise, and noise is no file system


@pytest.mark.parametrize("words", [[], ["/dev/vda"], ["/dev/vda", "disk", "key"]])
def test_the_program_that_unlocks_takes_no_key_as_an_argument(words: list[str], tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "unlock"
    program.write_bytes(unlock_program(tmp_path))
    program.chmod(0o755)
    ended = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    assert (1, "unlock: usage: unlock DEVICE NAME\n") == (ended.returncode, ended.stderr)


def test_without_a_secret_it_says_so(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "unlock"
    program.write_bytes(unlock_program(tmp_path))
    program.chmod(0o755)
    ended = subprocess.run([str(program), "/dev/null", "disk"], capture_output=True, text=True, check=False)
    assert 2 == ended.returncode
    assert "nobody injected a secret: /secret/table is empty" in ended.stderr


def test_the_same_source_gives_the_same_program(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    assert unlock_program(tmp_path / "a") == unlock_program(tmp_path / "b")
