"""``cbit attack``: what a person and a program see of the lab."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbit.attacks import experiments
from cbit.attacks.experiments import ALL, named
from cbit.attacks.lab.case import Case, broken
from cbit.attacks.lab.executors import Processes
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.cli import linux_files, main
from cbit.cli.packages import NoPackage
from engine_here import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


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


def test_every_member_of_a_result_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    tables = [
        re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        for table in page.partition("## Results of the laboratory")[2].split("| --- | --- |")[1:]
    ]
    result = told(capsys, "run", "crossline-v1", "--set", "random_pages=1")["result"]
    assert [list(result), list(result["figures"][0]), list(result["steps"][0])] == tables
    lost = broken(Case("replay", Mode.SEV), "")
    assert sorted(result) == sorted(lost)
    verdicts = next(line for line in page.splitlines() if line.startswith("| `verdict` |"))
    assert all(f"`{verdict.value}`" in verdicts for verdict in Verdict)
    assert {"kind", "width", "cells"} == set(result["steps"][0]["picture"])


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
        (("run", "block-move-xex", "--set", "constants=zen9"), "constants is zen1 or fresh, not zen9"),
        (
            ("sweep", "block-move-xex", "--over", "constants=zen1,zen9"),
            "constants is zen1 or fresh, not zen9",
        ),
        (("sweep", "block-move-xe", "--over", "corpus_mib=one:2:3"), "'one' is no number"),
        (("sweep", "severed", "--variant", "none", "--variant", "x"), "severed has no variant 'x'"),
        (("sweep", "severed", "--mode", "sme", "--variant", "other-guest"), "other-guest is one of mode sev"),
        (("run", "severed", "--set", "memory=2"), "contiguous bytes wanted"),
        (("sweep", "block-move-xe", "--over", "corpus_mib=1:2"), "FIRST:LAST:STEP"),
        (("sweep", "block-move-xe", "--over", "corpus_mib=3:2:1"), "FIRST:LAST:STEP"),
        (("sweep", "block-move-xe", "--over", "x=1"), "no parameter 'x'"),
        (("sweep", "replay", "--seeds", "0"), "0 cases"),
        (("matrix", "--only", "rowhammer"), "no attack 'rowhammer'"),
        (("matrix", "--only", "replay", "--only", "replay"), "--only: replay is given 2 times"),
        (("matrix", "--only", "replay", "--jobs", "0"), "0 worker processes: one at least"),
        (("sweep", "replay", "--jobs", "-1"), "-1 worker processes: one at least"),
        (("sweep", "replay", "--mode", "sev", "--mode", "sev"), "--mode: sev is given 2 times"),
        (("sweep", "severed", *["--variant", "none"] * 3), "--variant: none is given 3 times"),
        (
            ("sweep", "severed", "--over", "memory=16", "--over", "memory=24"),
            "--over: memory is given 2 times",
        ),
        (("sweep", "severed", "--over", "memory=16,24,0x10"), "memory: 16 is given 2 times"),
        (
            ("run", "severed", "--set", "memory=16", "--set", "memory=24"),
            "--set: memory is given 2 times",
        ),
        (("sweep", "replay", "--journal", "/dev/null"), "/dev/null is no regular file"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    answer = told(capsys, *words, code=2)
    assert not answer["ok"]
    (reason,) = answer["reasons"]
    assert why in reason


@pytest.mark.parametrize(
    ("words", "verdict", "why"),
    [
        (
            ("severed", "--mode", "sev-es"),
            "not modelled",
            "severed, sev-es: not modelled (predicted: succeeds",
        ),
        (
            ("severed", "--mode", "sev-snp"),
            "not modelled",
            "severed, sev-snp: not modelled (predicted: stopped",
        ),
        (
            ("debug-policy", "--mode", "none"),
            "does not apply",
            "debug-policy, none: does not apply (no guest key",
        ),
    ],
)
def test_where_nothing_can_be_run_the_exit_code_is_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], verdict: str, why: str
) -> None:
    answer = told(capsys, "run", *words, code=2)
    assert (False, verdict) == (answer["ok"], answer["result"]["verdict"])
    assert answer["reasons"][0].startswith(why)
    assert 2 == main(["attack", "run", *words])
    assert why in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_said_before_anything_is_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[object] = []

    def run(self: Processes, cases: object) -> Iterator[object]:
        ran.append(cases)
        yield from ()

    monkeypatch.setattr(Processes, "run", run)
    absent = tmp_path / "nowhere" / "lab.html"
    for place in (absent, tmp_path):
        answer = told(capsys, "matrix", "--only", "replay", "--html", str(place), code=2)
        assert str(place) in answer["reasons"][0]
    assert [] == ran


def test_a_report_that_was_there_outlives_a_campaign_that_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old.html", tmp_path / "new.html"
    old.write_text("last week's")
    no_journal = tmp_path / "journal"
    no_journal.write_text("nonsense\n")
    for report in (old, new):
        told(
            capsys, "matrix", "--only", "replay", "--html", str(report), "--journal", str(no_journal), code=2
        )
    assert "last week's" == old.read_text()
    assert not new.exists()


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


def test_one_point_that_cannot_be_run_ends_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sweep", "replay", "--over", "memory=16,1,24", "--jobs", "1")
    answer = told(capsys, *words, code=2)
    assert ["succeeds", "broken", "succeeds"] == [case["verdict"] for case in answer["result"]["cases"]]
    (reason,) = answer["reasons"]
    assert reason.startswith("replay against sev, memory=1, seed 1: ")
    assert 2 == main(["attack", *words])
    shown = capsys.readouterr()
    assert "broken" in shown.out
    assert reason in shown.err


def test_sweep_goes_over_words_memory_and_variants(capsys: pytest.CaptureFixture[str]) -> None:
    over = ("--over", "corpus_mib=1", "--over", "constants=zen1,fresh", "--over", "memory=16,32")
    cases = told(capsys, "sweep", "block-move-xex", *over, "--jobs", "1")["result"]["cases"]
    assert [
        ("zen1", 16, "succeeds"),
        ("zen1", 32, "succeeds"),
        ("fresh", 16, "stopped"),
        ("fresh", 32, "stopped"),
    ] == [(case["parameters"]["constants"], case["parameters"]["memory"], case["verdict"]) for case in cases]
    assert all(case["as_expected"] for case in cases)
    variants = ("--variant", "none", "--variant", "deactivated", "--variant", "flushed")
    assert 0 == main(["attack", "sweep", "crossline-tlb", *variants, "--jobs", "1"])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [
        "mode with seed secrets verdict",
        "sev 1 2/2 succeeds",
        "# pages that the adversary's nested tables have: 0",
        "sev deactivated 1 0/2 stopped",
        "#VMEXIT(INVALID): ASID 5 has no usable key on this core",
        "sev flushed 1 0/2 stopped",
        "the first fetch faults: no translation of the victim's is left",
    ] == rows


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
