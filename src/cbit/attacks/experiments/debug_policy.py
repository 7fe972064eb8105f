"""A launch with a policy that lets the host debug."""

from __future__ import annotations

from cbit.attacks.experiments.correspondent import correspondent
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.power import Power
from cbit.spec.policy import Policy


def debuggable(stand: Stand) -> Scene:
    """Start the built-in guest for an owner who asked for no NODBG, or for it."""
    return correspondent(stand, policy=Policy.NODBG if stand.variant == "nodbg" else Policy(0))


_NO_FIRMWARE = does_not_apply("no guest key, no firmware context: the host reads memory by itself")


@attack(
    title="Debugging a guest whose policy permits it",
    paper="sev-api.md §10 (DBG_DECRYPT); sev-crypto.md §1 (policy)",
    holds={Power.COMMAND},
    expect={
        Mode.NONE: _NO_FIRMWARE,
        Mode.SME: _NO_FIRMWARE,
        Mode.SEV: succeeds("policy bit NODBG is clear"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: succeeds("policy bit 19 (debug) is set"),
    },
    defences={
        "nodbg": stopped_by(
            "policy bit NODBG: the secure processor answers POLICY_FAILURE",
            shown="DBG_DECRYPT: POLICY_FAILURE",
        )
    },
    victim=debuggable,
)
def debug_policy(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Ask the secure processor itself to decrypt the victim's memory: DBG_DECRYPT.

    Nothing is broken: an owner who launches without NODBG has agreed to it.  The policy is part of what the
    launch measurement covers, so a host cannot clear the bit for an owner who set it.
    """
    loot = hands.commands.debug_decrypt(facts.number("secrets_at"), facts.number("secrets_size"))
    log.step("DBG_DECRYPT of the secret's page", loot)
    return loot
