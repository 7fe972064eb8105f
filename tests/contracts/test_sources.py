"""What the tests judge by: every vector has an origin, every absent judge says how to get it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RequireProgram = Callable[[str, str], list[str]]


def test_every_folder_of_vectors_says_where_it_is_from_and_what_it_proves(vectors: Path) -> None:
    folders = {path.name for path in vectors.iterdir() if path.is_dir()}
    index = (vectors / "README.md").read_text(encoding="utf-8")
    assert set() == {folder for folder in folders if not (vectors / folder / "README.md").is_file()}
    assert set() == {folder for folder in folders if folder not in index}


@pytest.mark.oracle
def test_an_absent_judge_is_skipped_with_what_to_install(require_program: RequireProgram) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no-such-judge is not here: apt .*CBIT_NO_SUCH_JUDGE"):
        require_program("no-such-judge", "apt install judges")


@pytest.mark.oracle
def test_a_judge_may_be_named_by_the_environment(
    require_program: RequireProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = tmp_path / "judge"
    judge.write_text("#!/bin/sh\necho guilty\n")
    judge.chmod(0o755)
    monkeypatch.setenv("CBIT_THE_JUDGE", str(judge))
    assert [str(judge)] == require_program("the-judge", "apt install judges")


@pytest.mark.oracle
def test_a_distributions_script_finds_its_own_modules(require_program: RequireProgram) -> None:
    validate = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu python3-libvirt")
    ended = subprocess.run([*validate, "--help"], capture_output=True, text=True, check=False)
    assert (0, "") == (ended.returncode, ended.stderr)
