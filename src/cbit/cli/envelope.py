"""What every sub-command gives back, and the one JSON object that programs read.

{"cbit": VERSION, "command": "owner verify", "ok": true, "reasons": [], "result": {…}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final

from cbit import __version__


class Exit(IntEnum):
    """The exit codes of cbit."""

    GOOD = 0
    NOT_TRUSTWORTHY = 1  #: checked, and not trustworthy or not true
    UNUSABLE = 2  #: unusable input, or not modelled
    BY_SIGNAL = 128  #: and the signal's number: 143 SIGTERM, 129 SIGHUP
    INTERRUPTED = 130  #: Ctrl-C


def _nothing() -> Iterable[str]:
    return ()


class Outcome:
    """The answer of a sub-command.

    Attributes:
        ok: whether what was asked is good.
        result: what programs read; JSON values only, and never a key.
        reasons: why it is not good, one sentence each.
        lines: gives what a person reads, line by line; called only when a person is reading.
        exit_code: where 0 and 1 do not say it.
        notes: what a person is told on stderr besides, where stdout is another program's input.
    """

    # Written out: ``dataclasses`` takes longer to load than all the rest of the command line.
    __slots__ = ("exit_code", "lines", "notes", "ok", "reasons", "result")

    def __init__(
        self,
        ok: bool,
        result: dict[str, Any] | None = None,
        reasons: tuple[str, ...] = (),
        lines: Callable[[], Iterable[str]] = _nothing,
        exit_code: int | None = None,
        *,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.ok: Final = ok
        self.result: Final = {} if result is None else result
        self.reasons: Final = reasons
        self.lines: Final = lines
        self.exit_code: Final = exit_code
        self.notes: Final = notes

    @property
    def code(self) -> int:
        """The process's exit code."""
        if self.exit_code is not None:
            return self.exit_code
        return Exit.GOOD if self.ok else Exit.NOT_TRUSTWORTHY


def envelope(command: str, outcome: Outcome) -> str:
    """Write the JSON object of ``--json``."""
    import json

    return json.dumps(
        {
            "cbit": __version__,
            "command": command,
            "ok": outcome.ok,
            "reasons": list(outcome.reasons),
            "result": outcome.result,
        },
        indent=2,
        allow_nan=False,
    )
