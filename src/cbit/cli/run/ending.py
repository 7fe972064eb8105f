"""How a run ends, in words and as an exit code."""

from __future__ import annotations

import errno
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
    UNWRITTEN = "unwritten"
    INTERRUPTED = "interrupted"


GOOD: Final = frozenset({End.SEEN, End.POWER_OFF, End.REBOOT})
_CODES: Final = {End.INTERRUPTED: Exit.INTERRUPTED, End.UNWRITTEN: Exit.UNUSABLE}


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
        """The exit code: 0 good, 1 not, 2 what the guest printed is lost, 130 interrupted."""
        if self.end in GOOD:
            return Exit.GOOD
        return _CODES.get(self.end, Exit.NOT_TRUSTWORTHY)


def without_reader(error: OSError, *, ended: Ending | None = None) -> Ending:
    """Say how a run ends whose console cannot be shown: its reader has gone away, or there is no room.

    Args:
        error: what writing came to.
        ended: how it has ended well by itself, whether somebody reads it or not.
    """
    if error.errno in (errno.EPIPE, errno.EIO):  # a pipe, a terminal
        return ended or Ending(End.INTERRUPTED, "nobody reads the console any more")
    return Ending(End.UNWRITTEN, f"standard output: {error.strerror}")
