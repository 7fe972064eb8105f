"""This side's terminal while a guest runs: raw, and as it was before in every case.

a terminal         every key is the guest's, Ctrl-C too; Ctrl-A x ends the run (as with QEMU -nographic)
a pipe or file     is typed as soon as the guest listens, as fast as it reads
SIGINT, SIGTERM, SIGHUP, SIGQUIT     end the run in order: the report is written, the terminal restored
"""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_READ: Final = 4096
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6  # places in what tcgetattr gives


class Keyboard:
    """What is typed: on a terminal, through a pipe, from a file, or by nobody.

    Mutable.

    Args:
        descriptor: where it comes from; None: nobody types.

    Attributes:
        is_terminal: whether it is a terminal that is ours.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._before: tuple[int, list[Any]] | None = None  # a terminal, and how it was
        self.is_terminal = descriptor is not None and _is_ours(descriptor)
        if descriptor is not None and os.isatty(descriptor) and not self.is_terminal:
            self._descriptor = None  # a job in the background: reading would stop it

    @property
    def is_open(self) -> bool:
        """Whether somebody may still type."""
        return self._descriptor is not None

    @property
    def terminal(self) -> int | None:
        """The terminal that somebody types at; None: nobody does, or not at a terminal."""
        return self._descriptor if self.is_terminal else None

    def typed(self) -> bytes:
        """Give what was typed; never waits."""
        if not self.wait(0):
            return b""
        assert self._descriptor is not None
        try:
            data = os.read(self._descriptor, _READ)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            data = b""
        if not data:
            self._descriptor = None
        return data

    def wait(self, seconds: float) -> bool:
        """Wait until something is typed, or so long."""
        if self._descriptor is None:
            return False
        try:
            return bool(select.select([self._descriptor], [], [], seconds)[0])
        except (OSError, ValueError):
            self._descriptor = None
            return False

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Hand every key to the guest while the block runs."""
        if not self.is_terminal or self._descriptor is None:
            yield
            return
        self._before = (self._descriptor, before := termios.tcgetattr(self._descriptor))
        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, _raw(before))
            yield
        finally:
            self.restore()

    def restore(self, *, at_once: bool = False) -> None:
        """Give a terminal back as it was, if it is raw.

        Args:
            at_once: not only when everything that was printed has been shown.
        """
        if self._before is None:
            return
        (descriptor, before), self._before = self._before, None
        with suppress(termios.error):  # the terminal has gone away: there is nothing to restore
            termios.tcsetattr(descriptor, termios.TCSANOW if at_once else termios.TCSADRAIN, before)


def _is_ours(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


def _raw(before: list[Any]) -> list[Any]:
    """Pass every key on, and every byte that the guest prints, unchanged."""
    after = list(before)
    after[_IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    after[_OFLAG] &= ~termios.OPOST
    after[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    after[_CC] = codes = list(after[_CC])
    codes[termios.VMIN], codes[termios.VTIME] = 1, 0
    return after


@contextmanager
def ending_signals(end: Callable[[str], None], *, restore: Callable[[], None]) -> Iterator[None]:
    """Let signals end the run in order; the second one of a kind does what it always does.

    Args:
        end: is told which signal came.
        restore: is called before a second one ends the process at once.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    came: set[int] = set()

    def heard(number: int, _frame: FrameType | None) -> None:
        if number not in came:
            came.add(number)
            end(signal.Signals(number).name)
            return
        restore()  # what follows may end the process here and now
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
        signal.raise_signal(number)

    for number in _SIGNALS:
        if before[number] != signal.SIG_IGN:  # nohup: it stays ignored
            signal.signal(number, heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
