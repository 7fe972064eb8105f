"""The attacks of the lab, as their own declarations have them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cbit.attacks.experiments import ALL
from cbit.attacks.lab.attack import Attack
from cbit.attacks.lab.outcome import Expectation, Mode


def exercises() -> Mapping[str, Sequence[str]]:
    """Three exercises for each attack, by its name."""
    found: dict[str, list[str]] = tomllib.loads((Path(__file__).parent / "exercises.toml").read_text())
    return found


def attacks() -> str:
    """One section for each attack."""
    tasks = exercises()
    return "\n".join(line for attack in ALL for line in _section(attack, tasks[attack.name]))


def _because(expected: Expectation) -> str:
    """The rule, and how a run shows that it is this rule that has stopped it."""
    return expected.why + (f' (the run notes: "{expected.shown}")' if expected.shown else "")


def _section(attack: Attack, tasks: Sequence[str]) -> Iterator[str]:
    yield f"## {attack.name}"
    yield ""
    number = f" Experiment {attack.experiment}." if attack.experiment else ""
    yield f"**{attack.title}.**{number}"
    yield f"Source: {attack.paper}."
    yield ""
    yield from attack.idea.splitlines()
    yield ""
    yield from f"Victim: {attack.victim}".splitlines()
    yield ""
    powers = sorted(power.value for power in attack.holds)
    yield f"Powers: {'; '.join(powers)}."
    yield ""
    yield "| mode | expected | because |"
    yield "| --- | --- | --- |"
    for mode in Mode:
        expected = attack.expect[mode]
        absent = "" if mode.modelled else ", not modelled"
        yield f"| {mode.value}{absent} | {expected.verdict.value} | {_because(expected)} |"
    for variant, what in attack.defences.items():
        yield f"| {attack.defended.value}, `--variant {variant}` | stopped | {_because(what)} |"
    yield ""
    if attack.unshown:
        yield f"Not shown stopped: {attack.unshown}."
        yield ""
    if attack.parameters:
        yield f"Parameters: {', '.join(attack.described())}."
        yield ""
    yield "Exercises:"
    yield ""
    yield from (f"{number}. {task}" for number, task in enumerate(tasks, 1))
    yield ""
