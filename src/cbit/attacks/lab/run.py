"""Run one case and judge it: the planted secrets are in the loot, or they are not.

Paper: attacks.md §3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cbit.attacks.lab.attack import SHORTEST_SECRET, Attack, Value
from cbit.attacks.lab.guest import Crashed
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Figure, Log, Step, picture_as_json
from cbit.attacks.lab.outcome import Expectation, Mode, Verdict
from cbit.attacks.lab.scene import Scene
from cbit.attacks.lab.stand import Stand, Workshop
from cbit.attacks.lab.tools import Thwarted
from cbit.cpu.faults import VmExit
from cbit.spec.errors import CbitError


class NoControl(CbitError):
    """The victim does not hold its secret, or does not work: that an attack fails would prove nothing."""


@dataclass(frozen=True, slots=True)
class Result:
    """One cell of the matrix.

    Attributes:
        attack: which.
        mode: against what.
        variant: with which defence, or "".
        seed: of the machine and the victim.
        parameters: what was varied.
        verdict: what came out.
        expected: what should have.
        found: how many of the planted secrets are in the loot.
        planted: how many were planted.
        note: why it ended, if something stood in its way.
        loot: how many bytes the adversary brought back.
        powers: those that it used.
        steps: its notebook.
        figures: its numbers.
    """

    attack: str
    mode: Mode
    variant: str
    seed: int
    parameters: Mapping[str, Value]
    verdict: Verdict
    expected: Expectation
    found: int = 0
    planted: int = 0
    note: str = ""
    loot: int = 0
    powers: tuple[str, ...] = ()
    steps: tuple[Step, ...] = field(default=(), repr=False)
    figures: tuple[Figure, ...] = ()

    @property
    def as_expected(self) -> bool:
        """Whether prediction and run agree; what was not run, or is not modelled, contradicts nothing."""
        if self.verdict in (Verdict.NOT_MODELLED, Verdict.NOT_RUN):
            return True
        return self.expected.agrees(self.verdict, self.note)

    def as_json(self, *, steps: bool = True) -> dict[str, Any]:
        """Give it as JSON values."""
        told = {
            "attack": self.attack,
            "mode": self.mode.value,
            "variant": self.variant,
            "seed": self.seed,
            "parameters": dict(self.parameters),
            "verdict": self.verdict.value,
            "expected": self.expected.verdict.value,
            "why": self.expected.why,
            "shown": self.expected.shown,
            "as_expected": self.as_expected,
            "found": self.found,
            "planted": self.planted,
            "note": self.note,
            "loot_bytes": self.loot,
            "powers": list(self.powers),
            "figures": [asdict(figure) for figure in self.figures],
        }
        if steps:
            told["steps"] = [
                {
                    "text": step.text,
                    "data": step.data.hex(),
                    "length": step.length,
                    "picture": picture_as_json(step.picture),
                }
                for step in self.steps
            ]
        return told


def run(
    attack: Attack,
    workshop: Workshop,
    *,
    mode: Mode,
    variant: str = "",
    seed: int = 1,
    parameters: Mapping[str, Value] | None = None,
) -> Result:
    """Run one cell.

    Raises:
        BadCase: a variant or a parameter that the attack does not have.
        NoControl: the victim does not hold its secret, or does not do its work.
        PowerNotHeld: the attempt uses a power that it does not declare.
        NoEngine: this computer cannot execute guests.
    """
    complete = attack.check(mode, variant, parameters or {})
    expected = attack.expectation(mode, variant, complete)
    blank = Result(attack.name, mode, variant, seed, complete, expected.verdict, expected)
    if not mode.modelled:
        return _as(blank, Verdict.NOT_MODELLED, f"predicted: {_prediction(expected)}")
    if expected.verdict is Verdict.NOT_APPLICABLE:
        return _as(blank, Verdict.NOT_APPLICABLE, expected.why)
    if attack.linux and workshop.why_no_linux:
        return _as(blank, Verdict.NOT_RUN, workshop.why_no_linux)
    setup = attack.setup_for(variant, complete)
    stand = Stand(workshop, setup, mode=mode, variant=variant, seed=seed, parameters=complete)
    try:
        return attempt(attack, stand, attack.prepare(stand))
    finally:
        if stand.machine.is_on:
            stand.machine.power_off()


def attempt(attack: Attack, stand: Stand, scene: Scene) -> Result:
    """Let the adversary loose on a victim, and judge what it got.

    Raises:
        NoControl: the victim does not hold its secret, or does not do its work.
        PowerNotHeld: the attempt uses a power that it does not declare.
    """
    if not scene.planted:
        raise NoControl(f"{attack.name}, {stand.mode}: the victim does not hold what was planted")
    if not scene.serves:
        defence = f" with {stand.variant}" if stand.variant else ""
        raise NoControl(
            f"{attack.name}, {stand.mode}{defence}: the victim does nothing for honest people either"
        )
    if not scene.secrets or min(map(len, scene.secrets)) < SHORTEST_SECRET:
        raise NoControl(f"{attack.name}: secrets of {SHORTEST_SECRET} bytes at least")
    hands = Hands(stand.host, scene, attack.holds, own_sev=stand.mode is Mode.SEV)
    log, loot = Log(), b""
    try:
        loot = attack.attempt(hands, scene.facts, log)
        note = log.obstacle
    except (Thwarted, Crashed, VmExit) as obstacle:
        note = str(obstacle)
    found = sum(secret in loot for secret in scene.secrets)
    return Result(
        attack=attack.name,
        mode=stand.mode,
        variant=stand.variant,
        seed=stand.seed,
        parameters=stand.parameters,
        verdict=verdict_of(found, len(scene.secrets)),
        expected=attack.expectation(stand.mode, stand.variant, stand.parameters),
        found=found,
        planted=len(scene.secrets),
        note=note,
        loot=len(loot),
        powers=tuple(sorted(power.value for power in hands.used)),
        steps=tuple(log.steps),
        figures=(*log.figures, *scene.measure(loot)),
    )


def verdict_of(found: int, planted: int) -> Verdict:
    """Judge by how many of the planted secrets are in the loot."""
    if found == 0:
        return Verdict.STOPPED
    return Verdict.SUCCEEDED if found == planted else Verdict.PARTLY


def _prediction(expected: Expectation) -> str:
    return f"{expected.verdict.value}{f' ({expected.why})' if expected.why else ''}"


def _as(blank: Result, verdict: Verdict, note: str) -> Result:
    return Result(
        blank.attack,
        blank.mode,
        blank.variant,
        blank.seed,
        blank.parameters,
        verdict,
        blank.expected,
        note=note,
    )
