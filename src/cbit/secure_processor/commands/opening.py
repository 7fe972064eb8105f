"""How a guest context begins, at LAUNCH_START with its owner and at RECEIVE_START with another platform.

Paper: sev-api.md §7 LAUNCH_START, §9 RECEIVE_START; sev-crypto.md §7.4 (session).
"""

from __future__ import annotations

from dataclasses import dataclass

from cbit.crypto import ec, session, sev_cert
from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.guest import Guest
from cbit.secure_processor.refusal import Refused
from cbit.spec.certificate import CERT_SIZE, Algo, SevCert, Usage
from cbit.spec.errors import BadMeasurement, InvalidCertificate
from cbit.spec.policy import RESERVED_BITS, Policy, required_api
from cbit.spec.session import Session
from cbit.spec.status import Status


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a peer's Diffie-Hellman certificate and session lie in host memory."""

    cert_paddr: int
    cert_len: int
    session_paddr: int
    session_len: int


def open_session(firmware: Firmware, offer: Offer, *, policy: int) -> TransportKeys:
    """Unwrap the transport keys that a peer made for this platform and this policy.

    Raises:
        Refused: INVALID_LENGTH, INVALID_ADDRESS, INVALID_CERTIFICATE or BAD_MEASUREMENT.
    """
    if offer.session_len != Session.SIZE:
        raise Refused(
            Status.INVALID_LENGTH, f"session of {offer.session_len:#x} bytes, must be {Session.SIZE:#x}"
        )
    raw = firmware.memory.read_host(offer.session_paddr, Session.SIZE, "session")
    if offer.cert_len != CERT_SIZE:
        raise Refused(
            Status.INVALID_LENGTH, f"DH certificate of {offer.cert_len:#x} bytes, must be {CERT_SIZE:#x}"
        )
    peer = SevCert.parse(
        firmware.memory.read_host(offer.cert_paddr, CERT_SIZE, "DH certificate"), canonical=False
    )
    z = shared_secret(firmware, peer)
    try:
        return session.unwrap(Session.parse(raw, canonical=False), z=z, policy=policy)
    except BadMeasurement as error:
        raise Refused(Status.BAD_MEASUREMENT, str(error)) from None


def shared_secret(firmware: Firmware, peer: SevCert) -> bytes:
    """Agree with a peer's PDH; its certificate must be sane, nobody need have signed it (§2.5).

    Raises:
        Refused: INVALID_CERTIFICATE.
    """
    try:
        key = sev_cert.check_sanity(peer, usage=Usage.PDH, algo=Algo.ECDH_SHA256)
        assert key is not None  # the algorithm is one of P-384
        return ec.shared_secret(firmware.platform.identity.pdh_key, key)
    except InvalidCertificate as error:
        raise Refused(Status.INVALID_CERTIFICATE, f"DH {error}") from None


def check_policy(firmware: Firmware, policy: int) -> None:
    """Raise POLICY_FAILURE for a policy that wants newer firmware or sets reserved bits."""
    if (wanted := required_api(policy)) > firmware.api:
        raise Refused(
            Status.POLICY_FAILURE, f"the policy wants API {wanted} or later, this firmware is {firmware.api}"
        )
    if policy & RESERVED_BITS:
        raise Refused(
            Status.POLICY_FAILURE, f"policy {policy:#x} sets reserved bits {policy & RESERVED_BITS:#x}"
        )


def new_guest(firmware: Firmware, *, share: int, policy: int, transport: TransportKeys) -> Guest:
    """Make a context with a memory key of its own, or with that of the guest ``share``.

    Raises:
        Refused: INVALID_GUEST, POLICY_FAILURE, RESOURCE_LIMIT or UNSUPPORTED.
    """
    vek = _shared_key(firmware, share, policy) if share else _new_key(firmware)
    handle = firmware.free_handle()
    if policy & Policy.ES and not firmware.platform.es:
        raise Refused(Status.UNSUPPORTED, "the policy asks for ES, INIT did not enable it")
    guest = Guest(handle, policy, vek, transport)
    firmware.platform.guests[handle] = guest
    return guest


def _new_key(firmware: Firmware) -> Key:
    return Key(firmware.entropy.draw(firmware.limits.memory_key_bytes))


def _shared_key(firmware: Firmware, handle: int, policy: int) -> Key:
    other = firmware.guest(handle)
    if other.policy != policy:
        raise Refused(
            Status.POLICY_FAILURE,
            f"policy {policy:#x} differs from guest {other.handle}'s {other.policy:#x}",
        )
    if other.has(Policy.NOKS):
        raise Refused(Status.POLICY_FAILURE, f"guest {other.handle}'s policy forbids key sharing (NOKS)")
    return other.vek
