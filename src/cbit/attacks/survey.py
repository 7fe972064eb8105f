"""Every adversary against every protection: a table of what each *got*.

A cell is the outcome of an attempt that was made: the secret is in the bytes that were read, or it is not.

Paper: attacks.md §3 (experiments E1–E3, E8); DESIGN.md story, lines 2, 5, 6 and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from cbit.attacks.adversaries import Loot, Stage, against
from cbit.attacks.power import Power
from cbit.attacks.victim import Arrival, Courier, start
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host, Protection
from cbit.owner.errors import Untrusted
from cbit.spec.errors import BadMeasurement, CbitError
from cbit.spec.policy import Policy

SHORTEST_SECRET: Final = 16  #: fewer bytes could turn up in ciphertext by chance


class NoControl(CbitError):
    """The guest cannot read its own secret: a survey in which nobody finds it would prove nothing."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One attempt.

    Attributes:
        adversary: who tried.
        protection: against what.
        powers: what the attempt made use of.
        got_secret: whether a secret of the victim's is in the bytes obtained.
        bytes_read: how many bytes that were.
        note: how it went.
    """

    adversary: str
    protection: Protection
    powers: tuple[Power, ...]
    got_secret: bool
    bytes_read: int
    note: str


NewHost = Callable[[], Host]

CHANGED_IMAGE: Final = "hypervisor that changed one byte of the image"
CHANGED_POLICY: Final = "hypervisor that changed the policy"


def adversaries(*, executes: bool = False) -> list[str]:
    """Names of the rows, in the table's order.

    Args:
        executes: whether the victims execute.
    """
    return [*(adversary.name for adversary in against(executes=executes)), CHANGED_IMAGE, CHANGED_POLICY]


def survey(new_host: NewHost, arrival: Arrival) -> Iterator[Cell]:
    """Make every attempt, one protection after the other.

    Args:
        new_host: makes a freshly booted, initialised machine.
        arrival: the guest that is attacked.

    Raises:
        NoControl: the guest cannot read its own secret.
        ValueError: a secret so short that it could be found by chance.
    """
    if len(arrival.secret) < SHORTEST_SECRET:
        raise ValueError(f"a secret of {len(arrival.secret)} bytes: {SHORTEST_SECRET} at least")
    for protection in Protection:
        yield from _against_memory(new_host(), protection, arrival)
        altered = replace(arrival, change_image=flip_one_bit)
        yield _against_launch(CHANGED_IMAGE, new_host(), protection, altered)
        altered = replace(arrival, change_policy=int(Policy.NODBG))
        yield _against_launch(CHANGED_POLICY, new_host(), protection, altered)


def _against_memory(host: Host, protection: Protection, arrival: Arrival) -> Iterator[Cell]:
    victim = start(host, protection, arrival, Courier())
    if victim.use_secret() != victim.proof:
        raise NoControl(f"{protection}: the guest does not read the secret that it was given")
    stage = Stage(host, protection, victim)
    for adversary in against(executes=arrival.executes):
        loot = adversary.attempt(stage)
        yield _judge(adversary.name, protection, adversary.powers, loot, victim.secrets)


def _against_launch(name: str, host: Host, protection: Protection, altered: Arrival) -> Cell:
    """Launch something else than the owner asked for, and see what passes through the hypervisor's hands."""
    courier = Courier()
    note = "nobody noticed"
    try:
        start(host, protection, altered, courier)
    except (BadMeasurement, Untrusted, FirmwareError) as refusal:
        note = str(refusal)
    host.machine.power_off()
    loot = Loot(courier.everything(), note)
    return _judge(name, protection, (Power.CARRY_LAUNCH,), loot, (altered.secret,))


def _judge(
    adversary: str, protection: Protection, powers: tuple[Power, ...], loot: Loot, secrets: tuple[bytes, ...]
) -> Cell:
    got = any(secret in loot.data for secret in secrets)
    return Cell(adversary, protection, powers, got, len(loot.data), loot.note)


def flip_one_bit(image: bytes) -> bytes:
    """Change one bit in the middle of an image."""
    middle = len(image) // 2
    return image[:middle] + bytes([image[middle] ^ 1]) + image[middle + 1 :]
