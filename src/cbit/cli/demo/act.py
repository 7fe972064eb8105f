"""What the story is made of: acts, and the things in them that people look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cbit.cli.page_map import entropies
from cbit.spec.address import PAGE


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: what, and the value that the machine gave."""

    name: str
    value: str

    def as_json(self) -> dict[str, Any]:
        """Give it as data."""
        return {"fact": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody tried something: whether it succeeded, and the answer that came back."""

    who: str
    succeeded: bool
    answer: str

    def as_json(self) -> dict[str, Any]:
        """Give it as data."""
        return {"attempt": self.who, "succeeded": self.succeeded, "answer": self.answer}


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes as somebody sees them."""

    name: str
    data: bytes

    @property
    def entropy(self) -> float | None:
        """Bits per byte over the first page; None for less than a page."""
        return entropies(self.data[:PAGE])[0] if len(self.data) >= PAGE else None

    def as_json(self) -> dict[str, Any]:
        """Give the first 32 bytes and the entropy."""
        return {"bytes": self.name, "hex": self.data[:32].hex(), "entropy": self.entropy}


@dataclass(frozen=True, slots=True)
class Picture:
    """Memory, page by page, before and after."""

    name: str
    before: list[float]
    after: list[float]

    def as_json(self) -> dict[str, Any]:
        """Give the entropies."""
        return {"picture": self.name, "before": self.before, "after": self.after}


Item = Fact | Attempt | Bytes | Picture


@dataclass(slots=True)
class Act:
    """One line of the story, after it ran.

    Attributes:
        number: its number in the story.
        title: what it is about.
        items: what happened, in order.
        who_sees: who may see what now.
    """

    number: int
    title: str
    items: list[Item] = field(default_factory=list)
    who_sees: str = ""

    def fact(self, name: str, value: object) -> None:
        """Note a value."""
        self.items.append(Fact(name, str(value)))

    def attempt(self, who: str, *, succeeded: bool, answer: object) -> None:
        """Note an attempt."""
        self.items.append(Attempt(who, succeeded, str(answer)))

    def search(self, who: str, *, found: bool, where: str) -> None:
        """Note a search for something secret: to find it is to succeed."""
        self.attempt(who, succeeded=found, answer=f"{'found' if found else 'not found'} in {where}")

    def show(self, name: str, data: bytes) -> None:
        """Show bytes."""
        self.items.append(Bytes(name, data))

    def as_json(self) -> dict[str, Any]:
        """Give the act as data."""
        return {
            "act": self.number,
            "title": self.title,
            "items": [item.as_json() for item in self.items],
            "who_sees": self.who_sees,
        }
