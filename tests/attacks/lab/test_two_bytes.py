"""Programs of two-byte instructions: what they compute, and the blocks that they are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cbit.attacks.experiments import named
from cbit.attacks.experiments.two_bytes import LONGEST_NUMBER, PAIR, number
from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.attacks.lab.run import run
from cbit.attacks.lab.stand import Setup, Stand, Workshop
from cbit.attacks.lab.tools import Memory
from cbit.crypto.entropy import SeededEntropy
from cbit.spec.address import BLOCK, MIB


def executed(program: Sequence[bytes]) -> dict[str, int]:
    """What the processor makes of it: xor, shl by one and inc of esi and edi, from garbage on."""
    registers = {"esi": 0xBAD, "edi": 0xBAD}
    for opcode, operand in program:
        name = {0xF6: "esi", 0xE6: "esi", 0xC6: "esi", 0xFF: "edi", 0xE7: "edi", 0xC7: "edi"}[operand]
        then = {0x31: 0, 0xD1: registers[name] << 1, 0xFF: registers[name] + 1}[opcode]
        registers[name] = then & 0xFFFF_FFFF
    return registers


@given(st.integers(0, (1 << 32) - 1), st.sampled_from(["esi", "edi"]))
@example(0, "edi")
@example(0xFFFF_FFFF, "esi")
def test_a_number_is_built_in_31_rounds_at_most(value: int, register: str) -> None:
    program = number(register, value)
    assert value == executed(program)[register]
    assert 31 >= sum(opcode == 0xD1 for opcode, _ in program)
    assert LONGEST_NUMBER >= PAIR * len(program)


@pytest.fixture(scope="module")
def known(workshop: Workshop) -> tuple[Corpus, bytes, int]:
    """A corpus, its plaintext, and a place for blocks of it."""
    stand = Stand(workshop, Setup(), mode=Mode.SME, variant="", seed=1, parameters={})
    memory, plain = Memory(stand.host, None), SeededEntropy("known").draw(MIB // 16)
    start, target = memory.room(len(plain)), memory.room(BLOCK)
    memory.write(start, plain, c=True)
    stand.host.flush_caches()

    class Here(Memory):
        def spa(self, gpa: int, length: int = 1) -> int:  # type: ignore[override]
            return start

    return Corpus(Here(stand.host, None), 0, plain, xe=False), plain, target


@pytest.mark.parametrize("at", [0, BLOCK - 2])
def test_a_block_is_found_exactly_if_there_is_one(known: tuple[Corpus, bytes, int], at: int) -> None:
    corpus, plain, target = known
    ends = [int(value) for value in corpus.ends(target, at)]
    there, absent = set(ends), next(value for value in range(1 << 16) if value not in set(ends))
    for value in sorted(there)[:64]:
        assert ends.index(value) == corpus.find(value.to_bytes(2, "little"), target, at)
    assert corpus.find(absent.to_bytes(2, "little"), target, at) is None
    assert len(plain) // BLOCK == len(np.array(ends))


def test_too_little_known_plaintext_stops_it_and_says_where(workshop: Workshop) -> None:
    result = run(named("code-chain"), workshop, mode=Mode.SEV, parameters={"corpus_mib": 1})
    assert Verdict.STOPPED is result.verdict
    missed = "(?:begins|ends) with [0-9a-f]{4} at 0xffff[0-9a-f]{4}"
    assert re.fullmatch(f"no block of the known plaintext {missed}(?: or {missed})?", result.note)


def test_a_difference_of_tweaks_goes_both_ways() -> None:
    assert difference(0x1230, 0x45670) == difference(0x45670, 0x1230)
    assert bytes(BLOCK) == difference(0x1230, 0x1230) == xor(b"a" * BLOCK, b"a" * BLOCK)
