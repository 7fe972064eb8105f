"""Ends a turn early when the world outside wants something: a signal, a key, the time-out.

A turn is so many blocks, and a guest may make each of them take long: what it faults for, or asks the engine
to do, may cost the host a thousand times what a block costs.  So somebody else waits for the world, and asks
the processor to stop at its next block; the loop then looks for itself.

A pipe or a file is not waited for: what comes through it is typed when the guest's own turns end.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cbit.cli.run.terminal import Keyboard

_AGAIN_S: Final = 0.05  #: until the loop is expected to have looked


@contextmanager
def watching(interrupt: Callable[[], None], *, keyboard: Keyboard, timeout: float | None) -> Iterator[None]:
    """Watch the world for the time of the block, which is the main thread's.

    Args:
        interrupt: ends the turn; called by another thread, and again for as long as there is a reason.
        keyboard: who types.
        timeout: seconds until the time is over; None: it never is.
    """
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    over = None if timeout is None else time.monotonic() + timeout
    watcher = threading.Thread(target=_watch, args=(interrupt, ours, keyboard, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)  # which ends the watcher
        watcher.join()
        os.close(ours)


def _watch(interrupt: Callable[[], None], signals: int, keyboard: Keyboard, over: float | None) -> None:
    while True:
        terminal = keyboard.terminal
        watched = [signals] if terminal is None else [signals, terminal]
        left = None if over is None else max(0.0, over - time.monotonic())
        ready = select.select(watched, [], [], left)[0]
        if signals in ready and not os.read(signals, 4096):
            return
        interrupt()
        select.select([signals], [], [], _AGAIN_S)
