"""What the host knows of a guest's pages, without reading one of them.

Where a page lies is the hypervisor's own bookkeeping.  Private or shared is seen by what the processor was
last asked for when it made the page accessible; a guest that goes on using a mapping asks no more.  Memory
comes into the cache in pieces of up to 64 KiB, so a page counts as used when a neighbour of it was.
"""

from __future__ import annotations

from collections.abc import Iterator

from cbit.hypervisor.page_survey import PageSurvey, runs_of
from cbit.hypervisor.vm import Vm
from cbit.machine.board import Machine
from cbit.spec.address import PAGE


def survey(vm: Vm) -> PageSurvey:
    """Look at all pages of a guest as they are now; nothing is flushed."""
    runs = tuple(runs_of(_pages(vm)))
    return PageSurvey(sum(region.size for region in vm.regions), 0, runs)


def survey_machine(machine: Machine) -> PageSurvey:
    """Look at all pages of a machine whose software is the host: pages with and without the host's key."""
    states = _States(machine, asid=0)
    pages = ((page, page, states.of(page, page)) for page in range(machine.memory_size // PAGE))
    return PageSurvey(machine.memory_size, 0, tuple(runs_of(pages)))


def _pages(vm: Vm) -> Iterator[tuple[int, int, str]]:
    states = _States(vm.host.machine, asid=vm.asid)
    for region in sorted(vm.regions, key=lambda region: region.gpa):
        first = region.gpa // PAGE
        for number, frame in enumerate(region.frames):
            yield first + number, frame // PAGE, states.of(first + number, frame // PAGE)


class _States:
    """What is known of pages under one ASID, at one moment."""

    def __init__(self, machine: Machine, *, asid: int) -> None:
        self._used: dict[int, bool] = {}
        for core in machine.cores:
            self._used |= core.used_pages(asid)
        self._dirty: dict[int, bool] = {}
        for copy in machine.memory.snapshot():
            page = copy.page // PAGE
            self._dirty[page] = self._dirty.get(page, False) or copy.dirty_lines > 0

    def of(self, gpa_page: int, spa_page: int) -> str:
        """Say the state of a page, as `PageSurvey` writes it."""
        use, held = self._used.get(gpa_page), self._dirty.get(spa_page)
        return ("-" if use is None else "p" if use else "s") + ("" if held is None else "cd" if held else "c")
