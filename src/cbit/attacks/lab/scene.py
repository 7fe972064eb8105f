"""A victim, the secrets planted in it, and what everybody may know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cbit.attacks.lab.guest import Victim
from cbit.attacks.lab.log import Figure

#: Launches the victim from pieces of its image, each at the place that the host chose.
Launcher = Callable[[Sequence[tuple[int, bytes]]], Victim]
#: What the judge counts in the loot.
Measure = Callable[[bytes], Sequence[Figure]]
Fact = int | float | bytes | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the adversary knows without any power: images are public, places in them are.

    Attributes:
        known: by name.
    """

    known: Mapping[str, Fact]

    def number(self, name: str) -> int:
        """A fact that is a number."""
        value = self.known[name]
        assert isinstance(value, int), name
        return value

    def real(self, name: str) -> float:
        """A fact that may be a fraction."""
        value = self.known[name]
        assert isinstance(value, int | float), name
        return value

    def data(self, name: str) -> bytes:
        """A fact that is bytes."""
        value = self.known[name]
        assert isinstance(value, bytes), name
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        """A fact that is several numbers."""
        value = self.known[name]
        assert isinstance(value, tuple), name
        return value


@dataclass(frozen=True, slots=True)
class Scene:
    """What `prepare` makes.

    Attributes:
        secrets: what the judge looks for in the loot.
        facts: what is public.
        guest: the victim, if it is a guest.
        planted: whether the secrets are where they belong: the positive control, asked before the attempt.
        serves: whether the victim has done its work for honest people, with the defence if there is one: the
            other control, for a victim that does nothing stops every attack.
        launcher: starts the victim as the adversary wants it, if it is the adversary who launches it.
        measure: figures of the judge's, who can compare the loot with what the victim really holds.
    """

    secrets: tuple[bytes, ...]
    facts: Facts
    guest: Victim | None = None
    planted: bool = False
    serves: bool = False
    launcher: Launcher | None = None
    measure: Measure = lambda _: ()
