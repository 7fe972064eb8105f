"""Guest time: how long the guest has run, as the run loop counts it.

No device looks at the host's time: two runs that execute the same blocks see the same ticks.
"""

from __future__ import annotations

from typing import Final, Protocol

NS: Final = 1_000_000_000  #: nanoseconds in a second


class GuestClock(Protocol):
    """Something that knows the guest's time."""

    @property
    def ns(self) -> int:
        """Nanoseconds since power-on; it never goes back."""
        ...


def ticks(ns: int, hz: int) -> int:
    """How many whole periods of ``hz`` have passed."""
    return ns * hz // NS


def when(tick: int, hz: int) -> int:
    """The first nanosecond at which ``ticks`` reaches ``tick``."""
    return -(-tick * NS // hz)
