"""An attack as a thing: its name, its powers, what is expected of it, and the two functions that make it.

@attack(title=…, holds={Power.…}, expect={Mode.SEV: SUCCEEDS, …}, victim=prepare)
def attempt(hands: Hands, facts: Facts, log: Log) -> bytes: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import Expectation, Mode, Verdict
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.power import Power
from cbit.spec.errors import CbitError

Number = int | float
Prepare = Callable[[Stand], Scene]
Attempt = Callable[[Hands, Facts, Log], bytes]


class BadCase(CbitError):
    """An attack is asked for a mode, a variant or a parameter that it does not have."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: its name on the command line.
        title: its name for a reader.
        experiment: its number in attacks.md §3, or "".
        paper: who published it, with the section of the dossier.
        holds: the powers that it uses.
        expect: what should come out, by mode; all modes are there.
        defences: by the name of a variant, which rule, bit or habit it switches on that stops the attack, and
            how a run shows it.
        defended: the mode that the variants are run in.
        setup: the machine that it is run on.
        setups: other machines, by variant.
        parameters: what may be varied, with what it is by default.
        prepare: makes the victim.
        attempt: the adversary.
        unshown: what would stop it, and why that cannot be shown; "" if some cell shows it stopped.
        executes: whether the victim's program is executed, which needs the engine.
        linux: whether the victim is a distribution's Linux.
    """

    name: str
    title: str
    experiment: str
    paper: str
    holds: frozenset[Power]
    expect: Mapping[Mode, Expectation]
    defences: Mapping[str, Expectation]
    defended: Mode
    setup: Setup
    setups: Mapping[str, Setup]
    parameters: Mapping[str, Number]
    prepare: Prepare = field(repr=False)
    attempt: Attempt = field(repr=False)
    unshown: str = ""
    executes: bool = True
    linux: bool = False

    @property
    def idea(self) -> str:
        """What it does and why that works, as its file says."""
        return inspect.getdoc(self.attempt) or ""

    @property
    def victim(self) -> str:
        """What it is run against, and why that: as the victim's maker says."""
        return inspect.getdoc(self.prepare) or ""

    def expectation(self, mode: Mode, variant: str) -> Expectation:
        """Say what should come out of a cell."""
        if variant:
            return self.defences[variant]
        return self.expect[mode]

    def cells(self) -> list[tuple[Mode, str]]:
        """List the cells of its row: every mode, then every variant in the mode that it defends."""
        return [*((mode, "") for mode in Mode), *((self.defended, variant) for variant in self.defences)]

    def check(self, mode: Mode, variant: str, parameters: Mapping[str, Number]) -> dict[str, Number]:
        """Complete the parameters of a case.

        Raises:
            BadCase: a variant or a parameter that there is not, or a value of another type.
        """
        if variant and variant not in self.defences:
            known = ", ".join(self.defences) or "none"
            raise BadCase(f"{self.name} has no variant {variant!r}; it has: {known}")
        if variant and mode is not self.defended:
            raise BadCase(f"{self.name}: variant {variant} is one of mode {self.defended}, not of {mode}")
        complete = dict(self.parameters)
        for name, value in parameters.items():
            if name not in complete:
                known = ", ".join(complete) or "none"
                raise BadCase(f"{self.name} has no parameter {name!r}; it has: {known}")
            if isinstance(complete[name], int) and value != int(value):
                raise BadCase(f"{self.name}: {name} is a whole number, not {value}")
            complete[name] = type(complete[name])(value)
        return complete


def attack(
    *,
    title: str,
    paper: str,
    holds: set[Power],
    expect: Mapping[Mode, Expectation],
    victim: Prepare,
    experiment: str = "",
    defences: Mapping[str, Expectation] | None = None,
    defended: Mode = Mode.SEV,
    setup: Setup | None = None,
    setups: Mapping[str, Setup] | None = None,
    parameters: Mapping[str, Number] | None = None,
    unshown: str = "",
    executes: bool = True,
    linux: bool = False,
) -> Callable[[Attempt], Attack]:
    """Make an attack of an adversary's function; its name is the function's.

    Raises:
        ValueError: a mode without an expectation, a defence that does not stop it, or a docstring missing.
    """

    def make(attempt: Attempt) -> Attack:
        name = attempt.__name__.replace("_", "-")
        if missing := [mode.value for mode in Mode if mode not in expect]:
            raise ValueError(f"{name}: nothing is expected in mode {', '.join(missing)}")
        if weak := [each for each, told in (defences or {}).items() if told.verdict is not Verdict.STOPPED]:
            raise ValueError(f"{name} is not stopped by {', '.join(weak)}")
        if not attempt.__doc__:
            raise ValueError(f"{name} does not say what it does")
        return Attack(
            name=name,
            title=title,
            experiment=experiment,
            paper=paper,
            holds=frozenset(holds),
            expect=MappingProxyType(dict(expect)),
            defences=MappingProxyType(dict(defences or {})),
            defended=defended,
            setup=setup or Setup(),
            setups=MappingProxyType(dict(setups or {})),
            parameters=MappingProxyType(dict(parameters or {})),
            prepare=victim,
            attempt=attempt,
            unshown=unshown,
            executes=executes,
            linux=linux,
        )

    return make
