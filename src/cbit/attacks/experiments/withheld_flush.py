"""E12, A15: one virtual CPU uses the translations of another."""

from __future__ import annotations

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import SECRET
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Thwarted
from cbit.attacks.lab.two_cpus import PASSWORD, SERVICES_PAGE, TwoCpus, victim
from cbit.attacks.power import Power
from cbit.cpu.mitigations import Mitigations


def two_cpus(stand: Stand) -> Scene:
    """Start a service, and a program of somebody else's beside it, which cannot reach the service's memory.

    The built-in guest has one virtual CPU, and nobody else's program runs in it.
    """
    secret, password = stand.entropy.draw(32), stand.entropy.draw(16)
    guest = stand.guest(victim(password), secret=secret)
    planted = guest.peek(SECRET, 32) == secret and guest.peek(SERVICES_PAGE, 16) == password
    cpus = TwoCpus(guest)
    answers = []
    for sent in (password, b"anything else   "):
        cpus.send(sent)
        answers.append(cpus.service(flush=True))
    serves = answers == [secret, bytes(len(secret))] and not cpus.trespass()
    return Scene((secret,), Facts({}), guest, planted=planted, serves=serves)


_ATTEMPTS = 20
_OTHERWISE = does_not_apply("the hypervisor reads the memory of such a guest by itself")


@attack(
    title="TLB poisoning: the flush that did not come",
    experiment="E12",
    paper="Li et al., ACSAC 2021 (attacks.md A15); memory-encryption.md §7 rule 3",
    holds={Power.WITHHOLD_FLUSH, Power.PROCESS},
    expect={
        Mode.NONE: _OTHERWISE,
        Mode.SME: _OTHERWISE,
        Mode.SEV: succeeds("the hypervisor is responsible for the flush"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("TLB_ID and PCPU_ID in the VMSA: hardware flushes"),
    },
    defences={
        "flushed": stopped_by(
            "the core flushes the ASID if another virtual CPU of it ran last, as SNP does by PCPU_ID",
            shown="the service has looked its password up anew",
        )
    },
    victim=two_cpus,
    setups={"flushed": Setup(mitigations=Mitigations(flushes_for_another_vcpu=True))},
)
def withheld_flush(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Run a program that maps a page of its own where the service has its password; then run the service.

    Both are virtual CPUs of one guest, so they share an ASID, and with it the tag of their translations.  The
    service loads "its password" through the translation that the program has left in the TLB.
    """
    cpus = hands.two_cpus
    cpus.send(b"the intruder's  ")
    if any(refused := cpus.service(flush=True)):
        raise Thwarted("the service needs no password")
    log.step("the service refuses the intruder's password", refused)
    answers = []
    for _ in range(_ATTEMPTS):
        cpus.program(flush=True)  # the service's own translation goes
        answers.append(cpus.service(flush=False))
    log.step(f"the program stores that password at {PASSWORD:#x}, on a page of its own, and fills the TLB")
    loot = answers[-1]
    log.step("the service runs on the same core, without a flush", loot)
    if not any(map(any, answers)):
        log.obstacle = "the service has looked its password up anew, and refuses each time"
    log.figure(
        "attempts that succeed",
        sum(map(any, answers)),
        f"of {_ATTEMPTS}",
        published="20 of 20 (sshd)",
        source="attacks.md A15",
        difference="nothing is left to chance here",
    )
    return loot
