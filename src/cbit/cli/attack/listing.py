"""``cbit attack list``: what there is, and what each attack needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.envelope import Outcome

if TYPE_CHECKING:
    from cbit.attacks.lab.attack import Attack

HELP: Final = "list the attacks: powers, parameters, what is expected of them"
EXAMPLE: Final = "example:\n  cbit attack list --json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""


def run(args: argparse.Namespace) -> Outcome:
    """List all attacks."""
    from cbit.attacks.experiments import ALL

    result = {"attacks": [as_json(attack) for attack in ALL]}
    return Outcome(True, result, lines=lambda: _lines(ALL))


def as_json(attack: Attack) -> dict[str, Any]:
    """Describe an attack as JSON values."""
    return {
        "name": attack.name,
        "title": attack.title,
        "experiment": attack.experiment,
        "paper": attack.paper,
        "idea": attack.idea,
        "victim": attack.victim,
        "powers": sorted(power.value for power in attack.holds),
        "expect": {
            mode.value: {"verdict": expected.verdict.value, "why": expected.why}
            for mode, expected in attack.expect.items()
        },
        "defences": {variant: told.why for variant, told in attack.defences.items()},
        "unshown": attack.unshown,
        "parameters": dict(attack.parameters),
        "ranges": {name: asdict(each) for name, each in attack.ranges.items()},
        "executes": attack.executes,
        "linux": attack.linux,
    }


def _lines(attacks: tuple[Attack, ...]) -> Iterator[str]:
    for attack in attacks:
        number = f" ({attack.experiment})" if attack.experiment else ""
        yield f"{attack.name:<22} {attack.title}{number}"
        yield f"{'':<22} powers: {'; '.join(sorted(power.value for power in attack.holds))}"
        if attack.parameters:
            yield f"{'':<22} parameters: {', '.join(attack.described())}"
        for variant, what in attack.defences.items():
            yield f"{'':<22} --variant {variant}: {what.why}"
        if attack.unshown:
            yield f"{'':<22} not shown stopped: {attack.unshown}"
