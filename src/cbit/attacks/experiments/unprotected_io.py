"""A8: what a guest hands to its devices goes through the clear, and so does what it gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cbit.attacks.experiments.correspondent import places, with_letters
from cbit.attacks.experiments.known_constants import CONSTANTS, EXPECT, SETUP, SETUPS, fresh
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import difference, xor
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted
from cbit.attacks.power import Power
from cbit.guest.builtin.interface import BOUNCE, LONGEST, MESSAGE, RESULT, SEALED, TRANSFER, Request
from cbit.spec.address import BLOCK

FORGED: Final = b"primes below 100: 9999".ljust(TRANSFER, b"\0")
_PRIMES: Final = 25  # below 100
_TOO_LONG: Final = (LONGEST + 1).to_bytes(4, "little").ljust(BLOCK, b"\0")


def trader(stand: Stand) -> Scene:
    """Start the built-in guest, with its secrets and with a result that it hands to its device when asked."""
    scene, guest = with_letters(stand)
    computed = guest.small.ask(Request.COMPUTE, 100)
    return replace(scene, serves=scene.serves and computed.answers == [_PRIMES])


@attack(
    title="Unprotected I/O: packets as oracles",
    experiment="E6",
    paper="Li et al., USENIX Security 2019 (attacks.md A8)",
    holds={Power.MAP_MEMORY, Power.FLUSH_CACHES, Power.CLIENT},
    expect=EXPECT,
    defences=fresh("gives its device noise"),
    victim=trader,
    setup=SETUP,
    setups=SETUPS,
    parameters=CONSTANTS,
)
def unprotected_io(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Let a guest encrypt what is sent to it, and decrypt what is put in the way of its device.

    1. A letter is chosen plaintext.  The victim copies it to private memory before it looks at it: there is
       its ciphertext, valid anywhere once plaintext and ciphertext are corrected by the difference of the
       tweaks.  So the adversary writes what it likes into the victim's memory.
    2. The victim copies its result from private memory to a shared buffer for its device.  The ciphertext of
       the result is replaced by that of a secret, corrected as well: the victim decrypts and sends it.
    """
    spa, memory, caches, service = hands.memory.spa, hands.memory, hands.caches, hands.service

    def sent() -> bytes:
        service.ask(Request.GIVE_TO_DEVICE, 0)
        return service.shared(BOUNCE, TRANSFER)

    log.step("what the victim gives to its device", sent())
    result = spa(RESULT, TRANSFER)
    letter = spa(MESSAGE + BLOCK, TRANSFER)
    moved = b"".join(difference(letter + at, result + at) for at in range(0, TRANSFER, BLOCK))
    service.send(SEALED, _TOO_LONG + xor(FORGED, moved))
    service.ask(Request.OPEN)
    caches.write_back()
    cells = xor(memory.read(letter, TRANSFER), moved)
    memory.write(result, cells)
    caches.write_back()
    log.step("encryption oracle: a letter of the adversary's, as ciphertext for the result's place", cells)
    forged = sent()
    log.step(
        f"the victim gives its device {'a result that it never had' if forged == FORGED else 'noise'}", forged
    )
    if forged != FORGED:
        raise Thwarted("the victim gives its device noise: its blocks are encrypted with other tweaks")
    loot, packets = b"", 0
    for gpa in places(facts, TRANSFER):
        secret = spa(gpa, TRANSFER)
        moved = b"".join(difference(secret + at, result + at) for at in range(0, TRANSFER, BLOCK))
        caches.write_back()
        memory.write(result, xor(memory.read(secret, TRANSFER), moved))
        caches.write_back()
        packet = sent()
        loot, packets = loot + xor(packet, moved), packets + 1
        log.step("decryption oracle: what the victim sends, corrected", loot[-TRANSFER:])
    log.figure(
        "bytes decrypted with each packet",
        len(loot) // packets,
        "bytes",
        published="derived: 20 (about 200 B/s at 10 packets/s)",
        source="Li et al. (attacks.md A8)",
        difference="the size of this guest's packets; an SSH packet leaves fewer blocks to replace",
    )
    return loot
