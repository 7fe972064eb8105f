"""Every adversary against every protection: a table of what each *got*.

A cell is the outcome of an attempt that was made: the secret is in the bytes the adversary read, or it is not.

Paper: attacks.md §3 (experiments E1–E3, E8); DESIGN.md story, lines 2, 5, 6 and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cbit.attacks.adversaries import AGAINST_MEMORY, Loot, Stage
from cbit.attacks.victim import Arrival, Courier, start
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host, Protection
from cbit.owner.errors import Untrusted
from cbit.spec.errors import BadMeasurement
from cbit.spec.policy import Policy


@dataclass(frozen=True, slots=True)
class Cell:
    """One attempt.

    Attributes:
        adversary: who tried.
        protection: against what.
        got_secret: whether the victim's secret is in the bytes obtained.
        bytes_read: how many bytes that were.
        note: how it went.
    """

    adversary: str
    protection: Protection
    got_secret: bool
    bytes_read: int
    note: str


NewHost = Callable[[], Host]
NewArrival = Callable[..., Arrival]

CHANGED_IMAGE: Final = "hypervisor that changed one byte of the image"
CHANGED_POLICY: Final = "hypervisor that changed the policy"


def adversaries() -> list[str]:
    """Names of the rows, in the table's order."""
    return [*AGAINST_MEMORY, CHANGED_IMAGE, CHANGED_POLICY]


def survey(new_host: NewHost, arrival: Arrival) -> Iterator[Cell]:
    """Make every attempt, one protection after the other.

    Args:
        new_host: makes a freshly booted, initialised machine.
        arrival: the guest that is attacked.
    """
    for protection in Protection:
        host = new_host()
        victim = start(host, protection, arrival, Courier())
        stage = Stage(host, protection, victim)
        if victim.use_secret() != arrival.secret:
            raise AssertionError("the guest cannot read its own secret: the survey would prove nothing")
        for name, attempt in AGAINST_MEMORY.items():
            yield _judge(name, stage.protection, attempt(stage), arrival.secret)
        yield _judge(CHANGED_IMAGE, protection, _launch_altered(new_host(), protection, arrival, image=True), arrival.secret)
        yield _judge(
            CHANGED_POLICY, protection, _launch_altered(new_host(), protection, arrival, image=False), arrival.secret
        )


def _judge(adversary: str, protection: Protection, loot: Loot, secret: bytes) -> Cell:
    return Cell(adversary, protection, secret in loot.data, len(loot.data), loot.note)


def _launch_altered(host: Host, protection: Protection, arrival: Arrival, *, image: bool) -> Loot:
    """Launch something else than the owner asked for, and see what passes through the hypervisor's hands."""
    altered = Arrival(
        arrival.tenant,
        arrival.secret,
        arrival.secret_gpa,
        arrival.entropy,
        change_image=flip_one_bit if image else bytes,
        change_policy=0 if image else int(Policy.NODBG),
    )
    courier = Courier()
    try:
        start(host, protection, altered, courier)
    except (BadMeasurement, Untrusted, FirmwareError) as refusal:
        return Loot(courier.everything(), str(refusal))
    return Loot(courier.everything(), "nobody noticed")


def flip_one_bit(image: bytes) -> bytes:
    """Change one bit in the middle of an image."""
    middle = len(image) // 2
    return image[:middle] + bytes([image[middle] ^ 1]) + image[middle + 1 :]
