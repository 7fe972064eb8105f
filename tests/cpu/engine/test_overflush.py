"""What the engine forgets although hardware need not: LIMITATIONS.md lists it, and here it is pinned.

A guest reads a page, lets its table name another one, and reads again: the old page, as the TLB has it.  Then
something happens that leaves a processor's TLB alone, and the next read finds the new page.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.spec.address import PAGE
from cpu.engine.worlds import CPUID, DATA, HLT, R8, R9, R10, TABLES, Guest, Machine
from cpu.tables import A, D, P, U, W
from cpu.worlds import BOB

GLOBAL = 1 << 8
OTHER, FAR = DATA + PAGE, 0x100000
ENTRY = TABLES + 0x3000 + 8 * (DATA // PAGE)
OLD, NEW = 1, 2
LIMITATIONS = (Path(__file__).parents[3] / "LIMITATIONS.md").read_text(encoding="utf-8")


def reads_around(event: str, *, flags: int = 0, pages: int = 256) -> Guest:
    """A guest that reads before the table changes, after it, and after an event."""
    g = Guest(Machine(capacity=pages * PAGE))
    g.write(DATA, OLD.to_bytes(8, "little"))
    g.write(OTHER, NEW.to_bytes(8, "little"))
    entries = [at | g.c | P | W | U | A | D | flags for at in (DATA, OTHER)]
    g.write(ENTRY, entries[0].to_bytes(8, "little"))
    g.program(
        f"""mov rsi, {DATA}; mov rdi, {ENTRY}; mov rax, {entries[1]}; mov rbx, [rdi]; mov [rdi], rbx
            mov r8, [rsi]; mov [rdi], rax; mov r9, [rsi]
            {event}
            mov r10, [rsi]; hlt"""
    )
    return g


def words(g: Guest) -> list[int]:
    return [g.register(number) for number in (R8, R9, R10)]


EVENTS = {
    "nothing": ("nop", OLD),
    "a page that was not there": (f"mov rcx, [{FAR}]", OLD),
    "INVLPG of it": ("invlpg [rsi]", NEW),  # as hardware does
    "INVLPG of another page": (f"mov rcx, {OTHER}; invlpg [rcx]", OLD),
    "MOV CR3": ("mov rcx, cr3; mov cr3, rcx", NEW),  # hardware keeps a global page
    "WBINVD": ("wbinvd", NEW),  # hardware keeps its TLB
    "CLFLUSH of another page": (f"mov rcx, {FAR}; mov rbx, [rcx]; clflush [rcx]", NEW),  # likewise
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_global_page_is_forgotten_by_these_and_no_others(event: str) -> None:
    source, expected = EVENTS[event]
    g = reads_around(source, flags=GLOBAL)
    assert g.get(0x548) & 0x80  # CR4.PGE
    assert HLT == g.run().code
    assert [OLD, OLD, expected] == words(g)


def test_an_eviction_forgets_everything() -> None:
    sweep = f"mov rcx, {FAR}; next: mov rbx, [rcx]; add rcx, 0x1000; cmp rcx, {FAR + 200 * PAGE}; jb next"
    for pages, expected in ((64, NEW), (512, OLD)):
        g = reads_around(sweep, pages=pages)
        assert HLT == g.run().code
        assert [OLD, OLD, expected] == words(g)
        assert (expected == NEW) is (g.machine.cache.evictions > 0)


@pytest.mark.parametrize("between", [True, False])
def test_another_asid_that_is_entered_forgets_everything(*, between: bool) -> None:
    g = reads_around("cpuid")
    bob = Guest(g.machine, asid=BOB, at=0xC0_0000)
    bob.program("hlt")
    assert CPUID == g.run().code
    if between:
        assert HLT == bob.run().code
    g.skip(2)
    assert HLT == g.run().code
    assert [OLD, OLD, NEW if between else OLD] == words(g)


@pytest.mark.parametrize("cause", ["MOV to CR3", "WBINVD", "CLFLUSH", "evict", "another ASID"])
def test_it_is_a_stated_limit(cause: str) -> None:
    (said,) = (line for line in LIMITATIONS.splitlines() if "forgets more than" in line)
    assert cause in said
