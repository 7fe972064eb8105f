"""Two runs with one seed are the same run: clock, time stamps and randomness are the machine's."""

from __future__ import annotations

import hashlib
import threading

import pytest

from cbit.cpu.engine.native import ON_CALL, Answer
from cbit.spec.address import PAGE
from cpu.engine.worlds import DATA, GUEST_SIZE, HLT, INTR, RBX, RDI, RDX, RSI, Guest, Machine, assemble

PROGRAM = f"""
    mov rsi, {DATA}; mov rcx, 300
next: rdtsc; shl rdx, 32; or rax, rdx; add [rsi], rax; rdrand rbx; xor [rsi+8], rbx
    add rsi, 0x1008; cmp rsi, 0x1A0000; jb stay; sub rsi, 0x17F000
stay: dec rcx; jnz next
    hlt
"""


def run(pages: int = 1024, *, seed: str = "one", slices: int | None = None) -> tuple[str, int, int]:
    g = Guest(Machine(capacity=pages * PAGE, seed=seed))
    g.write(DATA, bytes(GUEST_SIZE - DATA))
    g.program(PROGRAM)
    g.machine.cache.wbinvd()
    while g.run(blocks=slices).code == INTR:
        pass
    assert HLT == g.get(0x070)
    memory = g.read(DATA, GUEST_SIZE - DATA)
    return hashlib.sha256(memory).hexdigest(), g.machine.engine.blocks, g.machine.engine.counters.faults


def test_one_seed_one_history() -> None:
    assert run() == run()
    assert run()[:1] != run(seed="another")[:1]


@pytest.mark.parametrize("pages", [24, 100])
def test_the_clock_does_not_know_the_size_of_the_cache(pages: int) -> None:
    memory, blocks, faults = run(pages)
    assert (memory, blocks) == run()[:2]
    assert faults > run()[2]


@pytest.mark.parametrize("slices", [1, 7, 50])
def test_slices_of_time_do_not_change_what_a_guest_computes(slices: int) -> None:
    assert run(slices=slices)[:2] == run()[:2]


@pytest.mark.parametrize("slices", [1, 2, 3, 7, 1000])
def test_each_exception_arrives_once_wherever_a_slice_ends(slices: int) -> None:
    """A delivery takes a block's time, so that the end of a slice may come with it."""
    g = Guest()
    handler = 0x40000
    g.write(handler, assemble("inc rsi; add qword ptr [rsp], 2; iretq", handler))
    g.gate(6, handler)
    g.program("xor rsi, rsi; mov rcx, 20; again: ud2; inc rdi; dec rcx; jnz again; hlt")
    while (code := g.run(blocks=slices).code) == INTR:
        pass
    assert (HLT, 20, 20) == (code, g.register(RSI), g.register(RDI))
    assert 20 * 4 + 1 == g.machine.engine.blocks  # ud2, its delivery, the handler, the rest


def test_another_thread_may_interrupt() -> None:
    g = Guest()
    engine = g.machine.engine
    g.program("again: jmp again")
    threading.Timer(0.05, engine.interrupt).start()
    assert INTR == g.run(blocks=None).code
    before = engine.blocks
    assert (INTR, before) == (g.run(blocks=1000).code, engine.blocks)  # until it has been heard
    engine.go_on()
    assert (INTR, before + 1000) == (g.run(blocks=1000).code, engine.blocks)


def test_an_invalid_instruction_is_not_pythons_affair() -> None:
    g = Guest()
    handler, asked = 0x40000, list[int]()

    def on_invalid() -> int:
        asked.append(g.get(0x578))
        return Answer.LEAVE

    g.machine.engine.processor.state.on_invalid = ON_CALL(on_invalid)
    g.write(handler, assemble("add qword ptr [rsp], 3; iretq", handler))
    g.gate(6, handler)
    g.program(f".byte 0x66, 0x0f, 0x0b; hlt; clflush [{DATA}]")
    assert (HLT, []) == (g.run().code, asked)
    g.skip(1)
    g.run()
    assert 1 == len(asked)  # a line flush is


def test_a_guest_that_asks_for_much_randomness_gets_it_and_never_the_same() -> None:
    g = Guest()
    g.program(f"mov rcx, 200; mov rdi, {DATA}; next: rdrand rax; jnc next; stosq; dec rcx; jnz next; hlt")
    assert HLT == g.run().code
    drawn = g.read(DATA, 1600)
    assert 200 == len({drawn[at : at + 8] for at in range(0, 1600, 8)})


def test_time_passes_while_nobody_executes() -> None:
    g = Guest()
    g.program("rdtsc; mov rbx, rax; cpuid; rdtsc; sub rax, rbx; mov rbx, rax; hlt")
    g.run()
    g.machine.engine.advance(1_000_000)
    g.skip(2)
    g.context.registers[RBX] = g.register(RBX)
    assert HLT == g.run().code
    assert 32 * 1_000_000 <= g.register(RBX) < 32 * 1_000_010
    assert 0 == g.register(RDX) >> 32
