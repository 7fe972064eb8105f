"""SIGTERM and SIGHUP end a command in order: what was made for it goes first, machines with their keys."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Ended(KeyboardInterrupt):
    """A signal asks the command to end, as Ctrl-C does.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise `Ended` for the first of these signals; what comes while we clean up is not heard.

    `timeout` and a terminal that goes away send more than one.  What our caller ignores stays ignored
    (nohup).  Outside the main thread, where Python hears no signal, nothing happens.
    """
    came = False

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise Ended(number)

    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, heard)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
