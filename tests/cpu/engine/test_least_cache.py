"""The smallest cache in which guests execute, with the instruction that needs most pages at once."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cbit.cpu.engine import processor
from cbit.memory.lending import LEAST_CACHE
from cbit.spec.address import PAGE
from cpu.engine.worlds import HLT, INTR, RAX, RBX, TABLES, Guest, Machine, assemble
from cpu.tables import A, D, P, U, W

#: Linear addresses at which another top entry begins: the pages on both sides share the top table alone.
FETCHED, OPERAND, GATE, TASK, PUSHED = (n << 39 for n in range(2, 12, 2))
READ, WRITTEN = OPERAND, PUSHED
TARGET = 0x10_0000  # linear 0x10_0000 is guest physical 0x10_0000, by the guest's usual tables
SELECTOR, CODE_SELECTOR = 0x20, 0x1028


class Scattered(Guest):
    """A guest with pages on both sides of five borders: no two pages or tables in one piece of 64 KiB."""

    def __init__(self, *, pages: int, flags: int) -> None:
        super().__init__(Machine(capacity=pages * PAGE), nested_flags=flags)
        # A page of each piece of 16, one after the other, and then again with the next page of each.
        self._free = (piece * 16 + page << 12 for page in range(3, 13) for piece in range(4, 32))
        self._tables: dict[tuple[int, int], int] = {}

    def put(self, linear: int, data: bytes) -> None:
        """Put bytes across a border."""
        for at in range(linear & -PAGE, linear + len(data), PAGE):
            start, stop = max(linear, at), min(linear + len(data), at + PAGE)
            self.write(self.place(at) + start % PAGE, data[start - linear : stop - linear])

    def place(self, linear: int) -> int:
        """Find or map a linear page."""
        table = TABLES
        for shift in (39, 30, 21, 12):
            word = (table, linear >> shift & 511)
            if word not in self._tables:
                self._tables[word] = at = next(self._free)
                self.write(at, bytes(PAGE))
                self.write(table + 8 * word[1], struct.pack("<Q", at | self.c | P | W | U | A | D))
            table = self._tables[word]
        return table

    def segment_at(self, at: int, *, selector: int, base: int, limit: int) -> None:
        struct.pack_into("<HHIQ", self.vmcb, at, selector, 0x8B, limit, base)


def far_call(g: Scattered) -> None:
    """From user code, through a gate, to the kernel: every object lies across a border."""
    table = GATE - SELECTOR - 12  # the gate's 16 bytes begin 12 before the border
    gate = struct.pack("<HHBBHII", TARGET & 0xFFFF, CODE_SELECTOR, 0, 0xEC, TARGET >> 16, 0, 0)
    g.put(table + SELECTOR, gate)
    g.put(table + CODE_SELECTOR, struct.pack("<Q", 0x00AF_9B00_0000_FFFF))  # 4 before the next border
    g.put(TASK - 4, struct.pack("<Q", PUSHED + 16))  # RSP0, at 4 in the task state
    g.put(PUSHED - 64, bytes(128))
    g.put(OPERAND - 3, struct.pack("<IH", 0, SELECTOR))
    g.put(FETCHED - 1, assemble("lcall [rbx]"))
    g.write(TARGET, assemble("hlt"))
    struct.pack_into("<HHIQ", g.vmcb, 0x460, 0, 0, 0xFFFF, table)
    g.segment_at(0x490, selector=0x40, base=TASK - 8, limit=0x67)
    for index in range(4):
        g.segment(index, 0x13 if index == 1 else 0x1B, 0xAFB if index == 1 else 0xCF3)
    g.set("B", 0x4CB, 3)  # CPL
    g.set("Q", 0x578, FETCHED - 1)
    g.context.registers[RBX] = OPERAND - 3


def string_move(g: Scattered) -> None:
    """Source and target lie across a border each."""
    g.put(READ - 4, b"4 and 4!")
    g.put(WRITTEN - 4, bytes(8))
    g.put(FETCHED - 1, assemble("movsq; hlt"))
    g.set("Q", 0x578, FETCHED - 1)
    g.context.registers[6], g.context.registers[7] = READ - 4, WRITTEN - 4


PIECES = pytest.mark.parametrize("flags", [P | W | U, P | W | U | A | D], ids=["page by page", "in pieces"])


@PIECES
def test_the_smallest_cache_holds_what_a_far_call_needs(flags: int) -> None:
    g = Scattered(pages=LEAST_CACHE // PAGE, flags=flags)
    far_call(g)
    g.machine.cache.wbinvd()
    assert HLT == g.run(blocks=1000).code
    assert TARGET == g.get(0x578)
    assert PUSHED + 16 - 4 * 8 == g.get(0x5D8)
    assert g.machine.engine._processor.state.stalls < 2000


@PIECES
def test_the_smallest_cache_holds_what_a_string_instruction_needs(flags: int) -> None:
    g = Scattered(pages=LEAST_CACHE // PAGE, flags=flags)
    string_move(g)
    g.machine.cache.wbinvd()
    assert HLT == g.run(blocks=1000).code
    assert b"4 an" == g.read(g.place(WRITTEN - 1) + PAGE - 4, 4)
    assert b"d 4!" == g.read(g.place(WRITTEN), 4)


@pytest.mark.parametrize("pages", [1, 4, 8, 16, 24])
def test_a_smaller_one_leaves_an_instruction_where_it_is_and_an_interrupt_comes_all_the_same(
    pages: int,
) -> None:
    g = Scattered(pages=pages, flags=P | W | U)
    string_move(g)
    g.machine.cache.wbinvd()
    before = g.machine.engine.blocks
    for _ in range(2):
        assert INTR == g.run(blocks=1000).code
    assert FETCHED - 1 == g.get(0x578)
    assert g.machine.engine.blocks <= before + 1


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_code_that_is_translated_again_and_again_does_not_fill_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, rounds = 32 << 20, 60_000  # each round makes a kilobyte of code, and drops it
    monkeypatch.setattr(processor, "CODE_ROOM", room)
    g = Guest()
    g.program(
        f"mov ecx, {rounds}; again: inc dword ptr [rip + patched + 1]; call patched; dec ecx; jnz again; hlt;"
        ".org 0x800; patched: mov eax, 0; ret"
    )
    before = resident()
    assert HLT == g.run(blocks=None).code
    assert rounds == g.register(RAX)
    assert resident() < before + room + room // 4
