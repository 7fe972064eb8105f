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

NOTICED = b"too old!"  #: what it answers when its account is not the latest one
#: Each request of 16 bytes is a password.  The right one is answered with the secret.  With the word "change"
#: behind it, the next 16 bytes become the password that is valid from now on.
LOGIN = f"""
    lea rsi, first[rip]
    mov rdi, {ACCOUNT:#x}
    movups xmm0, [rsi]
    movups [rdi], xmm0
    xor r15d, r15d                # how many changes there have been
    mov [{ACCOUNT + 16:#x}], r15
again:
    hlt
    @fresh@{IS_PASSWORD}    jne refuse
    movabs rbx, 0x65676e616863     # "change"
    cmp [{VIEW + SHARED + 24:#x}], rbx
    jne serve
    movups xmm2, [{VIEW + SHARED + 32:#x}]
    movups [{ACCOUNT:#x}], xmm2
    inc r15
    mov [{ACCOUNT + 16:#x}], r15
{ANSWERS}stale:
    movabs rbx, {int.from_bytes(NOTICED, "little"):#x}
    mov [{VIEW + SHARED + PAGE:#x}], rbx
    jmp again
first:
    .ascii "{FIRST_PASSWORD.decode()}"
"""
#: The number of changes lies beside the password, and in a register as well.
COUNTER = f"""
    cmp [{ACCOUNT + 16:#x}], r15
    jne stale
"""
OLD, NEW = FIRST_PASSWORD, b"password of 2026"


def login(stand: Stand) -> Scene:
    """Start a small program that answers a password with its secret; the built-in guest lets nobody in."""
    secret = stand.entropy.draw(32)
    source = LOGIN.replace("@fresh@", COUNTER if stand.variant == "counter" else "")
    guest = stand.guest(Program(source), secret=secret)
    guest.until_idle()
    planted = guest.peek(SECRET, 32) == secret and guest.peek(ACCOUNT, 16) == OLD
    client = Client(guest)
    serves = True
    for valid, other in ((OLD, NEW), (NEW, OLD)):  # and the password is changed there and back
        serves &= client.ask(valid + bytes(24), 32) == secret
        serves &= not any(client.ask(other + bytes(24), 32))
        serves &= client.ask(valid + b"change\0\0" + other, 32) == secret
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
    defences={
        "counter": stopped_by(
            "freshness: the guest counts changes in memory and in a register, and who writes memory puts back"
            " one of them alone (who has plain SEV's registers too puts back both)",
            shown="the victim noticed that its account is an old one",
        )
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
    if loot.startswith(NOTICED):
        log.obstacle = "the victim noticed that its account is an old one"
    return loot
