"""One run to be made, as a journal and a worker process name it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from cbit.attacks.lab.attack import Value
from cbit.attacks.lab.outcome import Mode, Verdict

Told = dict[str, Any]  #: a `Result` as JSON values
#: Of results that another run may not have: they are in no journal.
ANOTHER_TIME: Final = (Verdict.NOT_RUN, Verdict.BROKEN)


@dataclass(frozen=True, slots=True)
class Case:
    """One run to be made."""

    attack: str
    mode: Mode
    variant: str = ""
    seed: int = 1
    parameters: Mapping[str, Value] = field(default_factory=dict)

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

    def __str__(self) -> str:
        """Name it for a reader: attack, mode, defence, parameters, seed."""
        variant = f" with {self.variant}" if self.variant else ""
        given = "".join(f", {name}={value}" for name, value in self.parameters.items())
        return f"{self.attack} against {self.mode}{variant}{given}, seed {self.seed}"


def broken(case: Case, why: str) -> Told:
    """Tell that a case could not be run; that contradicts no prediction."""
    return case.as_json() | {
        "verdict": Verdict.BROKEN.value,
        "expected": "",
        "why": "",
        "shown": "",
        "as_expected": True,
        "found": 0,
        "planted": 0,
        "note": f"{case}: {why}",
        "loot_bytes": 0,
        "powers": [],
        "figures": [],
        "steps": [],
    }
