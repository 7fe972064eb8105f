"""Where a story is shown while it runs: standard output, with the rules of every other command's.

A reader who has read enough ends nothing, and a full disk is said by its name.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, Any, Final, cast

from rich.console import Console

from cbit.cli.standard_streams import give_up

_PIPE: Final = 120  #: columns where nobody looks at a screen
_UNKNOWN: Final = 80  #: columns of a terminal that does not know its own


def new_console() -> Console:
    """Make the console that a story is shown on."""
    console = Console(file=cast("IO[str]", _Shown(sys.stdout)), highlight=False)
    if not console.is_terminal:
        console.width = _PIPE
    elif not console.width:  # COLUMNS=0
        console.width = _UNKNOWN
    return console


class _Shown:
    """A stream that the console writes to; all the rest of it is the stream's."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write (errors as `flush`)."""
        with self._given_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            OSError: it cannot be; what it names is "standard output".
        """
        with self._given_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _given_up(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            give_up(self._stream.fileno())
        except OSError as error:
            give_up(self._stream.fileno())  # Python would try once more at its end
            raise OSError(error.errno, error.strerror, "standard output") from None
