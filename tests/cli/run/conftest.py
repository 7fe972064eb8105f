"""One machine for all runs of these tests, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cbit.cli import main
from cbit.testing.worlds import a_state
from engine_here import missing

Run = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    code: int
    raw: bytes
    err: str
    report: dict[str, Any]

    @property
    def out(self) -> str:
        return self.raw.decode("utf-8", "replace")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "machine"
    a_state(path).close()
    return path


@pytest.fixture
def run(machine: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a kernel with 32 MiB and give everything that came of it."""
    if why := missing():
        pytest.skip(why)

    def boot(kernel: bytes, *words: str, machine: Path = machine) -> Ran:
        file, report = tmp_path / "kernel", tmp_path / "report.json"
        file.write_bytes(kernel)
        arguments = ["--kernel", str(file), "--memory", "32M", "--cache", "8M", "--state", str(machine)]
        code = main(["run", *arguments, "--report", str(report), *words])
        printed = capfdbinary.readouterr()
        account = json.loads(report.read_text()) if report.exists() else {}
        return Ran(code, printed.out, printed.err.decode(), account)

    return boot
