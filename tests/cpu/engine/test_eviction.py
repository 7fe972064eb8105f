"""The cache is bounded: what leaves is encrypted and wiped, and the guest does not notice."""

from __future__ import annotations

import pytest

from cbit.cpu.engine import engine
from cbit.memory.lending import CLUSTER
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED
from cpu.engine.worlds import (
    CODE,
    CPUID,
    DATA,
    GUEST_AT,
    HLT,
    NPF,
    RAX,
    RBX,
    RDX,
    Guest,
    Machine,
    assemble,
)
from cpu.tables import A, D, P, U, W
from cpu.worlds import BOB

PAGES = 200
START = 0x8_0000

#: Write a number to each of many pages, three times over, then add them all up.
SWEEP = f"""
    mov r8, 3
rounds: mov rsi, {START}; mov rcx, {PAGES}
fill: add [rsi], rcx; add rsi, {PAGE}; dec rcx; jnz fill
    dec r8; jnz rounds
    mov rsi, {START}; mov rcx, {PAGES}; xor rbx, rbx
sum: add rbx, [rsi]; add rsi, {PAGE}; dec rcx; jnz sum
    hlt
"""
TOTAL = 3 * PAGES * (PAGES + 1) // 2


def zeroed(g: Guest) -> Guest:
    g.write(START, bytes(PAGES * PAGE))
    g.program(SWEEP)
    g.machine.cache.wbinvd()
    return g


@pytest.mark.parametrize("flags", [P | W | U, P | W | U | A | D], ids=["page by page", "in pieces"])
@pytest.mark.parametrize("pages", [24, 32, 64, 96, 1024])
@pytest.mark.parametrize("sev", [True, False])
def test_a_working_set_beyond_the_cache_is_computed_all_the_same(
    pages: int, flags: int, *, sev: bool
) -> None:
    g = zeroed(Guest(Machine(capacity=pages * PAGE), sev=sev, nested_flags=flags))
    assert HLT == g.run().code
    assert TOTAL == g.register(RBX)
    assert (g.machine.cache.evictions > 0) == (pages < PAGES)
    assert len(g.machine.cache.snapshot()) <= pages


def test_an_instruction_that_needs_more_clusters_than_the_cache_holds_goes_on() -> None:
    """Source and target lie across the border of two clusters each; code and tables are in others."""
    g = Guest(Machine(capacity=32 * PAGE))
    size = CLUSTER * PAGE
    source, target = START + size - 4, START + 4 * size - 4
    g.write(source, b"4 and 4!")
    g.program(f"mov rsi, {source}; mov rdi, {target}; movsq; hlt")
    g.machine.cache.wbinvd()
    assert HLT == g.run(blocks=100).code  # and not a physical interrupt, for a clock that stands
    assert b"4 and 4!" == g.read(target, 8)


def fills_of_a_walk(*, asked: bool) -> int:
    """Sixteen pages, code and tables are used between 384 others, which go by once: three times the cache."""
    g = Guest(Machine(capacity=128 * PAGE), nested_flags=P | W | U)
    g.program(f"""
        mov rsi, 0x40000
    next: mov rbx, {DATA}; mov ecx, 16
    again: inc qword ptr [rbx]; add rbx, 0x1000; dec ecx; jnz again
        add rax, [rsi]; mov rdx, cr3; mov cr3, rdx; add rsi, 0x1000; cmp rsi, 0x1C0000; jb next; hlt""")
    g.write(DATA, bytes(16 * PAGE))
    g.machine.cache.wbinvd()
    if not asked:
        g.machine.engine._shadow.was_used = lambda slot: False  # type: ignore[method-assign]
    before = g.machine.cache.fills
    assert HLT == g.run().code
    assert 16 * [384] == [int.from_bytes(g.read(DATA + n * PAGE, 8), "little") for n in range(16)]
    assert g.machine.cache.evictions >= 256
    return g.machine.cache.fills - before


def test_pages_that_are_used_all_the_time_stay() -> None:
    assert fills_of_a_walk(asked=True) < fills_of_a_walk(asked=False) - 20


def test_what_was_evicted_is_ciphertext_and_its_slot_holds_somebody_elses_page() -> None:
    g = Guest(Machine(capacity=64 * PAGE))
    secret = b"a secret of sixteen bytes or so." * 4
    g.write(START, bytes(PAGES * PAGE))
    g.write(START, secret)
    g.program(SWEEP)
    assert HLT == g.run().code
    g.machine.cache.wbinvd()
    assert secret[16:] == g.read(START + 16, len(secret) - 16)  # the first word was added to
    g.machine.cache.wbinvd()
    assert b"sixteen bytes" not in g.machine.probe.read(Spa(0), 16 << 20)
    assert b"sixteen bytes" not in bytes(g.machine.cache.window)  # wiped
    assert bytes(64 * PAGE) == bytes(g.machine.cache.window)


def test_only_lines_that_were_stored_to_are_written_back() -> None:
    g = Guest()
    g.write(DATA, bytes(PAGE))
    g.machine.cache.wbinvd()
    g.program(f"mov byte ptr [{DATA + 130}], 5; hlt")
    assert HLT == g.run().code
    # Another tag changes another line of the page behind the guest's back; both changes survive.
    g.machine.cache.write(Spa(g.at + DATA + 512), b"\x11" * 64, UNENCRYPTED)
    (dirty,) = (
        copy.dirty_lines for copy in g.machine.cache.snapshot() if copy.page == g.at + DATA and copy.key_id
    )
    assert 1 == dirty
    g.machine.cache.wbinvd()
    assert b"\x11" * 64 == g.cells(DATA + 512, 64)
    assert 5 == g.read(DATA + 130, 1)[0]


def test_walks_alone_write_nothing_back() -> None:
    g = Guest()
    g.program("hlt")
    g.machine.cache.wbinvd()
    g.run()
    guests = [copy for copy in g.machine.cache.snapshot() if copy.page >= GUEST_AT]
    assert {0} == {copy.dirty_lines for copy in guests}


def test_what_the_host_stores_under_the_same_tag_is_seen_at_once() -> None:
    g = Guest(sev=False)
    g.program(f"again: mov rbx, [{DATA}]; cpuid; jmp again")
    assert CPUID == g.run().code
    g.write(DATA, (77).to_bytes(8, "little"))
    g.skip(2)
    assert CPUID == g.run().code
    assert 77 == g.register(RBX)


def test_code_that_the_host_replaces_is_executed_anew() -> None:
    g = Guest()
    g.program("again: cpuid; mov rbx, 1; jmp again")
    for _ in range(2):
        assert CPUID == g.run().code
        g.skip(2)
    g.write(CODE, assemble("again: cpuid; mov rbx, 2; jmp again", CODE))
    assert CPUID == g.run().code
    assert 2 == g.register(RBX)


def test_the_key_of_a_slot_decides_who_reads_what_in_one_page() -> None:
    """Two guests mapped onto one system page: each its own key, so neither reads the other."""
    alice = Guest()
    bob = Guest(alice.machine, asid=BOB, at=0xC0_0000)
    bob.nested.map(DATA, alice.at + DATA)
    alice.write(DATA, b"only for Alice..")
    alice.machine.cache.wbinvd()
    for g in (alice, bob):
        g.program(f"mov rbx, [{DATA}]; hlt")
        assert HLT == g.run().code
    assert int.from_bytes(b"only for", "little") == alice.register(RBX) != bob.register(RBX)


INTERRUPTED = f"""
    mov rsi, {START}; mov rcx, {PAGES}; xor rdx, rdx
next: add [rsi], rcx; int 0x31; add rsi, {PAGE}; dec rcx; jnz next
    mov rax, rdx; hlt
"""


@pytest.mark.parametrize("pages", [24, 40, 1024])
def test_no_event_is_lost_when_its_delivery_needs_pages_that_are_not_there(pages: int) -> None:
    """INT pushes to a stack, reads IDT and GDT: each may have been evicted in the meantime."""
    g = Guest(Machine(capacity=pages * PAGE))
    g.write(START, bytes(PAGES * PAGE))
    g.write(0x40000, assemble("inc rdx; iretq", 0x40000))
    g.gate(0x31, 0x40000)
    g.program(INTERRUPTED)
    g.machine.cache.wbinvd()
    assert HLT == g.run().code
    assert [PAGES, PAGES] == [g.register(RDX), g.register(RAX)]


@pytest.mark.parametrize("pages", [24, 40, 1024])
def test_every_injected_interrupt_arrives_once(pages: int) -> None:
    g = Guest(Machine(capacity=pages * PAGE))
    g.write(START, bytes(PAGES * PAGE))
    g.write(0x40000, assemble("inc rdx; iretq", 0x40000))
    g.gate(0x30, 0x40000)
    g.program(
        f"""mov rsi, {START}; mov rcx, {PAGES}; sti
        next: add [rsi], rcx; add rsi, {PAGE}; cpuid; dec rcx; jnz next; hlt"""
    )
    for turn in range(PAGES):
        assert CPUID == g.run().code
        g.skip(2)
        if turn % 2:
            g.set("Q", 0x0A8, 1 << 31 | 0x30)  # EVENTINJ
        else:
            g.set("Q", 0x060, 0x30 << 32 | 1 << 24 | 1 << 16 | 1 << 8)  # V_IRQ, with a priority
        if turn % 7 == 0:
            g.machine.cache.wbinvd()
    assert HLT == g.run().code
    assert PAGES == g.register(RDX)


def test_tables_that_are_used_up_are_dropped_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_SPARE_TABLES", 4)
    machine = Machine(capacity=24 * PAGE)  # a handful of table pages
    g = Guest(machine)
    # 64 linear units of 2 MiB, each a different unit of guest physical memory that is the same system page.
    for unit in range(1, 64):
        g.nested.map(unit << 21, g.at + DATA)
    g.write(0x3000, b"".join(((u << 21) | g.c | 0xE3).to_bytes(8, "little") for u in range(512)))
    g.write(DATA, (5).to_bytes(8, "little"))
    g.program(
        """mov rsi, 0x200000; mov rcx, 63; xor rbx, rbx
        next: add rbx, [rsi]; add rsi, 0x200000; dec rcx; jnz next; hlt"""
    )
    assert HLT == g.run().code
    assert 5 * 63 == g.register(RBX)
    assert machine.engine.counters.restarts > 0


def test_neighbours_come_along_where_the_tables_are_alike_and_time_does_not_notice() -> None:
    counts = {}
    for flags in (P | W | U, P | W | U | A | D):
        g = zeroed(Guest(nested_flags=flags))
        assert HLT == g.run(blocks=None).code
        counts[flags] = (g.machine.engine.counters.faults, g.machine.engine.blocks)
    (alone, blocks), (along, same) = counts.values()
    assert along < alone / 4
    assert blocks == same  # a block that a fill makes begin again is counted once


def test_a_neighbour_with_other_rights_is_not_brought_along() -> None:
    g = Guest(nested_flags=P | W | U | A | D)
    g.nested.map(DATA + PAGE, GUEST_AT + DATA + PAGE, flags=P | U | A | D)  # read only
    g.program(f"mov rax, [{DATA}]; mov qword ptr [{DATA}], 1; mov qword ptr [{DATA + PAGE}], 1; hlt")
    left = g.run()
    assert (NPF, DATA + PAGE) == (left.code, left.info_2 & (1 << 39) - 1)


def test_what_came_along_unasked_is_clean_and_leaves_dram_as_it_is() -> None:
    g = Guest(nested_flags=P | W | U | A | D)
    g.write(DATA, b"neighbours" * 800)
    g.machine.cache.wbinvd()
    before = g.cells(DATA, 2 * PAGE)
    g.program(f"mov byte ptr [{DATA}], 'N'; hlt")
    assert HLT == g.run().code
    g.machine.cache.wbinvd()
    after = g.cells(DATA, 2 * PAGE)
    assert before[16:] == after[16:]
    assert before[:16] != after[:16]
