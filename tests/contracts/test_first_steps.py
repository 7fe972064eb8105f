"""Who has typed `make demo` is told how to type a `cbit` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = ". .venv/bin/activate"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here: apt install make")
def test_make_demo_ends_with_the_line_that_the_documents_begin_with(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements/machine.txt", "pyproject.toml", ".venv/.made", ".venv/.machine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    demo = tmp_path / ".venv/bin/cbit"
    demo.parent.mkdir()
    demo.write_text("#!/bin/sh\necho '{}'\n")
    demo.chmod(0o755)
    ended = subprocess.run(
        ["make", "--no-print-directory", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout == "{}\n"  # with --json, nothing else
    assert ended.stderr.splitlines()[-1].endswith(f" {LINE}")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/how-to/index.md",
        *(
            f"docs/tutorial/{name}.md"
            for name in ("first-encrypted-guest", "your-first-secret", "verify-a-cloud-machine")
        ),
    ],
)
def test_a_page_that_one_begins_with_has_the_line(page: str) -> None:
    assert f"$ {LINE}\n" in (ROOT / page).read_text(encoding="utf-8")
