"""E4, A4c: old ciphertext at its old address is valid for ever."""

from __future__ import annotations

from cbit.attacks.experiments.service import ACCOUNT, ANSWERS
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
OLD, NEW = b"pass2019".ljust(16, b"\0"), b"pass2026".ljust(16, b"\0")
#: Each request begins with a password of 8 bytes, in 16.  The right one is answered with the secret.  With
#: "change" behind it, the next 8 bytes become the password that is valid from now on.
LOGIN = f"""
    lea rsi, first[rip]
    movups xmm0, [rsi]
    movups [{ACCOUNT:#x}], xmm0
    xor r15d, r15d                # how many changes there have been
again:
    hlt
    movq xmm0, [{VIEW + SHARED + 8:#x}]
    movups xmm1, [{ACCOUNT:#x}]   # the account is one block, and loaded once
    @fresh@
    pcmpeqb xmm0, xmm1
    pmovmskb eax, xmm0
    cmp eax, 0xFFFF
    jne refuse
    movabs rbx, 0x65676e616863     # "change"
    cmp [{VIEW + SHARED + 24:#x}], rbx
    jne serve
    movq xmm2, [{VIEW + SHARED + 32:#x}]
    inc r15
    @count@
    movups [{ACCOUNT:#x}], xmm2
{ANSWERS}stale:
    movabs rbx, {int.from_bytes(NOTICED, "little"):#x}
    mov [{VIEW + SHARED + PAGE:#x}], rbx
    jmp again
first:
    .ascii "{OLD.rstrip(bytes(1)).decode()}"
    .quad 0
"""
#: The number of changes lies in the password's own block, so nobody puts back one without the other, and in a
#: register as well.
CHECK_COUNT = """
    pextrq rax, xmm1, 1
    cmp rax, r15
    jne stale
    pinsrq xmm0, r15, 1
"""
COUNT = "pinsrq xmm2, r15, 1"


def login(stand: Stand) -> Scene:
    """Start a small program that answers a password with its secret; the built-in guest lets nobody in."""
    secret = stand.entropy.draw(32)
    check, count = (CHECK_COUNT, COUNT) if stand.variant == "counter" else ("", "")
    source = LOGIN.replace("@fresh@", check).replace("@count@", count)
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
            "freshness: the guest counts changes in the password's own block and in a register, and who"
            " writes memory puts back the block alone (who has plain SEV's registers too puts back both)",
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
