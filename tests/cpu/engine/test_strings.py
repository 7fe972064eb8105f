"""String instructions are done a page at a time, and nobody can tell: memory, registers, clock are the same.

The same program in slices of one block never has two turns in a row, so it is done turn by turn.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.address import PAGE
from cpu.engine.worlds import (
    CODE,
    DATA,
    GUEST_SIZE,
    HLT,
    INTR,
    RAX,
    RCX,
    RDI,
    RSI,
    SHARED,
    Guest,
    Machine,
)

FILLED = b"".join(number.to_bytes(4, "little") for number in range(0, 4 * PAGE, 4))
Result = tuple[str, int, list[int]]


def execute(program: str, *, slices: int | None, pages: int = 1024) -> tuple[Result, int]:
    """Run to HLT; return everything that a guest could notice, and how much was done at once."""
    g = Guest(Machine(capacity=pages * PAGE))
    g.write(DATA, FILLED)
    g.program(f"mov rax, 0x1122334455667788; {program}; pushfq; pop rdx; hlt")
    while (left := g.run(blocks=slices).code) == INTR:
        pass
    assert HLT == left
    memory = hashlib.sha256(g.read(0, GUEST_SIZE)).hexdigest()
    engine = g.machine.engine
    registers = [g.register(number) for number in (RAX, RCX, RSI, RDI)]
    return (memory, engine.blocks, registers), engine.turns_at_once


def both_ways(program: str) -> int:
    """Compare with the same turn by turn; return how many turns were done at once."""
    whole, turns = execute(program, slices=None)
    single, none = execute(program, slices=1)
    assert whole == single
    assert not none
    return turns


def string(instruction: str, *, to: int = DATA + 0x8000, start: int = DATA + 8, count: int) -> str:
    return f"mov rdi, {to}; mov rsi, {start}; mov rcx, {count}; rep {instruction}"


@pytest.mark.parametrize("instruction", ["stosb", "stosq", "movsb", "movsq"])
def test_a_long_one_is_done_at_once_over_several_pages(instruction: str) -> None:
    assert both_ways(string(instruction, count=2000)) > 1900


@pytest.mark.parametrize(
    "program",
    [
        string("stosw", count=600),
        string("movsd", count=600),
        f"mov rdi, {DATA}; mov rcx, 700; mov al, 0xff; repe scasb",
        "std; " + string("stosb", to=DATA + 0x8200, count=400),
        string("movsb", start=DATA + 1, to=DATA + 3, count=500),  # what was moved is moved again
        string("movsb", start=DATA + 5000, to=DATA + 4999, count=500),
        string("stosb", count=20),
        "mov rcx, 700; next: dec rcx; jnz next",
    ],
)
def test_what_is_not_worth_it_or_repeats_itself_is_left_to_its_turns(program: str) -> None:
    assert 0 == both_ways(program)


def test_code_is_not_written_over_behind_its_back() -> None:
    """The target is the page that is executed."""
    assert 0 == both_ways(string("stosb", to=CODE + 0x800, count=300))


@pytest.mark.parametrize("to", [DATA + 0x8003, DATA + 0x8FFD, SHARED + DATA + 0x8FFF])
def test_elements_across_a_border_and_shared_pages(to: int) -> None:
    assert both_ways(string("stosq", to=to, count=700)) > 600


@pytest.mark.parametrize("slices", [33, 100, 257])
def test_a_deadline_comes_between_two_turns_where_it_would_have_come(slices: int) -> None:
    program = string("movsb", count=3000)
    found, turns = execute(program, slices=slices)
    assert found == execute(program, slices=1)[0]
    assert 0 < turns < 3000


def test_a_cache_too_small_for_it_changes_nothing() -> None:
    program = string("movsq", to=DATA + 0x8000, count=6000)
    assert execute(program, slices=None, pages=24)[0] == execute(program, slices=None)[0]


def test_a_page_that_may_not_be_written_faults_at_its_first_byte() -> None:
    g = Guest()
    g.gate(14, CODE + 0x1000)
    g.write(CODE + 0x1000, b"\xf4")
    (entry,) = (int.from_bytes(g.read(0x4000 + (DATA // PAGE + 9) * 8, 8), "little"),)
    g.write(0x4000 + (DATA // PAGE + 9) * 8, (entry & ~2).to_bytes(8, "little"))
    g.program(string("stosb", count=3 * PAGE))
    assert HLT == g.run().code
    assert (DATA + 0x9000, 2 * PAGE) == (g.register(RDI), g.register(RCX))
    assert DATA + 0x9000 == g.get(0x640)


@given(
    st.sampled_from(["stosb", "stosq", "movsb", "movsq"]),
    st.integers(0, 2 * PAGE),
    st.integers(0, 2 * PAGE),
    st.integers(0, 300),
)
def test_wherever_it_lies(instruction: str, to: int, start: int, count: int) -> None:
    both_ways(string(instruction, to=DATA + to, start=DATA + start, count=count))
