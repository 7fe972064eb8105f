"""Many cases: over this machine's cores, with a journal that a killed campaign goes on from.

    cases ── Executor ──> results as JSON values, in any order          what a distributed engine replaces
      journal: one line for each result, written before the next is counted

The same cases give the same results, whatever the executor, the order, or how often it was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from cbit.attacks.lab.attack import Attack
from cbit.attacks.lab.case import ANOTHER_TIME, Case, Told
from cbit.attacks.lab.journal import Journal, Origin
from cbit.guest.linux.files import LinuxFiles

Heard = Callable[[int, int, Told], object]


class Executor(Protocol):
    """Runs cases somewhere."""

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Told]]:
        """Yield each case with its result, as soon as it is there; one that cannot be run is `broken`."""
        ...


def whole_matrix(attacks: Sequence[Attack], *, seed: int = 1) -> list[Case]:
    """List every cell of every row."""
    return [Case(a.name, mode, variant, seed) for a in attacks for mode, variant in a.cells()]


def conduct(
    cases: Sequence[Case],
    executor: Executor,
    *,
    journal: Path | None = None,
    linux: LinuxFiles | None = None,
    heard: Heard = lambda done, of, told: None,
) -> list[Told]:
    """Run what the journal does not have yet; results come in the order of ``cases``.

    Args:
        cases: what to run.
        executor: where.
        journal: a file that remembers results; made if it is not there.
        linux: what Linux victims are made of, if some case has one: a journal's results are of one kernel.
        heard: told after each result: how many are done, of how many, and the result.

    Raises:
        BadJournal: the file is something else, or of another version, other sources or another kernel.
        OSError: it cannot be written.
    """
    with nullcontext() if journal is None else Journal(journal, Origin.here(linux)) as kept:
        known = dict(kept.known) if kept else {}
        wanted = [case for case in cases if case.key not in known]
        done = len(cases) - len(wanted)
        for case, told in executor.run(wanted):
            known[case.key] = told
            if kept and told["verdict"] not in ANOTHER_TIME:
                kept.note(case, told)
            done += 1
            heard(done, len(cases), told)
    return [known[case.key] for case in cases]
