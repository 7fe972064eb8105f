"""``cbit attack``: what a person and a program see of the lab."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cbit.attacks import experiments
from cbit.attacks.experiments import ALL, named
from cbit.cli import linux_files, main
from cbit.cli.packages import NoPackage

EXECUTES = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("cc")
pytestmark = pytest.mark.skipif(not EXECUTES, reason="victims want Linux on x86-64 and gcc: apt install gcc")


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert code == main(["attack", *words, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_list_names_every_attack_with_its_powers(capsys: pytest.CaptureFixture[str]) -> None:
    attacks = told(capsys, "list")["result"]["attacks"]
    assert [attack.name for attack in ALL] == [attack["name"] for attack in attacks]
    assert all(attack["powers"] and attack["idea"] and len(attack["expect"]) == 5 for attack in attacks)
    assert 0 == main(["attack", "list"])
    text = capsys.readouterr().out
    assert all(attack.name in text for attack in ALL)


def test_run_shows_steps_and_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["attack", "run", "replay"])
    text = capsys.readouterr().out
    assert "the old ciphertext is put back" in text
    assert "sev: succeeds (1 of 1 secrets)" in text
    answer = told(capsys, "run", "debug-policy", "--variant", "nodbg")
    assert ("attack run", "stopped") == (answer["command"], answer["result"]["verdict"])
    assert "POLICY_FAILURE" in answer["result"]["note"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("run", "rowhammer"), "no attack 'rowhammer'"),
        (("run", "replay", "--mode", "tdx"), "no mode 'tdx': there are none, sme, sev, sev-es, sev-snp"),
        (("run", "replay", "--variant", "x"), "replay has no variant 'x'"),
        (("run", "replay", "--set", "x=1"), "no parameter 'x'"),
        (("run", "block-move-xe", "--set", "corpus_mib"), "'corpus_mib': write NAME=VALUE"),
        (("run", "block-move-xe", "--set", "corpus_mib=much"), "'much' is no number"),
        (("sweep", "block-move-xe", "--over", "corpus_mib=1:2"), "FIRST:LAST:STEP"),
        (("sweep", "block-move-xe", "--over", "corpus_mib=3:2:1"), "FIRST:LAST:STEP"),
        (("sweep", "block-move-xe", "--over", "x=1"), "no parameter 'x'"),
        (("sweep", "replay", "--seeds", "0"), "0 cases"),
        (("matrix", "--only", "rowhammer"), "no attack 'rowhammer'"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    answer = told(capsys, *words, code=2)
    assert not answer["ok"]
    (reason,) = answer["reasons"]
    assert why in reason


def test_matrix_runs_the_rows_that_are_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("matrix", "--only", "host-read", "--jobs", "1", "--journal", str(tmp_path / "journal"))
    cells = told(capsys, *words)["result"]["cells"]
    assert ["succeeds", "succeeds", "stopped", "not modelled", "not modelled"] == [
        c["verdict"] for c in cells
    ]
    assert cells == told(capsys, *words)["result"]["cells"]
    assert 0 == main(["attack", *words])
    assert "SUCCEEDS      SUCCEEDS      stopped" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("matrix", "--only", "replay"), ("sweep", "replay")])
def test_a_journal_that_is_none_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF\x02\xff\n\xfe")
    answer = told(capsys, *words, "--journal", str(program), code=2)
    assert [f"{program}, line 1: not a journal of this lab"] == answer["reasons"]
    assert b"\x7fELF\x02\xff\n\xfe" == program.read_bytes()
    answer = told(capsys, *words, "--journal", str(tmp_path), code=2)
    assert str(tmp_path) in answer["reasons"][0]


def test_matrix_says_what_it_cannot_show_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("matrix", "--only", "register-oracle", "--only", "replay", "--jobs", "1")
    unshown = told(capsys, *words)["result"]["not_shown_stopped"]
    assert ["register-oracle"] == list(unshown)
    assert 0 == main(["attack", *words])
    text = capsys.readouterr().out
    assert f"  not shown stopped: {unshown['register-oracle']}\n" in text
    assert "  with counter        sev: stopped" in text


def test_sweep_runs_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    cases = told(capsys, "sweep", "replay", "--seeds", "2", "--mode", "none", "--jobs", "1")["result"][
        "cases"
    ]
    assert [1, 2] == [case["seed"] for case in cases]


def test_where_there_is_no_linux_its_rows_say_so_and_the_others_are_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent() -> None:
        raise NoPackage("apt-get is not here")

    monkeypatch.setattr(linux_files, "fetch_linux", absent)
    monkeypatch.setattr(experiments, "ALL", (named("host-read"), named("linux-tools")))
    journal = tmp_path / "journal"
    assert 0 == main(["attack", "matrix", "--jobs", "1", "--journal", str(journal)])
    text = capsys.readouterr().out
    assert "host-read             SUCCEEDS" in text
    assert "linux-tools           NOT RUN" in text
    assert "not run: linux-tools: apt-get is not here" in text
    _, *results = map(json.loads, journal.read_text().splitlines())
    kept = [line["result"]["verdict"] for line in results]
    assert "not run" not in kept  # another time it may be
    for words in (("run", "linux-tools"), ("matrix", "--only", "linux-tools"), ("sweep", "linux-tools")):
        assert ["apt-get is not here"] == told(capsys, *words, code=2)["reasons"]
    reasons = told(capsys, "run", "linux-tools", "--kernel", "vmlinuz", code=2)["reasons"]
    assert "belong together" in reasons[0]
