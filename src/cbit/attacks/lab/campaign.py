"""Many cases: over this machine's cores, with a journal that a killed campaign goes on from.

    cases ── Executor ──> results as JSON values, in any order          what a distributed engine replaces
      journal: one line for each result, written before the next is counted

The same cases give the same results, whatever the executor, the order, or how often it was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from cbit.attacks.lab.attack import Attack, Number
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.spec.errors import CbitError

Told = dict[str, Any]  #: a `Result` as JSON values
Heard = Callable[[int, int, Told], object]


class BrokenCase(CbitError):
    """A case could not be run at all; the message says which, and why."""


class BadJournal(CbitError):
    """A journal that is not one; the message says where."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run to be made."""

    attack: str
    mode: Mode
    variant: str = ""
    seed: int = 1
    parameters: Mapping[str, Number] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What names it in a journal: the same for the same case."""
        return json.dumps(self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "attack": self.attack,
            "mode": self.mode.value,
            "variant": self.variant,
            "seed": self.seed,
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            KeyError, ValueError: these are not a case's values.
        """
        return cls(told["attack"], Mode(told["mode"]), told["variant"], told["seed"], told["parameters"])


class Executor(Protocol):
    """Runs cases somewhere."""

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Told]]:
        """Yield each case with its result, as soon as it is there.

        Raises:
            BrokenCase: a case could not be run.
        """
        ...


def whole_matrix(attacks: Sequence[Attack], *, seed: int = 1) -> list[Case]:
    """List every cell of every row."""
    return [Case(a.name, mode, variant, seed) for a in attacks for mode, variant in a.cells()]


def conduct(
    cases: Sequence[Case],
    executor: Executor,
    *,
    journal: Path | None = None,
    heard: Heard = lambda done, of, told: None,
) -> list[Told]:
    """Run what the journal does not have yet; results come in the order of ``cases``.

    Args:
        cases: what to run.
        executor: where.
        journal: a file that remembers results; made if it is not there.
        heard: told after each result: how many are done, of how many, and the result.

    Raises:
        BrokenCase: a case could not be run; what was done before is in the journal.
        BadJournal: the file is something else.
        OSError: it cannot be written.
    """
    known = _read(journal) if journal else {}
    wanted = [case for case in cases if case.key not in known]
    done = len(cases) - len(wanted)
    with _appending(journal) as note:
        for case, told in executor.run(wanted):
            known[case.key] = told
            if told.get("verdict") != Verdict.NOT_RUN.value:  # another time it may be
                note(case, told)
            done += 1
            heard(done, len(cases), told)
    return [known[case.key] for case in cases]


def _read(journal: Path) -> dict[str, Told]:
    """Read a journal; a last line that was being written when the campaign was killed does not count."""
    if not journal.exists():
        return {}
    text = journal.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    known = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            known[Case.from_json(entry["case"]).key] = dict(entry["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadJournal(f"{journal}, line {number}: not a journal of this lab ({error})") from None
    if whole != text:
        with journal.open("r+b") as file:
            file.truncate(len(whole.encode()))
    return known


class _appending:
    """Appends results to a journal, or to nothing."""

    def __init__(self, journal: Path | None) -> None:
        self._file = journal.open("a", encoding="utf-8") if journal else None

    def __enter__(self) -> Callable[[Case, Told], None]:
        return self._note

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def _note(self, case: Case, told: Told) -> None:
        if self._file:
            self._file.write(json.dumps({"case": case.as_json(), "result": told}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
