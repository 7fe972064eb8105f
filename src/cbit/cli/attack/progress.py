"""How far a campaign is, on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """One line that changes on a terminal, a line for each result elsewhere, nothing if it is to be quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()

    def heard(self, done: int, of: int, told: dict[str, Any]) -> None:
        """Show a result."""
        if self._quiet:
            return
        cell = f"{told['attack']} {told['mode']} {told['variant']}".strip()
        text = f"cbit: {done}/{of} {cell}: {told['verdict']}"
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
