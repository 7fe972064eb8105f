"""Descriptors of our own: a program's processes and machines cost us some, and they are not its to count.

A watched client process takes one, a virtual machine of ours another.  The limit of what a login gives
(``ulimit -Sn``, often 1024) would end a program of many processes with an error that it has not earned.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Final, TypeVar

Limits = tuple[int, int]
Found = TypeVar("Found")

#: The errors of one that has no descriptor left: this process, or everybody.
NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE})


def raise_limit() -> Limits:
    """Raise the soft limit to the hard one and return what was before; a program is forked before this."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def restore_limit(before: Limits) -> None:
    """Put the limits back that ``raise_limit`` found."""
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def no_more() -> OSError:
    """Make the error that a program gets where we have none left.

    ENFILE, "too many in the system": EMFILE would say that the program has too many open itself.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OSError(errno.ENFILE, f"cbit has no descriptor left: its limit is {limit} (ulimit -Hn)")


class Spare:
    """A descriptor kept back, for what takes one for a moment only."""

    def __init__(self) -> None:
        self._kept = _any()

    def look(self, look: Callable[[], Found]) -> Found:
        """Call ``look``, which opens and closes one file, and again with the spare one's room."""
        try:
            return look()
        except OSError as error:
            if error.errno not in NO_MORE or self._kept < 0:
                raise
        self.close()
        try:
            return look()
        finally:
            self._kept = _any()

    def close(self) -> None:
        """Give it back."""
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1


def _any() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
