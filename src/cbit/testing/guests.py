"""A SEV guest brought to a given state by a well-behaved host, for an owner whose keys the test holds.

    alice = a_guest(host, state=GuestState.LSECRET, policy=Policy.NODBG)
    header, payload = alice.seal(b"secret".ljust(16))

Nobody verifies the platform here; a real owner does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.crypto import ec, packet
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.session import TransportKeys
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.owner.session import Session
from cbit.spec.address import PAGE, Gpa
from cbit.spec.certificate import CERT_SIZE, SevCert
from cbit.spec.errors import NotModelled
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import CONTEXT_SECRET
from cbit.spec.states import GuestState

IMAGE: Final = b"a guest image".ljust(PAGE, b"\xf4")  # hlt
IMAGE_AT: Final = Gpa(0)

_ORDER: Final = (GuestState.LUPDATE, GuestState.LSECRET, GuestState.RUNNING)


@dataclass(frozen=True, slots=True)
class OwnedGuest:
    """A guest and what its owner knows.

    Attributes:
        guest: the hypervisor's side.
        keys: the owner's TEK and TIK.
        image: what was measured.
        receipt: the launch receipt; None before LAUNCH_MEASURE.
    """

    guest: SevGuest
    keys: TransportKeys
    image: bytes
    receipt: LaunchReceipt | None

    def seal(self, plaintext: bytes, *, iv: bytes = bytes(15) + b"\x01") -> tuple[bytes, bytes]:
        """Seal a packet for LAUNCH_SECRET: (header, payload)."""
        if self.receipt is None:
            raise ValueError("a packet is bound to the measurement: measure first")
        header, payload = packet.seal(
            self.keys, plaintext, context=CONTEXT_SECRET, iv=iv, measure=self.receipt.measure
        )
        return bytes(header), payload


def a_session(pdh: bytes, *, policy: int, seed: int = 1) -> tuple[Session, TransportKeys]:
    """Open a session with a platform that nobody verified: (what the host carries, the owner's keys)."""
    entropy = SeededEntropy(f"owner {seed}")
    keys = TransportKeys.random(entropy)
    session = Session.make(
        SevCert.parse(pdh),
        own=ec.random_key(entropy),
        keys=keys,
        policy=policy,
        nonce=entropy.draw(16),
        wrap_iv=entropy.draw(16),
    )
    return session, keys


def a_guest(
    host: Host,
    *,
    state: GuestState = GuestState.LSECRET,
    policy: int = 0,
    image: bytes = IMAGE,
    seed: int = 1,
    share_with: SevGuest | None = None,
) -> OwnedGuest:
    """Launch a guest as far as ``state``; its image lies at guest-physical 0.

    Raises:
        NotModelled: the state is not one of a launch.
    """
    if state not in _ORDER:
        raise NotModelled(f"a guest is not brought to {state.name} by launching it")
    session, keys = a_session(host.export_chain()[:CERT_SIZE], policy=policy, seed=seed)
    vm = Vm(host, Protection.SEV)
    vm.add_memory(IMAGE_AT, -(-len(image) // PAGE) * PAGE)
    vm.load(IMAGE_AT, image)
    guest = SevGuest.start(
        vm, policy=policy, godh=bytes(session.godh), session=bytes(session.blob), share_with=share_with
    )
    guest.update(IMAGE_AT, len(image))
    receipt = guest.measure() if state is not GuestState.LUPDATE else None
    if state is GuestState.RUNNING:
        guest.finish()
    return OwnedGuest(guest, keys, image, receipt)
