"""What the host knows of a guest's pages, without reading one of them.

Where a page lies is the hypervisor's own bookkeeping.  Private or shared is seen by what the processor was
last asked for when it made the page accessible; a guest that goes on using a mapping asks no more.  Memory
comes into the cache in pieces of up to 64 KiB, so a page counts as used when a neighbour of it was.
"""

from __future__ import annotations

from collections.abc import Iterator

from cbit.hypervisor.page_survey import PageSurvey, runs_of
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE


def survey(vm: Vm) -> PageSurvey:
    """Look at all pages of a guest as they are now; nothing is flushed."""
    runs = tuple(runs_of(_pages(vm)))
    return PageSurvey(sum(region.size for region in vm.regions), 0, runs)


def _pages(vm: Vm) -> Iterator[tuple[int, int, str]]:
    used: dict[int, bool] = {}
    for core in vm.host.machine.cores:
        used |= core.used_pages(vm.asid)
    dirty: dict[int, bool] = {}
    for copy in vm.host.machine.memory.snapshot():
        page = copy.page // PAGE
        dirty[page] = dirty.get(page, False) or copy.dirty_lines > 0
    for region in sorted(vm.regions, key=lambda region: region.gpa):
        first = region.gpa // PAGE
        for number, frame in enumerate(region.frames):
            use = used.get(first + number)
            state = "-" if use is None else "p" if use else "s"
            held = dirty.get(frame // PAGE)
            yield first + number, frame // PAGE, state + ("" if held is None else "cd" if held else "c")
