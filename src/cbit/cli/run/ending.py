"""How a run ends, in words and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cbit.cli.envelope import Exit


class End(StrEnum):
    """Why a run ended."""

    SEEN = "seen"
    POWER_OFF = "power-off"
    REBOOT = "reboot"
    TIMEOUT = "timeout"
    PANIC = "panic"
    TRIPLE_FAULT = "triple-fault"
    NO_MEMORY = "no-memory"
    HALTED = "halted"
    UNKNOWN_EXIT = "unknown-exit"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"


GOOD: Final = frozenset({End.SEEN, End.POWER_OFF, End.REBOOT})


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run.

    Attributes:
        end: its kind.
        why: what a person reads.
    """

    end: End
    why: str

    @property
    def code(self) -> int:
        """The exit code: 0 good, 1 not, 130 interrupted."""
        if self.end in GOOD:
            return Exit.GOOD
        return Exit.INTERRUPTED if self.end is End.INTERRUPTED else Exit.NOT_TRUSTWORTHY
