"""E11, A18: INVD throws away a store that the victim relied on."""

from __future__ import annotations

from cbit.attacks.experiments.service import ACCOUNT, ANSWERS, FIRST_PASSWORD, IS_PASSWORD
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import CPUID, HLT, SECRET, Guest, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Client, Runner
from cbit.attacks.power import Power
from cbit.cpu.mitigations import Mitigations

RESULT = 0x21000  #: where the check's result is kept: 0 good, 1 denied

#: Clears its result; a check stores 1 there for a wrong password; a CPUID, as a serialising instruction or an
#: interrupt would, leaves the guest; then the result is loaded and obeyed.
GATE = f"""
    lea rsi, first[rip]
    movups xmm0, [rsi]
    movups [{ACCOUNT:#x}], xmm0
again:
    mov qword ptr [{RESULT:#x}], 0
    hlt{IS_PASSWORD}    je checked
    mov qword ptr [{RESULT:#x}], 1
checked:
    cpuid
    cmp qword ptr [{RESULT:#x}], 0
    jne refuse
{ANSWERS}first:
    .ascii "{FIRST_PASSWORD.decode()}"
"""


def gate(stand: Stand) -> Scene:
    """Start a small program that denies a wrong password by a store.

    The built-in guest keeps none of its decisions in memory across an exit.
    """
    secret = stand.entropy.draw(32)
    guest = stand.guest(Program(GATE), secret=secret)
    guest.until_idle()
    planted = guest.peek(SECRET, 32) == secret and guest.peek(ACCOUNT, 16) == FIRST_PASSWORD
    serves = _asked(guest, FIRST_PASSWORD) == secret and not any(_asked(guest, b"anything else   "))
    return Scene((secret,), Facts({}), guest, planted=planted, serves=serves)


def _asked(guest: Guest, password: bytes) -> bytes:
    """Let an honest hypervisor, that steps over CPUID, carry a password and the answer."""
    client, runner = Client(guest), Runner(guest.cpu)
    client.put(password)
    runner.until(CPUID)
    runner.skip(2)
    runner.until(HLT)
    runner.skip(1)
    return client.answer(32)


@attack(
    title="CacheWarp: a store that never happened",
    experiment="E11",
    paper="Zhang et al., USENIX Security 2024 (attacks.md A18)",
    holds={Power.DROP_CACHES, Power.FLUSH_CACHES, Power.TAKE_EXITS, Power.CLIENT},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: SUCCEEDS,
        Mode.SEV: succeeds("INVD loses dirty lines, whoever's they are"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: succeeds("until the microcode update of the third generation"),
    },
    defences={
        "converted": stopped_by(
            "HWCR bit 4 stays set: INVD writes back like WBINVD", shown="INVD has lost nothing"
        )
    },
    victim=gate,
    setups={"converted": Setup(mitigations=Mitigations(invd_stays_converted=True))},
)
def dropped_store(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Send a wrong password; when the victim has stored "denied" and leaves for an exit, execute INVD.

    Everything that was worth keeping is written back before.  The victim's store lies in the cache only; INVD
    throws it away, memory still says "not denied", and that is what the victim loads.
    """
    bit = "is cleared" if hands.dropper.allow() else "stays set, though it was written"
    log.step(f"HWCR bit 4 {bit}, and WBINVD writes {hands.caches.write_back()} pages back")
    hands.client.put(b"I do not know it")
    hands.victim.until(CPUID)
    dropper = hands.dropper
    dropped = dropper.invd()
    log.step(f"the victim has stored its result and leaves for CPUID: INVD, {dropped} pages leave the caches")
    hands.victim.skip(2)
    hands.victim.until(HLT)
    loot = hands.client.answer(32)
    log.step("the victim's answer to a wrong password", loot)
    if not dropper.lost and not any(loot):
        log.obstacle = "INVD has lost nothing: the victim denies"
    log.figure("lines of the victim's that INVD lost", dropper.lost)
    return loot
