"""A file of a state folder that is no file, or has no end, is refused by its name; nobody waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateError, StateFolder
from cbit.redirect.kds_files import Published
from cbit.redirect.kds_tls import Authority
from cbit.secure_processor.nv_store import LARGEST, read_file
from cbit.spec.address import MIB
from cbit.spec.command import Command
from cbit.spec.status import Status
from cbit.testing.worlds import a_host, a_machine
from cbit.trace import Event
from machine.worlds import state


def endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to(os.devnull), "not a regular file"),
    "too large": (endless, "16777217 bytes, and no file of a machine has more than 16777216"),
    "a folder": (Path.mkdir, "Is a directory"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = a_host(a_machine(state(tmp_path)))  # with the certificates of its platform
    made.machine.power_off()
    made.machine._state.close()
    return made.machine._state.path


def spoil(path: Path, how: str) -> str:
    path.unlink(missing_ok=True)
    make, why = ODD[how]
    make(path)
    return why


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("name", ["cbit.json", "chip/fuses.bin", "spi/sev_firmware.bin", "spi/x86_boot.bin"])
def test_a_machine_is_not_made_of_it(folder: Path, name: str, how: str) -> None:
    why = spoil(folder / name, how)
    with pytest.raises(StateError) as refused, StateFolder(folder) as opened:
        Machine(opened, Options(memory_size=4 * MIB)).power_on()
    assert f"{folder / name}: {why}; make a new machine with 'cbit setup'" == str(refused.value)


@pytest.mark.parametrize("how", ODD)
def test_init_says_so_of_the_nv_store(folder: Path, how: str) -> None:
    why = spoil(folder / "spi/sev.nv", how)
    with StateFolder(folder) as opened:
        machine = Machine(opened, Options(memory_size=4 * MIB))
        machine.power_on()
        with pytest.raises(FirmwareError) as refused:
            Host(machine).initialise()
    assert (Status.HWERROR_PLATFORM, f"NV store: {why}") == (refused.value.status, refused.value.why)


@pytest.mark.parametrize("how", ODD)
def test_what_cannot_be_compared_is_not_published(folder: Path, how: str) -> None:
    why = spoil(folder / "certs/pdh.cert", how)
    heard: list[Event] = []
    with StateFolder(folder) as opened:
        machine = Machine(opened, Options(memory_size=4 * MIB))
        machine.power_on()
        with machine.trace.watched_by(heard.append, only="machine"):
            Host(machine).initialise()
            Host(machine).ccp.issue(Command.PEK_GEN)
    assert {f"{folder / 'certs/pdh.cert'}: {why}: not published"} == {event.why for event in heard}


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("name", ["cbit.json", "certs/cek.cert", "certs/ask_ark.cert", "certs/pek.cert"])
def test_the_key_server_names_it(folder: Path, name: str, how: str) -> None:
    why = spoil(folder / name, how)
    with pytest.raises((StateError, OSError)) as refused:
        Published.read(folder)
    assert f"{folder / name}" in str(refused.value)
    assert why in str(refused.value)


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_so_does_its_authority(folder: Path, name: str, how: str) -> None:
    Authority.of(folder, now=datetime.now(UTC))
    why = spoil(folder / "kds" / name, how)
    with pytest.raises(OSError, match=why):
        Authority.of(folder, now=datetime.now(UTC))


@pytest.mark.parametrize("size", [0, 1, LARGEST])
def test_ordinary_files_are_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    (tmp_path / "link").symlink_to("file")
    assert size == len(read_file(tmp_path / "file")) == len(read_file(tmp_path / "link"))
