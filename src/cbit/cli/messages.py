"""Lines on standard error that hold up nobody: a reader who does not read loses them, and is told how many.

Whoever serves others must not stand still because its log is a pipe that is full.  The pipe is shared, with
the program or with our caller, so it cannot be made non-blocking; but where poll says that it can be written
to there is room for PIPE_BUF bytes, and a line is no longer than that.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Final

_ERROR: Final = 2
_CUT: Final = b" [...]\n"


class Messages:
    """Writes lines, each with a name in front; counts those that nobody took."""

    def __init__(self, name: str) -> None:
        self._name, self._lost = name, 0
        self._poll = select.poll()
        self._poll.register(_ERROR, select.POLLOUT)

    def __call__(self, line: str) -> None:
        """Write a line if that is possible at once."""
        if self._lost and self._write(f"{self._lost} lines before this one could not be written"):
            self._lost = 0
        if self._lost or not self._write(line):
            self._lost += 1

    def _write(self, line: str) -> bool:
        encoding = sys.stderr.encoding
        data = f"{self._name}: {line}\n".encode(encoding, "backslashreplace")
        if len(data) > select.PIPE_BUF:
            data = data[: select.PIPE_BUF - len(_CUT)].decode(encoding, "ignore").encode(encoding) + _CUT
        try:
            return bool(self._poll.poll(0)) and os.write(_ERROR, data) == len(data)
        except OSError:
            return False
