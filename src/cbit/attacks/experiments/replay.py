"""E4, A4c: old ciphertext at its old address is valid for ever."""

from __future__ import annotations

from cbit.attacks.experiments.service import ACCOUNT, ANSWERS, FIRST_PASSWORD, IS_PASSWORD
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Client
from cbit.attacks.power import Power
from cbit.spec.address import PAGE

#: Each request of 16 bytes is a password.  The right one is answered with the secret.  With the word "change"
#: behind it, the next 16 bytes become the password that is valid from now on.
LOGIN = f"""
    lea rsi, first[rip]
    mov rdi, {ACCOUNT:#x}
    movups xmm0, [rsi]
    movups [rdi], xmm0
again:
    hlt{IS_PASSWORD}    jne refuse
    movabs rbx, 0x65676e616863     # "change"
    cmp [{VIEW + SHARED + 24:#x}], rbx
    jne serve
    movups xmm2, [{VIEW + SHARED + 32:#x}]
    movups [{ACCOUNT:#x}], xmm2
{ANSWERS}first:
    .ascii "{FIRST_PASSWORD.decode()}"
"""
OLD, NEW = FIRST_PASSWORD, b"password of 2026"


def login(stand: Stand) -> Scene:
    """Start a small program that answers a password with its secret; the built-in guest lets nobody in."""
    secret = stand.entropy.draw(32)
    guest = stand.guest(Program(LOGIN), secret=secret)
    guest.until_idle()
    planted = guest.peek(SECRET, 32) == secret and guest.peek(ACCOUNT, 16) == OLD
    client = Client(guest)
    serves = client.ask(OLD + bytes(24), 32) == secret and not any(client.ask(NEW + bytes(24), 32))
    facts = Facts({"account_at": ACCOUNT, "old": OLD, "new": NEW})
    return Scene((secret,), facts, guest, planted=planted, serves=serves)


@attack(
    title="Replay of old ciphertext",
    experiment="E4",
    paper="Hetzelt & Buhren, VEE 2017 (attacks.md A4c); memory-encryption.md §9.3",
    holds={Power.MAP_MEMORY, Power.FLUSH_CACHES, Power.CLIENT},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: SUCCEEDS,
        Mode.SEV: succeeds("no integrity, no freshness"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("the RMP refuses the host's write; not the one through an alias of DRAM"),
    },
    victim=login,
)
def replay(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Save the ciphertext of a page, let the victim change it, put the old ciphertext back.

    The adversary once knew a password.  The victim's owner has changed it since.  The page that holds it is
    saved before the change and restored after it: it decrypts to the old password, for the key and the
    address are the same, and the service opens to somebody who should be locked out.
    """
    spa = hands.memory.spa(facts.number("account_at"), PAGE)
    hands.caches.write_back()
    before = hands.memory.read(spa, PAGE)
    log.step("ciphertext of the account's page, saved", before)
    change = facts.data("old") + b"change\0\0" + facts.data("new")
    hands.client.ask(change, 32)  # the owner changes the password
    hands.caches.write_back()
    log.step("after the owner's change", hands.memory.read(spa, PAGE))
    refused = hands.client.ask(facts.data("old") + bytes(24), 32)
    log.step("the old password is refused", refused)
    hands.caches.write_back()
    hands.memory.write(spa, before)
    hands.caches.write_back()
    log.step("the old ciphertext is put back")
    loot = hands.client.ask(facts.data("old") + bytes(24), 32)
    log.step("the old password again: the service answers", loot)
    return loot
