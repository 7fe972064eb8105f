"""``cbit owner session``."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from cli.owner.day import Cli
from owner.worlds import CASE


def test_session_writes_the_usual_files(cli: Cli, launch: Path) -> None:
    names = {path.name for path in launch.iterdir()}
    assert names == {
        *("godh.cert", "godh.b64", "launch_blob.bin", "launch_blob.b64", "tmp_tk.bin", "session.json"),
    }
    assert (2084, 128, 32) == tuple(
        (launch / name).stat().st_size for name in ("godh.cert", "launch_blob.bin", "tmp_tk.bin")
    )
    for name in ("godh.cert", "launch_blob.bin"):
        twin = base64.b64decode((launch / name).with_suffix(".b64").read_bytes(), validate=True)
        assert (launch / name).read_bytes() == twin
    if os.name == "posix":
        assert 0o600 == stat.S_IMODE((launch / "tmp_tk.bin").stat().st_mode)


def test_session_never_overwrites_keys(cli: Cli, launch: Path, certs: Path) -> None:
    before = {path.name: path.read_bytes() for path in launch.iterdir()}
    words = (
        "owner",
        "session",
        "--chain",
        certs,
        "--trust",
        certs / "ark.cert",
        "--policy",
        "1",
        "--out",
        launch,
    )
    code, found = cli(*words)
    assert (2, True) == (code, "there already and holds keys" in found["reasons"][0])
    assert before == {path.name: path.read_bytes() for path in launch.iterdir()}


def test_session_is_not_made_for_an_unverified_chain(cli: Cli, certs: Path, tmp_path: Path) -> None:
    code, _ = cli("owner", "session", "--chain", certs, "--policy", "1", "--out", tmp_path / "none")
    assert 1 == code
    assert not (tmp_path / "none").exists()


def test_session_prints_no_key_and_marks_the_simulation(cli: Cli, certs: Path, tmp_path: Path) -> None:
    words = ("owner", "session", "--chain", certs, "--trust", certs / "ark.cert", "--policy", "1", "--out")
    code, out, err = cli.read(*words, tmp_path / "one")
    assert (0, "") == (code, err)
    assert "SIMULATED" in out
    keys = (tmp_path / "one" / "tmp_tk.bin").read_bytes()
    for form in (keys.hex(), keys[:16].hex(), keys[16:].hex(), base64.b64encode(keys).decode()):
        assert form not in out


def test_session_dangerously_unverified_says_so(cli: Cli, tmp_path: Path) -> None:
    words = (
        "owner",
        "session",
        "--chain",
        CASE / "pdh.cert",
        "--policy",
        "1",
        "--dangerously-unverified",
        "--out",
    )
    code, found = cli(*words, tmp_path / "one")
    assert (0, True) == (code, found["result"]["dangerously_unverified"])
    assert not json.loads((tmp_path / "one" / "session.json").read_text())["verified"]
    assert "DANGEROUSLY UNVERIFIED" in cli.read(*words, tmp_path / "two")[1]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0x1", 1),
        ("3", 3),
        ("NODBG|NOKS", 3),
        ("nodbg | nosend", 9),
        ("NODBG|0x18000000", 0x18000001),
        ("0", 0),
    ],
)
def test_policies_in_numbers_and_names(cli: Cli, certs: Path, tmp_path: Path, text: str, word: int) -> None:
    words = ("owner", "session", "--chain", certs, "--trust", certs / "ark.cert", "--out", tmp_path / "one")
    code, found = cli(*words, "--policy", text)
    assert (0, word) == (code, found["result"]["policy"])


@pytest.mark.parametrize("text", ["", "NODEBUG", "0x40", "0x100000000", "NODBG|", "-1", "1.5"])
def test_a_policy_that_means_nothing_is_refused(cli: Cli, certs: Path, tmp_path: Path, text: str) -> None:
    words = ("owner", "session", "--chain", certs, "--trust", certs / "ark.cert", "--out", tmp_path / "one")
    assert 2 == cli(*words, f"--policy={text}")[0]
    assert not (tmp_path / "one").exists()
