"""The state folder: one process at a time, typed errors, nothing half-made."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host
from cbit.machine import state_folder
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import load_vendor_key, manufacture
from cbit.machine.profiles import PROFILES
from cbit.machine.state_folder import StateError, StateFolder, erase_state, write_state
from cbit.secure_processor import nv_store
from cbit.spec.address import MIB
from cbit.spec.states import PlatformState
from cbit.spec.status import Status
from cbit.testing.worlds import a_root
from machine.worlds import state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = state(tmp_path)
    made.close()
    return made.path


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


# ---- making one


def test_every_file_is_its_owners_alone(folder: Path) -> None:
    assert {0o600} == {stat.S_IMODE((folder / name).stat().st_mode) for name in files(folder)}


def test_private_keys_are_where_they_belong_and_nowhere_else(folder: Path) -> None:
    holding = [name for name in files(folder) if b"PRIVATE KEY" in (folder / name).read_bytes()]
    assert ["manufacturer/ark.pem", "manufacturer/ask.pem", "manufacturer/vendor.pem"] == holding
    secret = (folder / "chip/fuses.bin").read_bytes()
    seed = next(secret[at : at + 32] for at in range(0, len(secret) - 32, 4) if any(secret[at : at + 32]))
    assert not any(
        seed in (folder / name).read_bytes() for name in files(folder) if not name.startswith("chip/")
    )


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(StateError, match="is not empty"):
        write_state(tmp_path, {"cbit.json": b"{}"})
    assert files(tmp_path) == ["diary.txt"]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match="file"):
            write_state(path, {"cbit.json": b"{}"})


def test_a_full_disk_leaves_no_half_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    original = nv_store.replace_file

    def until_full(path: Path, content: bytes) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        original(path, content)

    path = tmp_path / "machine"
    with monkeypatch.context() as full:
        full.setattr(state_folder, "replace_file", until_full)
        with pytest.raises(StateError, match="No space left on device"):
            _manufacture(path)
    assert len(written) == 5
    assert files(path) == []
    _manufacture(path)  # the second attempt finds an empty folder
    StateFolder(path).close()


def _manufacture(path: Path) -> None:
    manufacture(path, PROFILES["naples"], entropy=SeededEntropy(1), root=a_root("naples"))


def test_erasing_takes_everything_and_keeps_the_folder(folder: Path) -> None:
    erase_state(folder)
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


# ---- opening one


def test_a_second_process_is_refused_in_a_sentence(folder: Path) -> None:
    program = (
        f"import pathlib; from cbit.machine.state_folder import *; StateFolder(pathlib.Path({str(folder)!r}))"
    )
    with StateFolder(folder):
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "StateError" in other.stderr
        assert "is in use by another cbit process" in other.stderr
        with pytest.raises(StateError, match="in use"):
            StateFolder(folder)
    alone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert alone.returncode == 0


def test_a_folder_is_not_manufactured_into_while_somebody_holds_it(tmp_path: Path) -> None:
    lock = state_folder._lock(tmp_path)
    with pytest.raises(StateError, match="in use"):
        write_state(tmp_path, {"cbit.json": b"{}"})
    os.close(lock)


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"No such file.*cbit setup --state"):
        StateFolder(tmp_path / "nowhere")
    with pytest.raises(StateError, match=rf"cbit setup --state '{tmp_path}/no where'"):
        StateFolder(tmp_path / "no where")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b"[" * 100_000, "damaged"),
        (json.dumps({"format": 1, "profile": ["milan"]}).encode(), "damaged"),
        (json.dumps({"format": 1, "profile": "zen9"}).encode(), "no profile 'zen9'"),
        (json.dumps({"format": 2, "profile": "milan"}).encode(), "format 2, this cbit reads 1"),
    ],
)
def test_a_damaged_description_is_refused_and_the_lock_released(
    folder: Path, content: bytes, why: str
) -> None:
    good = (folder / "cbit.json").read_bytes()
    (folder / "cbit.json").write_bytes(content)
    with pytest.raises(StateError, match=why) as caught:
        StateFolder(folder)
    assert "cbit.json" in str(caught.value) or "format" in str(caught.value)
    (folder / "cbit.json").write_bytes(good)
    StateFolder(folder).close()


@given(content=st.binary(max_size=200))
def test_only_typed_errors_come_out_of_a_description(content: bytes) -> None:
    class Fake(StateFolder):
        def __init__(self) -> None:
            self.path = Path("folder")

        def read(self, name: str) -> bytes:
            return content

    with pytest.raises(StateError):
        Fake()._read_profile()


@pytest.mark.parametrize(
    "damage",
    [lambda chip: b"", lambda chip: chip[:-1], lambda chip: chip + b"\x00", lambda chip: bytes(len(chip))],
)
def test_a_damaged_chip_is_refused(folder: Path, damage: object) -> None:
    assert callable(damage)
    chip = folder / "chip/fuses.bin"
    chip.write_bytes(damage(chip.read_bytes()))
    with StateFolder(folder) as opened, pytest.raises(StateError, match=r"fuses\.bin"):
        opened.fuses()


def test_a_damaged_vendor_key_is_refused() -> None:
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(StateError, match="vendor's key"):
            load_vendor_key(pem)


def test_another_kind_of_key_is_not_the_vendors(folder: Path) -> None:
    with pytest.raises(StateError, match="not a P-384 key"):
        load_vendor_key((folder / "manufacturer/ask.pem").read_bytes())


# ---- running from one


def _refuse_to_write(why: int) -> object:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(why, os.strerror(why), str(path))

    return refuse


@pytest.mark.parametrize(
    ("why", "sentence"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_init_on_a_folder_that_cannot_be_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, why: int, sentence: str
) -> None:
    before = files(folder)
    with StateFolder(folder) as opened:
        machine = Machine(opened, Options(memory_size=MIB))
        machine.power_on()  # the boot chain only reads
        host = Host(machine)
        with monkeypatch.context() as broken:
            broken.setattr(nv_store, "replace_file", _refuse_to_write(why))
            with pytest.raises(FirmwareError, match=sentence) as caught:
                host.initialise()
        assert caught.value.status == Status.HWERROR_PLATFORM
        assert host.status().state == PlatformState.UNINIT
        assert before == files(folder)
        host.initialise()
        assert host.status().state == PlatformState.INIT


def test_a_platform_that_has_its_identity_needs_no_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StateFolder(folder) as opened:
        first = Machine(opened, Options(memory_size=MIB))
        first.power_on()
        host = Host(first)
        host.initialise()
        chain = host.export_chain()
        first.power_off()
        monkeypatch.setattr(nv_store, "replace_file", _refuse_to_write(errno.EROFS))
        first.power_on()
        again = Host(first)
        again.initialise()
        assert chain == again.export_chain()


@pytest.mark.parametrize(
    "damage", [lambda nv: nv[:100], lambda nv: b"", lambda nv: bytes([nv[0] ^ 1]) + nv[1:]]
)
def test_a_damaged_nv_store_costs_the_identity_and_nothing_else(folder: Path, damage: object) -> None:
    assert callable(damage)
    with StateFolder(folder) as opened:
        machine = Machine(opened, Options(memory_size=MIB))
        machine.power_on()
        host = Host(machine)
        host.initialise()
        before = host.export_chain()
        opened.nv_path.write_bytes(damage(opened.nv_path.read_bytes()))
        machine.reset()
        host = Host(machine)
        host.initialise()  # twice, as drivers do: the first INIT erased the store
        assert before[:0x824] != host.export_chain()[:0x824]


def test_a_write_that_fails_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StateFolder(folder) as opened:
        before = opened.read("certs/cek.cert")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            with pytest.raises(StateError, match=r"cek\.cert: No space left"):
                opened.write("certs/cek.cert", b"another")
        assert before == opened.read("certs/cek.cert")
        assert not list(folder.rglob("*.new"))
