"""The distribution's own kernel under `cbit run`: it sees its encryption, opens its disk, takes commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.cpu.engine.errors import NoEngine
from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.romfs import romfs
from cbit.guest.linux.unlock import unlock_program
from cbit.guest.linux.user_space import user_space
from cbit.spec import secret_table
from cbit.spec.secret_table import DISK_PASSPHRASE
from cli.run.conftest import no_engine

KEY = bytes(range(64))
PLANTED = b"a sentence that only memory holds"
#: The sentence is put together in the guest, so that the image does not hold it.
COMMANDS = "cat /mnt/note; export S='a sentence that only'; export T=\"$S memory holds\"; cat /proc/uptime"
SAYS = {
    "none": "",
    "sme": "Memory Encryption Features active: AMD SME",
    "sev": "Memory Encryption Features active: AMD SEV",
}


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What every boot has in common, as arguments."""
    if why := no_engine():
        pytest.skip(why)
    try:
        files, unlock = fetch_linux(), unlock_program()
    except (NoPackage, NoEngine) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("linux")
    initrd = user_space(files.busybox.read_bytes(), modules=files.modules, unlock=unlock, commands=COMMANDS)
    (folder / "initrd").write_bytes(initrd)
    (folder / "disk").write_bytes(encrypted_disk.encrypt(romfs({"note": b"the disk is open\n"}), KEY))
    (folder / "secret").write_bytes(secret_table.build([(DISK_PASSPHRASE, KEY)]))
    words = ["--kernel", str(files.kernel), "--initrd", str(folder / "initrd")]
    return [*words, "--disk", str(folder / "disk"), "--secret", str(folder / "secret")]


def booted(linux: list[str], folder: Path, mode: str, typed: str) -> tuple[int, dict[str, Any]]:
    words = ["--mode", mode, "--seed", "1", "--timeout", "500", "--report", str(folder / "report.json")]
    command = [sys.executable, "-m", "cbit", "run", *linux, *words, "--dump-dram", str(folder / "dram.bin")]
    done = subprocess.run(command, input=typed.encode(), capture_output=True, check=False)
    return done.returncode, json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["none", "sme", "sev"])
def test_it_boots_opens_its_disk_takes_commands_and_powers_off(
    linux: list[str], tmp_path: Path, mode: str
) -> None:
    code, report = booted(linux, tmp_path, mode, "echo typed $((6 * 7))\npoweroff -f\n")
    console = "\n".join(report["console"])
    assert (0, "power-off") == (code, report["end"]), console[-2000:]
    assert "the disk is open" in console
    assert "typed 42" in console
    assert SAYS[mode] in console
    dump = (tmp_path / "dram.bin").read_bytes()
    # The positive control of the search is the same search in memory that nobody encrypted.
    assert (PLANTED in dump) is (mode == "none")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kernel_without_user_space_panics(linux: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cbit", "run", "--mode", "sev", *linux[:2], "--timeout", "500"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert 1 == done.returncode
    assert b"cbit run: Kernel panic - not syncing: VFS: Unable to mount root fs" in done.stderr
