"""The survey of a guest that executes: what it touched, how, and what of it is in the cache."""

from __future__ import annotations

import pytest

from cbit.hypervisor import survey as survey_module
from cbit.hypervisor.execution.monitor import run
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.survey import survey
from cbit.memory.lending import CLUSTER
from cbit.spec.address import PAGE
from hypervisor.execution.worlds import CODE_AT, SIZE, a_room

assert survey_module.__doc__
STORE = "mov eax, [0x40000]; mov dword ptr [0x20000], 0xC0FFEE; cli; hlt"


@pytest.mark.parametrize(("protection", "use"), [(Protection.SEV, "p"), (Protection.NONE, "s")])
def test_pages_that_were_used_say_how_and_the_others_say_never(
    host: Host, protection: Protection, use: str
) -> None:
    host.flush_caches()
    room = a_room(host, STORE, protection=protection)
    host.flush_caches()
    run([room.monitor])
    seen = survey(room.vm)
    states = {page: state for page, _, state in seen.pages()}
    assert SIZE == seen.memory_size == len(states) * PAGE
    assert {CODE_AT // PAGE: use + "c", 0x20: use + "cd", 0x40: use + "c", 0x60: "-"} == {
        page: states[page] for page in (CODE_AT // PAGE, 0x20, 0x40, 0x60)
    }
    pieces = {page // CLUSTER for page, state in states.items() if state[0] != "-"}
    assert pieces == {page // CLUSTER for page in (CODE_AT // PAGE, 0x20, 0x40)}
    assert [(page, room.vm.spa(room.vm.regions[0].gpa) // PAGE + page) for page in states] == [
        (page, spa) for page, spa, _ in seen.pages()
    ]
    host.flush_caches()
    assert use == {page: state for page, _, state in survey(room.vm).pages()}[0x20]  # in DRAM now
    room.end()


@pytest.mark.parametrize("protection", [Protection.SEV, Protection.NONE])
def test_who_comes_after_a_guest_starts_with_a_clean_sheet(host: Host, protection: Protection) -> None:
    room = a_room(host, STORE, protection=protection)
    asid = room.vm.asid
    run([room.monitor])
    assert host.machine.cores[0].used_pages(asid)
    room.end()
    assert {} == host.machine.cores[0].used_pages(asid)
