"""Random walks: rules that draw their arguments, a seed that says which, and the shortest walk to a failure.

Hypothesis draws machines like this one too; but its walks repeat themselves so much that of ten thousand
commands a quarter never succeeded.  Here each step is drawn afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

Draw = Callable[[Random, Any], Any]
Method = TypeVar("Method", bound=Callable[..., None])


@dataclass(frozen=True)
class Rule:
    """How often, when, and with what."""

    draws: dict[str, Draw]
    when: Callable[[Any], object]
    weight: int


@dataclass(frozen=True)
class Step:
    """One call of a rule."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


class Walker(Protocol):
    """What walks: an object with rules, begun once and checked after every step."""

    def check(self) -> None:
        """Raise AssertionError if it is not as it should be."""
        ...


def some(*values: Any) -> Draw:
    """Draw one of the values, each as likely as it is often there."""
    return lambda random, _: random.choice(values)


def several(draw: Draw, most: int) -> Draw:
    """Draw a list."""
    return lambda random, walker: [draw(random, walker) for _ in range(random.randint(0, most))]


def rule(
    *, weight: int = 1, when: Callable[[Any], object] = lambda walker: True, **draws: Draw
) -> Callable[[Method], Method]:
    """Make a method a rule."""

    def mark(method: Method) -> Method:
        method.rule = Rule(draws, when, weight)  # type: ignore[attr-defined]  # a function takes any
        return method

    return mark


def rules_of(walker: Walker) -> dict[str, Rule]:
    """The rules of a class, by name and in an order that does not change."""
    methods = ((name, getattr(type(walker), name)) for name in sorted(dir(type(walker))))
    return {name: method.rule for name, method in methods if hasattr(method, "rule")}


def steps(walker: Walker, random: Random, count: int) -> Iterator[Step]:
    """Draw a walk, a step at a time: what may come depends on how the walker stands."""
    rules = rules_of(walker)
    for _ in range(count):
        open_ = [name for name, rule in rules.items() if rule.when(walker)]
        (name,) = random.choices(open_, [rules[name].weight for name in open_])
        yield Step(name, {key: draw(random, walker) for key, draw in rules[name].draws.items()})


def take(walker: Walker, step: Step) -> None:
    """Take one step and look."""
    getattr(walker, step.name)(**step.arguments)
    walker.check()


def fails(begin: Callable[[], AbstractContextManager[Walker]], walk: list[Step]) -> bool:
    """Walk again; say whether it fails too."""
    with begin() as walker:
        try:
            for step in walk:
                if rules_of(walker)[step.name].when(walker):
                    take(walker, step)
        except AssertionError:
            return True
    return False


def shortest(begin: Callable[[], AbstractContextManager[Walker]], walk: list[Step]) -> list[Step]:
    """Leave out every step, from the last to the first, that the failure does not need."""
    for at in range(len(walk) - 1, -1, -1):
        shorter = walk[:at] + walk[at + 1 :]
        if fails(begin, shorter):
            walk = shorter
    return walk


def go(begin: Callable[[], AbstractContextManager[Walker]], *, seed: int, count: int) -> None:
    """Take one walk of so many steps.

    Raises:
        AssertionError: with the shortest walk that was found to fail.
    """
    taken: list[Step] = []
    with begin() as walker:
        try:
            walker.check()
            for step in steps(walker, Random(seed), count):
                taken.append(step)
                take(walker, step)
            return
        except AssertionError as error:
            failure = error
    trail = "\n".join(map(str, shortest(begin, taken)))
    raise AssertionError(f"walk {seed} fails; so does\n{trail}") from failure
