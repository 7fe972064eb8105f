"""Looks a while for what comes next before it goes to sleep.

Who has been answered mostly asks again, and who has been asked mostly answers at once.  To be woken takes
longer than most commands where the kernel has no synchronous wake-up: for FUSE and for sockets.  So there is
a tenth of a millisecond between looking for nothing and sleeping, in which others may have this processor.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

_LOOKS: Final = 64


def found_soon(look: Callable[[], bool]) -> bool:
    """Look until there is something; False when nothing has come for a while."""
    for _ in range(_LOOKS):
        if look():
            return True
        os.sched_yield()
    return False


def next_events(poll: select.epoll) -> list[tuple[int, int]]:
    """Wait for events, at first awake."""
    for _ in range(_LOOKS):
        events = poll.poll(0)
        if events:
            return events
        os.sched_yield()
    return poll.poll()
