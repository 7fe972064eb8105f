"""``cbit setup``: a machine whose certificates the owner's command accepts if told to trust their root."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cbit.cli import main
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
from cbit.secure_processor import nv_store
from cbit.spec.address import MIB
from cbit.testing.worlds import a_host


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    assert found["ok"] is (code == 0)
    return code, found


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["setup", "--state", str(tmp_path / "machine"), "--profile", "naples", "--json"]) == 0
    capsys.readouterr()
    return tmp_path / "machine"


def test_the_certificates_verify_for_whoever_trusts_the_root(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certs = made / "certs"
    code, found = run(capsys, "owner", "verify", certs, "--trust", certs / "ark.cert")
    assert code == 0
    assert "SIMULATED" in json.dumps(found["result"])
    code, found = run(capsys, "owner", "verify", certs)
    assert code == 1
    assert "not one of AMD's pinned roots" in found["reasons"][0]


def test_a_certificate_with_one_bit_changed_does_not(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert = made / "certs" / "pek.cert"
    content = bytearray(cert.read_bytes())
    content[0x20] ^= 1
    cert.write_bytes(content)
    code, _ = run(capsys, "owner", "verify", made / "certs", "--trust", made / "certs" / "ark.cert")
    assert code == 1


@pytest.mark.parametrize("profile", ["naples", "rome", "milan", "genoa"])
def test_the_answer_describes_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    from cbit.machine.manufacture import make_root

    monkeypatch.setattr("cbit.machine.manufacture.make_root", lambda _bits, **_options: make_root(2048))
    code, found = run(capsys, "setup", "--state", tmp_path / "m", "--profile", profile)
    result = found["result"]
    assert code == 0
    keys = [
        "state",
        "profile",
        "api",
        "build",
        "chip_id",
        "root_pin",
        "root",
        "root_key_id",
        "compat",
        "certs",
    ]
    assert keys == list(result)
    assert (result["profile"], result["root"]) == (profile, "SIMULATED")
    assert len(result["chip_id"]) == 128
    assert json.loads((tmp_path / "m/cbit.json").read_text())["chip_id"] == result["chip_id"]
    assert [f"{name}.cert" for name in ("ark", "ask", "ask_ark", "cek", "oca", "pdh", "pek")] == result[
        "certs"
    ]
    with StateFolder(tmp_path / "m") as state:
        host = a_host(_on(state))
        assert host.chip_id().hex() == result["chip_id"]
        exported = host.export_chain()
        assert exported[:0x824] == state.read(
            "certs/pdh.cert"
        )  # the platform's identity is the published one


def _on(state: StateFolder) -> Machine:
    machine = Machine(state, Options(memory_size=MIB))
    machine.power_on()
    return machine


def test_a_person_is_told_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "--state", str(tmp_path / "m"), "--profile", "naples"]) == 0
    out, err = capsys.readouterr()
    assert f"cbit owner verify {tmp_path / 'm'}/certs --trust {tmp_path / 'm'}/certs/ark.cert" in out
    assert "SIMULATED (not AMD's)" in out
    assert "making a 2048-bit root" in err


def test_secrets_are_their_owners_alone_and_not_in_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = run(capsys, "setup", "--state", tmp_path / "m", "--profile", "naples")
    printed = json.dumps(found)
    for file in (tmp_path / "m").rglob("*"):
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert (b"PRIVATE KEY" in file.read_bytes()) is (file.suffix == ".pem")
    fuses = (tmp_path / "m/chip/fuses.bin").read_bytes()
    assert not any(fuses[at : at + 16].hex() in printed for at in (0x10, 0x20, 0x30, 0x40))


def test_a_folder_in_use_by_something_else_is_refused(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    code, found = run(capsys, "setup", "--state", made, "--profile", "naples")
    assert code == 2
    assert "is not empty" in found["reasons"][0]
    assert before == {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    (tmp_path / "file").write_bytes(b"")
    code, found = run(capsys, "setup", "--state", tmp_path / "file" / "m", "--profile", "naples")
    assert code == 2
    assert "Not a directory" in found["reasons"][0]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("", "is not empty"),  # the folder that one is in
        ("full", "is not empty"),
        ("full/file", "File exists"),
        ("full/file/m", "Not a directory"),
        ("/proc/m", "No such file or directory"),
        ("held", "in use by another cbit process"),
    ],
)
def test_a_folder_that_cannot_be_had_is_refused_before_a_root_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str, why: str
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the folder is looked at before a root is made")

    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "held").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cbit.machine.manufacture.make_root", too_late)
    lock = os.open("held", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    code, found = run(capsys, "setup", "--state", where)
    os.close(lock)
    assert (2, True) == (code, why in found["reasons"][0]), found
    assert {"full", "held", "full/file"} == {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}


@pytest.mark.parametrize("name", ["plain", "two words", "it's $HOME;`id`", "-dash", "über\\x"])
def test_the_next_command_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from cbit.machine.manufacture import make_root

    monkeypatch.setattr("cbit.machine.manufacture.make_root", lambda _bits, **_options: make_root(2048))
    monkeypatch.chdir(tmp_path)
    assert 0 == main(["setup", f"--state={name}"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next"))
    told = subprocess.run(
        ["sh", "-c", 'cbit() { printf "%s\\n" "$@"; }; ' + line.removeprefix("next")],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    words = told.stdout.splitlines()
    assert 0 == main(words)
    assert words[2].removeprefix("./") == f"{name}/certs"


def test_a_disk_that_fills_up_leaves_nothing_half_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(nv_store, "replace_file", full)  # the first start cannot save the platform's identity
        code, found = run(capsys, "setup", "--state", tmp_path / "m", "--profile", "naples")
    assert code == 2
    assert "INIT: HWERROR_PLATFORM" in found["reasons"][0]
    assert "No space left on device" in found["reasons"][0]
    assert list((tmp_path / "m").iterdir()) == []
    code, _ = run(capsys, "setup", "--state", tmp_path / "m", "--profile", "naples")
    assert code == 0


def test_senseless_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "setup", "--state", tmp_path / "m", "--profile", "zen9")
    assert code == 2
    assert "no profile 'zen9'" in found["reasons"][0]
    assert not (tmp_path / "m").exists()
    code, found = run(capsys, "setup")
    assert code == 2
    assert "--state" in found["reasons"][0]


@pytest.mark.parametrize("profile", ["naples", "rome", "milan", "genoa"])
def test_the_borrowed_key_ids_are_those_of_amds_roots(profile: str, vectors: Path) -> None:
    from cbit.machine.manufacture import AMD_KEY_IDS
    from cbit.owner.verify.roots import AMD_ROOTS

    assert AMD_KEY_IDS[profile].hex() in {
        root.key_id for root in AMD_ROOTS if root.product.lower() == profile
    }
    published = vectors / "amd-root" / f"ark_{profile}.cert"
    if published.exists():  # there is no published one of Rome among the vectors
        assert published.read_bytes()[4:20] == AMD_KEY_IDS[profile]


def test_a_root_with_amds_key_id_is_still_nobodys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = tmp_path / "machine"
    code, found = run(capsys, "setup", "--state", machine, "--profile", "naples", "--compat", "amd-key-id")
    assert (0, ["amd-key-id"], "SIMULATED") == (code, found["result"]["compat"], found["result"]["root"])
    assert "1bb987c359494606b174945601c9ea5b" == found["result"]["root_key_id"]
    assert "SIMULATED" in json.loads((machine / "cbit.json").read_text())["root"]
    certs = machine / "certs"
    code, found = run(capsys, "owner", "verify", certs)
    assert code == 1, "refused by its fingerprint, whatever its key id says"
    assert "carries the key id of AMD's Naples root, but is not that key" in found["reasons"][0]
    code, found = run(capsys, "owner", "verify", certs, "--trust", certs / "ark.cert")
    assert code == 0
    assert "SIMULATED" in json.dumps(found["result"])


def test_no_key_id_is_borrowed_unasked(made: Path) -> None:
    assert b"cbit SIMULATED A" == (made / "certs/ark.cert").read_bytes()[4:20]


def test_there_is_one_compatibility(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["setup", "--state", str(tmp_path / "m"), "--compat", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
