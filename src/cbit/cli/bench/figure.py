"""One line of the bench: ours beside the limit, measured in turn so that a noisy machine hits both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured ratio.

    Attributes:
        group: the group it belongs to.
        name: its name.
        ours: our median, in ``unit``.
        limit: the limit's median, in ``unit``.
        unit: "GB/s", "/s" (more is better) or "us", "ms", "MiB" (less is better).
        ratio: median of ours / limit over the pairs.
        against: what the limit is.
        reach: the bound to reach (">= 0.45", "<= 1.6"); empty for a figure that is only reported.
    """

    group: str
    name: str
    ours: float
    limit: float
    unit: str
    ratio: float
    against: str
    reach: str = ""

    def with_bound(self, against: str, reach: str) -> Figure:
        """Return the figure with what it is held against."""
        return replace(self, against=against, reach=reach)

    @property
    def reached(self) -> bool | None:
        """Whether the bound is reached; None if there is none."""
        if not self.reach:
            return None
        relation, bound = self.reach.split()
        return self.ratio >= float(bound) if relation == ">=" else self.ratio <= float(bound)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that could not be measured, and why."""

    group: str
    name: str
    why: str


def pairs(
    ours: Callable[[], object],
    limit: Callable[[], object],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Time both in turn, after one warm-up of each, garbage collection off (as ``timeit``); seconds.

    Args:
        ours: what is measured.
        limit: what it is measured against.
        rounds: how often.
        clock: by default the wall's; ``time.process_time`` for work that only this process does.
    """
    ours()
    limit()
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [(_seconds(ours, clock), _seconds(limit, clock)) for _ in range(rounds)]
    finally:
        if collecting:
            gc.enable()


def medians(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the median of ours, of the limit, and of the ratio ours / limit pair by pair."""
    return (
        statistics.median(ours for ours, _ in times),
        statistics.median(limit for _, limit in times),
        statistics.median(ours / limit for ours, limit in times),
    )


def _seconds(action: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    action()
    return clock() - begun
