"""What the tests of commands that run other programs share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redirect.conftest import OPENS, environment, insist, kvm_mechanism, mechanism, open_folder, reasons

__all__ = ["kvm_mechanism", "mechanism", "open_folder"]  # fixtures that are theirs too


@pytest.fixture(scope="session")
def refusals() -> dict[str, str]:
    return reasons("")


@pytest.fixture
def any_way(refusals: dict[str, str]) -> None:
    insist(OPENS, refusals)


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    program = tmp_path_factory.mktemp("client") / "sev_client"
    source = Path(__file__).parent / "sev_client.c"
    built = subprocess.run(
        [compiler, "-O1", "-Wall", "-o", str(program), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "psp-sev.h" in built.stderr:
        pytest.skip("linux/psp-sev.h is not here: apt install linux-libc-dev")
    assert 0 == built.returncode, built.stderr
    return program


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a new machine, for the tests of one module."""
    machine = tmp_path_factory.mktemp("made") / "machine"
    subprocess.run(
        [sys.executable, "-m", "cbit", "setup", "--state", machine, "--profile", "naples"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=True,
    )
    return machine
