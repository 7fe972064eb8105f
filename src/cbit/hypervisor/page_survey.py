"""The pages of a guest as an administrator of its host can know them: a file format of cbit's own.

    [first guest page, first system page, number of pages, state]     one run; pages are 4 KiB

A state is a word of letters: ``p`` private (encrypted with the guest's or the host's key) or ``s`` shared
when the guest used it last, ``-`` never used; then ``c`` if a copy of it is in the cache, ``d`` if that copy
is newer than DRAM.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cbit.machine.address_map import MAX_DRAM
from cbit.spec.address import PAGE
from cbit.spec.errors import WireError

STATES: Final = frozenset(use + held for use in "ps-" for held in ("", "c", "cd"))
_MOST: Final = 1 << 40  # page numbers, and pages that were written back


@dataclass(frozen=True, slots=True)
class PageRun:
    """Successive guest pages in one state, on successive system pages.

    Attributes:
        gpa_page: number of the first guest physical page.
        spa_page: number of the first system physical page.
        count: how many.
        state: one of `STATES`.
    """

    gpa_page: int
    spa_page: int
    count: int
    state: str


@dataclass(frozen=True, slots=True)
class PageSurvey:
    """All pages of one guest.

    Attributes:
        memory_size: bytes of guest memory.
        flushed: pages that a WBINVD wrote back to DRAM after the survey and before a dump.
        runs: in the order of guest pages.
    """

    memory_size: int
    flushed: int
    runs: tuple[PageRun, ...]

    def as_json(self) -> dict[str, Any]:
        """Give the object that a report holds under ``pages``."""
        return {
            "page_size": PAGE,
            "memory_size": self.memory_size,
            "flushed": self.flushed,
            "guest": [[run.gpa_page, run.spa_page, run.count, run.state] for run in self.runs],
        }

    @classmethod
    def from_json(cls, value: Any) -> PageSurvey:
        """Read it back.

        Raises:
            WireError: it is no such object.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("guest"), list):
            raise WireError("no survey of pages: an object with page_size, memory_size, flushed, guest")
        if value.get("page_size") != PAGE:
            raise WireError(f"a survey of pages of {value.get('page_size')} bytes, not {PAGE}")
        for name in ("memory_size", "flushed"):
            if not _is_count(value.get(name)):
                raise WireError(f"a survey of pages whose {name} is {value.get(name)!r}")
        memory_size = value["memory_size"]
        if memory_size > MAX_DRAM:
            raise WireError(f"a survey of {memory_size} bytes of memory: no machine has more than {MAX_DRAM}")
        runs = tuple(_run(item) for item in value["guest"])
        for before, after in itertools.pairwise(runs):
            if before.gpa_page + before.count > after.gpa_page:
                raise WireError(f"a survey in which guest page {after.gpa_page:#x} comes out of order")
        if (pages := sum(run.count for run in runs)) > memory_size // PAGE:
            raise WireError(f"a survey of {pages} pages in {memory_size} bytes of memory")
        return cls(memory_size, value["flushed"], runs)

    def pages(self) -> Iterator[tuple[int, int, str]]:
        """Give every page: guest page, system page, state."""
        for run in self.runs:
            for number in range(run.count):
                yield run.gpa_page + number, run.spa_page + number, run.state


def runs_of(pages: Iterable[tuple[int, int, str]]) -> Iterator[PageRun]:
    """Gather pages, in order, into runs."""
    run: PageRun | None = None
    for gpa_page, spa_page, state in pages:
        if run is not None and (run.gpa_page + run.count, run.spa_page + run.count, run.state) == (
            gpa_page,
            spa_page,
            state,
        ):
            run = PageRun(run.gpa_page, run.spa_page, run.count + 1, state)
            continue
        if run is not None:
            yield run
        run = PageRun(gpa_page, spa_page, 1, state)
    if run is not None:
        yield run


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST * PAGE


def _run(item: Any) -> PageRun:
    if not isinstance(item, list) or len(item) != 4:
        raise WireError(f"a run of pages is [guest page, system page, count, state], not {item!r:.80}")
    gpa_page, spa_page, count, state = item
    if not all(_is_count(number) and number < _MOST for number in item[:3]) or not count:
        raise WireError(f"a run of pages with numbers {item[:3]!r:.80}")
    if not isinstance(state, str) or state not in STATES:
        raise WireError(f"a run of pages in state {state!r:.20}; states are {', '.join(sorted(STATES))}")
    return PageRun(gpa_page, spa_page, count, state)
