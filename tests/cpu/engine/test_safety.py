"""A guest can ruin itself, and nothing else: each case runs in a process of its own, which must end well."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cbit.cpu.engine.control_block import At
from cbit.cpu.faults import VmexitInvalid
from cbit.spec.address import PAGE, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import UNENCRYPTED
from cpu.engine.worlds import (
    CODE,
    CPUID,
    DATA,
    GDT,
    HLT,
    IDT,
    INTR,
    NPF,
    RBX,
    SHARED,
    SHUTDOWN,
    STACK,
    TABLES,
    C,
    Guest,
    Machine,
    assemble,
)
from cpu.tables import NX, P, U, W


def garbage_cr3() -> None:
    for cr3 in (0xFF_FFFF_F000, 0x7F_FFFF_F000, C | 0x7F_FFFF_F000, 0xDEAD_B000):
        g = Guest()
        g.program("hlt")
        g.set("Q", 0x550, cr3)
        assert NPF == g.run().code
        assert cr3 & -PAGE == g.get(At.EXIT_INFO_2) & -PAGE


def garbage_tables() -> None:
    for seed in range(20):
        g = Guest()
        g.program("hlt")
        g.write(TABLES, random.Random(seed).randbytes(5 * PAGE))
        assert g.run(blocks=1000).code in (NPF, SHUTDOWN)


def absent_nested_tables() -> None:
    g = Guest()
    g.program("hlt")
    g.machine.cache.write(Spa(g.nested.root), bytes(PAGE), UNENCRYPTED)
    assert NPF == g.run().code


def nested_nx_over_page_tables() -> None:
    """QEMU dereferences NULL when a walk meets a nested leaf with NX; no leaf of the engine's ever has it."""
    g = Guest(nested_flags=P | W | U | NX)
    g.nested.map(CODE, g.at + CODE)
    g.program(f"mov rbx, [{DATA}]; mov rax, {DATA}; jmp rax")
    assert NPF == g.run().code
    assert 1 << 32 | 0x15 == g.get(At.EXIT_INFO_1)


def interrupt_without_a_tss() -> None:
    """QEMU calls abort() where a processor shuts down."""
    g = Guest()
    g.write(
        GDT,
        struct.pack(
            "<6Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
        ),
    )
    g.gate(6, CODE)
    g.write(0x50000, b"\x0f\x0b")
    g.set("Q", 0x600, 0x13 << 48)
    g.program("mov rcx, 0x50000; mov r11, 2; sysretq")
    assert SHUTDOWN == g.run().code
    assert 1 == g.machine.engine.aborted
    g.set("Q", 0x578, CODE)
    g.segment(1, 0x10, 0xA9B)
    g.segment(2, 0x18, 0xC93)
    g.set("B", 0x4CB, 0)
    g.program("mov rbx, 7; hlt")
    assert HLT == g.run().code  # and the engine goes on
    assert 7 == g.register(RBX)


def hypervisors_instructions_at_the_engines_memory() -> None:
    for address in (1 << 38, 2 << 38, 3 << 38, 1 << 47, (1 << 47) + PAGE):
        for source in ("vmsave rax", "vmload rax", "vmrun rax"):
            g = Guest()
            g.program(f"mov rax, {address}; {source}")
            assert g.run().code in (SHUTDOWN, 0x80)


def every_physical_address_through_its_own_tables() -> None:
    """A guest that maps the engine's private ranges sees its own guest physical memory there: nothing."""
    for physical in (1 << 38, 2 << 38, 3 << 38, 0):
        g = Guest()
        g.write(TABLES + 0x3000 + 8 * 0x60, struct.pack("<Q", physical & ~C | 0x63))
        g.program("mov rbx, [0x60000]; hlt")
        left = g.run()
        if not physical & ~C:
            assert HLT == left.code
        else:
            assert (NPF, physical & ~C) == (left.code, left.info_2)


def endless_faults() -> None:
    """An access that needs two coherent copies of a page at once gets no further; the host has its turn."""
    g = Guest(Machine(coherent=True))
    g.program(f"mov rsi, {DATA}; mov rdi, {SHARED + DATA}; mov rcx, 8; rep movsb; hlt")
    assert g.run(blocks=100).code in (INTR, HLT)
    assert CPUID == _another(g)


def a_handler_that_cannot_be_fetched() -> None:
    """Each fetch of it is the next page fault, on a stack that is always good: no block ever begins."""
    g = Guest()
    nowhere, tss, on_ist_1 = 0x60_0000, DATA, 1
    gate = struct.pack("<HHBBHII", nowhere & 0xFFFF, 0x10, on_ist_1, 0x8E, nowhere >> 16, 0, 0)
    g.write(IDT + 16 * 14, gate)
    g.write(tss + 0x24, struct.pack("<Q", STACK))
    struct.pack_into("<HHIQ", g.vmcb, 0x490, 0x20, 0x8B, 0x67, tss)
    g.program(f"jmp {nowhere}")
    for _ in range(2):
        begun = g.machine.engine.blocks
        assert INTR == g.run(blocks=100).code
        assert 0 <= g.machine.engine.blocks - begun - 100 <= 1
    assert nowhere == g.get(0x578)
    assert CPUID == _another(g)


def _another(g: Guest) -> int:
    other = Guest(g.machine, sev=False, asid=12, at=0xC0_0000)
    other.program("cpuid")
    return other.run().code


def interrupts_into_nothing() -> None:
    for vector in (0, 8, 14, 32, 255):
        for form in (0, 2, 3, 4):
            g = Guest()
            g.program("hlt")
            g.set("Q", 0x0A8, 1 << 31 | form << 8 | vector)
            try:
                assert g.run(blocks=1000).code in (SHUTDOWN, NPF, HLT)
            except VmexitInvalid:
                assert (3, True) == (form, vector >= 32)


def stack_in_nowhere() -> None:
    g = Guest()
    g.gate(6, CODE)
    g.set("Q", 0x5D8, 0x7FFF_FFFF_F000)
    g.program("ud2")
    assert SHUTDOWN == g.run(blocks=100_000).code


def random_code() -> None:
    g = Guest()
    for seed in range(60):
        g.write(CODE, random.Random(seed).randbytes(2048))
        for at, value in (
            (0x578, CODE),
            (0x5D8, STACK),
            (0x550, TABLES | C),
            (0x558, 0x8005_0033),
            (0x570, 2),
        ):
            g.set("Q", at, value)
        g.set("Q", 0x4D0, 0x1D01)
        g.tables()
        for _ in range(20):
            if g.run(blocks=2000).code in (SHUTDOWN, INTR, NPF):
                break
            g.skip(1)


def random_segments_and_modes() -> None:
    source = random.Random(1)
    g = Guest()
    before = bytes(g.vmcb)
    for _ in range(60):
        g.vmcb[:] = before
        for index in range(10):
            g.segment(
                index,
                source.getrandbits(16),
                source.getrandbits(12),
                source.getrandbits(32),
                source.getrandbits(32),
            )
        g.set("Q", 0x558, source.choice((0x11, 0x10, 0x8000_0011, 0x8005_0033)))
        g.set("Q", 0x4D0, source.choice((0x1000, 0x1D01, 0x1101)))
        g.set("Q", 0x548, source.choice((0, 0x10, 0x20, 0x6A0)))
        g.set("Q", 0x578, source.getrandbits(20))
        g.write(CODE, source.randbytes(256))
        with suppress(VmexitInvalid, NotModelled):  # refused at the door
            g.run(blocks=500)


CASES: tuple[Callable[[], None], ...] = (
    garbage_cr3,
    garbage_tables,
    absent_nested_tables,
    nested_nx_over_page_tables,
    interrupt_without_a_tss,
    hypervisors_instructions_at_the_engines_memory,
    every_physical_address_through_its_own_tables,
    endless_faults,
    a_handler_that_cannot_be_fetched,
    interrupts_into_nothing,
    stack_in_nowhere,
    random_code,
    random_segments_and_modes,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_process_survives(case: Callable[[], None]) -> None:
    assemble("hlt")  # skips aloud without an assembler
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(str(root / part) for part in ("src", "tests"))
    program = f"from cpu.engine import test_safety; test_safety.{case.__name__}()"
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (0, "") == (ended.returncode, ended.stderr)
