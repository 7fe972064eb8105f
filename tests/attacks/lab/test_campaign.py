"""Campaigns: the same results whatever runs them, and however often they are killed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cbit.attacks.experiments import named
from cbit.attacks.lab import executors
from cbit.attacks.lab.campaign import conduct, whole_matrix
from cbit.attacks.lab.case import Case, Told
from cbit.attacks.lab.executors import Here, Processes
from cbit.attacks.lab.outcome import Mode

CASES = [Case("replay", mode, seed=seed) for seed in (1, 2) for mode in (Mode.NONE, Mode.SME, Mode.SEV)]


class Killed(Exception):
    """What ends a `Fake`."""


class Fake:
    """Runs nothing; dies after a number of cases."""

    def __init__(self, *, lives: int = 1000) -> None:
        self.lives, self.ran = lives, 0

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Told]]:
        for case in reversed(cases):
            if self.lives == 0:
                raise Killed
            self.lives -= 1
            self.ran += 1
            yield case, succeeded(case)


def succeeded(case: Case) -> Told:
    """What the lab says of a case that it has run."""
    attack = named(case.attack)
    complete = attack.check(case.mode, case.variant, case.parameters)
    return case.as_json() | {
        "parameters": complete,
        **{"verdict": "succeeds", "expected": "succeeds", "as_expected": True, "found": 1, "planted": 1},
        **{"why": attack.expect[case.mode].why, "shown": "", "note": "", "figures": []},
    }


def test_worker_processes_say_what_this_process_says() -> None:
    assert conduct(CASES, Here()) == conduct(CASES, Processes(2))


def test_results_come_in_the_order_of_the_cases() -> None:
    assert [case.seed for case in CASES] == [told["seed"] for told in conduct(CASES, Fake())]


def test_a_killed_campaign_goes_on_from_its_journal(tmp_path: Path) -> None:
    journal, whole = tmp_path / "journal", conduct(CASES, Fake())
    with pytest.raises(Killed):
        conduct(CASES, Fake(lives=2), journal=journal)
    rest = Fake()
    assert whole == conduct(CASES, rest, journal=journal)
    assert len(CASES) - 2 == rest.ran
    idle = Fake(lives=0)
    assert whole == conduct(CASES, idle, journal=journal)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_run_again(tmp_path: Path, cut: int) -> None:
    journal, whole = tmp_path / "journal", conduct(CASES, Fake())
    conduct(CASES, Fake(), journal=journal)
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = Fake()
    assert whole == conduct(CASES, again, journal=journal)
    assert 1 == again.ran
    assert whole == conduct(CASES, Fake(lives=0), journal=journal)


@pytest.mark.parametrize("executor", [Here(), Processes(1)])
def test_a_case_that_cannot_be_run_is_named_and_the_others_are_run(
    executor: Here | Processes, tmp_path: Path
) -> None:
    cases = [Case("replay", Mode.SEV, seed=3, parameters={"memory": mib}) for mib in (16, 1, 24)]
    journal = tmp_path / "journal"
    good, bad, also_good = conduct(cases, executor, journal=journal)
    assert ["succeeds", "broken", "succeeds"] == [told["verdict"] for told in (good, bad, also_good)]
    assert re.match(
        r"replay against sev, memory=1, seed 3: OutOfMemory: 0x200000 contiguous bytes", bad["note"]
    )
    assert set(bad) == set(good)
    assert 3 == journal.read_bytes().count(b"\n")  # a header, and no line for what was not run
    assert [good, bad, also_good] == conduct(cases, executor, journal=journal)


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    give, given = executors._Worker.give, itertools.count()

    def give_and_kill(worker: executors._Worker, case: Case) -> None:
        give(worker, case)
        if next(given) == 1:
            worker._process.kill()

    monkeypatch.setattr(executors._Worker, "give", give_and_kill)
    told = conduct(CASES, Processes(2))
    assert ["broken", *["succeeds"] * (len(CASES) - 1)] == sorted(each["verdict"] for each in told)
    (lost,) = (each for each in told if each["verdict"] == "broken")
    assert lost["note"].endswith("its worker ended with code -9")


def test_ctrl_c_is_heard_by_the_campaign_and_not_by_its_workers() -> None:
    command = [sys.executable, "-m", "cbit", "attack", "sweep", "replay", "--seeds", "50", "--jobs", "2"]
    swept = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    assert swept.stderr is not None
    said = swept.stderr.readline()  # of the first case: both workers are at work
    workers = Path(f"/proc/{swept.pid}/task/{swept.pid}/children").read_text().split()
    blocked = [
        int(re.findall(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0], 16)
        for pid in workers
    ]
    os.killpg(swept.pid, signal.SIGINT)
    said += swept.communicate()[1]
    assert [1, 1] == [mask >> signal.SIGINT - 1 & 1 for mask in blocked]
    assert 130 == swept.returncode
    assert "Traceback" not in said


@pytest.mark.parametrize("parameters", [{}, {"x": 1}], ids=["that runs", "that breaks"])
@pytest.mark.parametrize("executor", [Here(), Processes(2)])
def test_a_case_leaves_no_folder_behind(
    executor: Here | Processes, parameters: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used: list[list[str]] = []
    for _, told in executor.run([Case("replay", Mode.SEV, parameters=parameters)] * 2):
        used.append(os.listdir(tmp_path))
        assert bool(parameters) is (told["verdict"] == "broken")
    assert all(used)
    assert [] == os.listdir(tmp_path)


def test_there_is_one_worker_at_least() -> None:
    with pytest.raises(ValueError, match="one at least"):
        Processes(0)


def test_a_case_reads_back() -> None:
    case = Case("cold-boot", Mode.NONE, "x", 7, {"decay": 0.05, "n": 3})
    assert case == Case.from_json(json.loads(case.key))


def test_the_matrix_has_every_mode_and_every_defence() -> None:
    cases = whole_matrix([named("debug-policy")])
    assert [*((mode, "") for mode in Mode), (Mode.SEV, "nodbg")] == [(c.mode, c.variant) for c in cases]


#: So many that some are left when whoever watches gets the processor again.
SEEDS = 60


@pytest.mark.slow
def test_a_sweep_killed_with_sigkill_and_resumed_has_the_same_result(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cbit",
        "attack",
        "sweep",
        "replay",
        "--seeds",
        str(SEEDS),
        "--jobs",
        "2",
    ]
    journal = tmp_path / "killed"
    killed = subprocess.Popen(
        [*command, "--journal", journal], stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert killed.stderr is not None
    said = next(line for line in killed.stderr if ": succeeds" in line)  # of the first case that is done
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = journal.read_bytes().count(b"\n") - 1  # a header, and a line for each
    assert said.startswith(f"cbit: 1/{SEEDS} ")
    assert 1 <= done < SEEDS
    resumed = subprocess.run(
        [*command, "--journal", journal, "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(resumed.stdout)["result"]["cases"]
    assert 1 + SEEDS == journal.read_bytes().count(b"\n")
    assert conduct([Case("replay", Mode.SEV, seed=seed) for seed in range(1, 1 + SEEDS)], Here()) == told
