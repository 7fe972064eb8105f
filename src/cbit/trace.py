"""Events that every part of the machine emits, and that people watch it through.

The wire carries what the hardware carries: a status, a ciphertext, a fault.  The *reason* is an
event here.  An event never holds a key; it may hold a key's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

type_of_fact = int | str | bool | bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in one part of the machine.

    Attributes:
        part: who says it, as a dotted room name ("secure_processor.boot").
        what: what happened, in the field's words ("LAUNCH_START", "rom: firmware accepted").
        why: the reason, for a refusal or a fault; empty otherwise.
        facts: the numbers that belong to it.
    """

    part: str
    what: str
    why: str = ""
    facts: Mapping[str, type_of_fact] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        facts = " ".join(f"{name}={_show(value)}" for name, value in self.facts.items())
        return " ".join(piece for piece in (f"{self.part}: {self.what}", facts, self.why) if piece)


Watcher = Callable[[Event], None]


class Trace:
    """Hands each event to whoever watches; keeps nothing itself."""

    __slots__ = ("_everything", "_parts", "_watchers")

    def __init__(self) -> None:
        self._watchers: list[tuple[str | None, Watcher]] = []  # of one part, or of all
        self._everything = False  # whether somebody hears all parts
        self._parts: frozenset[str | None] = frozenset()  # those that somebody hears

    def watched(self, part: str) -> bool:
        """Whether anybody listens to a part; what is dear to tell need not be found out for nobody."""
        return self._everything or part in self._parts

    def emit(self, part: str, what: str, why: str = "", /, **facts: type_of_fact) -> None:
        """Tell the watchers; free of cost when nobody watches."""
        if self._everything or part in self._parts:
            event = Event(part, what, why, MappingProxyType(facts))
            for only, watcher in tuple(self._watchers):
                if only is None or only == part:
                    watcher(event)

    @contextmanager
    def watched_by(self, watcher: Watcher, *, only: str | None = None) -> Iterator[None]:
        """Let ``watcher`` see every event inside the block, or every one of a single part."""
        self._watchers.append((only, watcher))
        self._count()
        try:
            yield
        finally:
            self._watchers.remove((only, watcher))
            self._count()

    def _count(self) -> None:
        self._parts = frozenset(only for only, _ in self._watchers)
        self._everything = None in self._parts

    @contextmanager
    def recorded(self) -> Iterator[list[Event]]:
        """Collect the events of the block in a list."""
        events: list[Event] = []
        with self.watched_by(events.append):
            yield events


#: For parts that nobody watches.
SILENT: Final = Trace()


def _show(value: type_of_fact) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return str(value) if -10 < value < 10 else f"{value:#x}"
