"""The house stands as drawn: imports go down only, a module is no longer than a reader's patience."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cbit

ROOT = Path(__file__).parents[2]
LONGEST = 500  # lines; past it, look for the second idea in the file


def test_every_import_contract_is_kept() -> None:
    check = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    ended = subprocess.run(
        [sys.executable, "-c", check, "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(Path(cbit.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_no_module_is_too_long(folder: str) -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {} == {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LONGEST}
