"""The owner's day: certificates, a session, a launch, a checked receipt."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.spec.firmware_table import HASH_TABLE, SEV_SECRET, build
from cli.owner.day import PASSPHRASE, Cli, area, measure, platform_launches
from owner.worlds import emulated


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    table = build({HASH_TABLE: area(0x810C00, 0x400), SEV_SECRET: area(0x810000, 0xC00)})
    path = tmp_path / "OVMF.fd"
    path.write_bytes(b"firmware".ljust(8192 - 32 - len(table), b"\x90") + table + bytes(32))
    return path


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return emulated().write(tmp_path / "certs")


@pytest.fixture
def launch(cli: Cli, certs: Path, tmp_path: Path) -> Path:
    """A folder with a session that was opened for the emulated platform."""
    code, _ = cli(
        *("owner", "session", "--chain", certs, "--trust", certs / "ark.cert"),
        *("--policy", "NODBG", "--out", tmp_path / "launch"),
    )
    assert 0 == code
    return tmp_path / "launch"


@pytest.fixture
def reported(launch: Path, firmware: Path, tmp_path: Path) -> Path:
    path = tmp_path / "launch.json"
    path.write_text(platform_launches(launch, firmware).to_json())
    return path


@pytest.fixture
def checked(cli: Cli, launch: Path, firmware: Path, reported: Path, tmp_path: Path) -> Path:
    code, found = cli(*measure(launch, firmware, reported), "--receipt", tmp_path / "checked.json")
    assert (0, "trusted") == (code, found["result"]["verdict"])
    return tmp_path / "checked.json"


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE)
    return path
