"""E6, A5, A10 step 3: chosen bytes in the victim's memory, by moving ciphertext."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from cbit.attacks.experiments.known_constants import CORPUS, EXPECT, PARAMETERS, SETUP, SETUPS, fresh, kernel
from cbit.attacks.experiments.service import ANSWERS
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.corpus import Corpus
from cbit.attacks.lab.guest import SECRET, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log, curve
from cbit.attacks.lab.outcome import stopped_by
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Client, Thwarted
from cbit.attacks.power import Power
from cbit.crypto.memory_modes import Mode as Engine
from cbit.spec.address import MIB

RECORD = 0x30000  #: a session's record; its first two bytes are the user's number
KERNEL = 0x200000  #: a large image whose contents everybody knows
USER = 1000
PATIENCE: Final = 8  #: requests that are looked at

#: Hands its secret to user 0 only.  It looks at a few requests and refuses all others: two zeros come of
#: putting random blocks in their place, too.
SERVICE = f"""
    mov qword ptr [{RECORD:#x}], @user@
    mov r15d, {PATIENCE}
again:
    hlt
    test r15d, r15d
    jz refuse
    dec r15d
    cmp word ptr [{RECORD:#x}], 0
    jne refuse
{ANSWERS}"""


def service(stand: Stand) -> Scene:
    """Start a small program with a large public image, and a record that decides who gets its secret.

    The built-in guest decides by a tag of 128 bits: two chosen bytes do not make one.
    """
    secret = stand.entropy.draw(32)
    known = kernel(stand)
    source = SERVICE.replace("@user@", str(USER))
    program = Program(source, data=((KERNEL, known),), size=KERNEL + len(known))
    guest = stand.guest(program, secret=secret)
    guest.until_idle()
    facts = Facts({"record_at": RECORD, "kernel_at": KERNEL, "kernel": known})
    planted = guest.peek(SECRET, 32) == secret
    return Scene((secret,), facts, guest, planted=planted, serves=_serves_user_0(stand))


def _serves_user_0(stand: Stand) -> bool:
    """Let the same service, started for user 0, answer."""
    secret = stand.entropy.draw(32)
    guest = stand.guest(Program(SERVICE.replace("@user@", "0")), secret=secret)
    guest.until_idle()
    answer = Client(guest).ask(b"", 32)
    guest.end()
    return answer == secret


HOLDS = {Power.MAP_MEMORY, Power.FLUSH_CACHES, Power.CLIENT}
_SOURCE = "SEVurity §IV-C (attacks.md A10)"


def move(hands: Hands, facts: Facts, log: Log, *, xe: bool) -> bytes:
    """Both modes of the engine: the ciphertext is corrected under XEX, and not under XE."""
    corpus = Corpus(hands.memory, facts.number("kernel_at"), facts.data("kernel"), xe=xe)
    target = hands.memory.spa(facts.number("record_at"))
    refused = hands.client.ask(b"", 32)
    log.step("the service refuses user 1000", refused)
    _coverage(corpus, target, log)
    found = corpus.find(b"\0\0", target)
    if found is None:
        raise Thwarted("no block of the known plaintext gives the wanted bytes")
    log.step(f"a block of the kernel at {corpus.gpa(found):#x} becomes 0000… at the record's address")
    hands.caches.write_back()
    hands.memory.write(target, corpus.ciphertext_for(found, target))
    hands.caches.write_back()
    loot = hands.client.ask(b"", 32)
    log.step("one block moved; the service answers", loot)
    if not any(loot):
        log.obstacle = "the block has become something else: the service refuses as before"
    return loot


def _coverage(corpus: Corpus, target: int, log: Log) -> None:
    """How many of the 65536 values of two bytes can be had at one address, by size of the known plaintext."""
    firsts = corpus.ends(target)
    points, mib = [], len(firsts) * 16 / MIB
    for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1):
        some = firsts[: int(len(firsts) * share)]
        points.append((mib * share, 100 * len(np.unique(some)) / 65536))
    log.step(
        f"known plaintext: {mib:g} MiB",
        picture=curve("MiB of known plaintext", "% of two-byte values", points),
    )
    log.figure(
        f"two-byte values at one address from {mib:g} MiB",
        round(points[-1][1], 3),
        "%",
        published="about 8 MB suffice for any 2 bytes",
        source=_SOURCE,
        difference="random blocks: 1 - exp(-blocks / 65536); another address gives what one address lacks",
    )


@attack(
    title="Moving a block under XE",
    experiment="E6",
    paper="Du et al. 2017 (A5); memory-encryption.md §9.2",
    holds=HOLDS,
    expect=EXPECT,
    defences={
        "xex": stopped_by(
            "XEX adds the tweak before the cipher as well: a block that is merely moved is noise"
            " (block-move-xex corrects it before it is put in place)",
            shown="the service refuses as before",
        )
    },
    victim=service,
    setup=replace(SETUP, engine=Engine.XE),
    setups={"xex": SETUP},
    parameters=CORPUS,
)
def block_move_xe(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Copy a ciphertext block of known plaintext over a record of the victim's; two bytes of it are chosen.

    Under XE the copy decrypts to m ^ T(p) ^ T(q).  The tweak constants are known and so is the plaintext of a
    kernel, so the adversary looks for a block that begins with the wanted bytes when it arrives.
    """
    return move(hands, facts, log, xe=True)


@attack(
    title="Moving a block under XEX",
    experiment="E6",
    paper="SEVurity, S&P 2020 (A10 step 3); memory-encryption.md §9.2",
    holds=HOLDS,
    expect=EXPECT,
    defences=fresh("the service refuses as before"),
    victim=service,
    setup=SETUP,
    setups=SETUPS,
    parameters=PARAMETERS,
)
def block_move_xex(hands: Hands, facts: Facts, log: Log) -> bytes:
    """As under XE, with the ciphertext corrected by T(p) ^ T(q) before it is put in place.

    Dec(Enc(m, p) ^ T(p) ^ T(q), q) = m ^ T(p) ^ T(q).
    """
    return move(hands, facts, log, xe=False)
