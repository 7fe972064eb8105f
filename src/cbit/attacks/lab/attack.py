"""An attack as a thing: its name, its powers, what is expected of it, and the two functions that make it.

@attack(title=…, holds={Power.…}, expect={Mode.SEV: SUCCEEDS, …}, victim=prepare)
def attempt(hands: Hands, facts: Facts, log: Log) -> bytes: ...
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import Expectation, Mode, Verdict
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.power import Power
from cbit.spec.address import MIB
from cbit.spec.errors import CbitError

Value = int | float | str
#: Parameters that are words: what they may be, and the processor that each is a matter of.
PROFILES: Final[Mapping[str, str]] = {"zen1": "naples", "fresh": "rome"}
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"constants": tuple(PROFILES)}
SHORTEST_SECRET: Final = 5  #: bytes; fewer could turn up by chance
Prepare = Callable[[Stand], Scene]
Attempt = Callable[[Hands, Facts, Log], bytes]


class BadCase(CbitError):
    """An attack is asked for a mode, a variant or a parameter that it does not have."""


@dataclass(frozen=True, slots=True)
class Range:
    """A parameter that is a number: what it is by default, and what it may be.

    Attributes:
        default: if nobody says otherwise; its type is the parameter's.
        least: at least.
        most: at most.
        multiple: of what a whole number has to be a multiple.
    """

    default: int | float
    least: int | float
    most: int | float
    multiple: int = 1

    def __contains__(self, value: int | float) -> bool:
        """Whether the parameter may have this value."""
        whole = not isinstance(self.default, int) or value % self.multiple == 0
        return self.least <= value <= self.most and whole

    def __str__(self) -> str:
        """Say what it may be."""
        step = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.least} to {self.most}{step}"


_MEMORY: Final = (1, 16 << 10)  # MiB


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
        ranges: what those of them may be that are numbers.
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
    parameters: Mapping[str, Value]
    ranges: Mapping[str, Range]
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

    def expectation(
        self, mode: Mode, variant: str, parameters: Mapping[str, Value] = MappingProxyType({})
    ) -> Expectation:
        """Say what should come out of a cell; a parameter that is a defence counts as one."""
        if variant:
            return self.defences[variant]
        constants = parameters.get("constants")
        plain = self.expect[mode]
        if constants in self.defences and plain.verdict is Verdict.SUCCEEDED:
            return self.defences[str(constants)]
        return plain

    def setup_for(self, variant: str, parameters: Mapping[str, Value]) -> Setup:
        """Say which machine a case is run on.

        Args:
            variant: the defence, or "".
            parameters: complete, as `check` gives them.
        """
        setup = self.setups.get(variant, self.setup)
        if "memory" in parameters:
            setup = dataclasses.replace(setup, memory=int(parameters["memory"]) * MIB)
        if "constants" in parameters:
            setup = dataclasses.replace(setup, profile=PROFILES[str(parameters["constants"])])
        return setup

    def cells(self) -> list[tuple[Mode, str]]:
        """List the cells of its row: every mode, then every variant in the mode that it defends."""
        return [*((mode, "") for mode in Mode), *((self.defended, variant) for variant in self.defences)]

    def check(self, mode: Mode, variant: str, parameters: Mapping[str, Value]) -> dict[str, Value]:
        """Complete the parameters of a case.

        Raises:
            BadCase: a variant or a parameter that there is not, a value of another type, or one against the
                variant.
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
            complete[name] = self._checked(name, value)
        if "constants" in complete and variant in CHOICES["constants"]:
            if complete["constants"] != variant and "constants" in parameters:
                raise BadCase(
                    f"{self.name}: constants={complete['constants']} contradicts the variant {variant}"
                )
            complete["constants"] = variant
        return complete

    def _checked(self, name: str, value: Value) -> Value:
        default = self.parameters[name]
        if isinstance(default, str):
            if value not in CHOICES[name]:
                raise BadCase(f"{self.name}: {name} is {' or '.join(CHOICES[name])}, not {value}")
            return value
        if isinstance(value, str) or not math.isfinite(value):
            raise BadCase(f"{self.name}: {name}: {value!r} is no number")
        if isinstance(default, int) and value != int(value):
            raise BadCase(f"{self.name}: {name} is a whole number, not {value}")
        if value not in self.ranges[name]:
            raise BadCase(f"{self.name}: {name} is {self.ranges[name]}, not {value}")
        return type(default)(value)

    def described(self) -> list[str]:
        """Say of each parameter what it is by default, and what it may be."""
        return [
            f"{name}={value} ({self.ranges[name] if name in self.ranges else ' or '.join(CHOICES[name])})"
            for name, value in self.parameters.items()
        ]


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
    parameters: Mapping[str, Range | str] | None = None,
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
        machine = setup or Setup()
        # Whoever looks at address bits, and Linux, want the memory that they have.
        memory = {"memory": Range(machine.memory // MIB, *_MEMORY)} if executes and not linux else {}
        declared: dict[str, Range | str] = {**(parameters or {}), **memory}
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
            setup=machine,
            setups=MappingProxyType(dict(setups or {})),
            parameters=MappingProxyType(
                {key: each if isinstance(each, str) else each.default for key, each in declared.items()}
            ),
            ranges=MappingProxyType({k: each for k, each in declared.items() if isinstance(each, Range)}),
            prepare=victim,
            attempt=attempt,
            unshown=unshown,
            executes=executes,
            linux=linux,
        )

    return make
