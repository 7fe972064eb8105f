"""The launch family: from an owner's session to a measured, encrypted image.

Paper: sev-api.md §7; sev-crypto.md §7.4 (session), §8 (digest), §9 (measurement), §10 (secret).
"""

from __future__ import annotations

from typing import Final

from cbit.crypto import ec, packet, session, sev_cert
from cbit.crypto.key import Key
from cbit.crypto.measurement import measurement
from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.guest import Guest
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import BLOCK, KIB
from cbit.spec.certificate import CERT_SIZE, Algo, SevCert, Usage
from cbit.spec.errors import BadMeasurement, InvalidCertificate
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import RESERVED_BITS, Policy, required_api
from cbit.spec.session import COMPRESSED, CONTEXT_SECRET, MeasureBlob, PacketHeader, Session
from cbit.spec.status import Status

UPDATE_CHUNK: Final = 20 * KIB  #: addresses are checked per chunk, so earlier chunks are already done
SECRET_MAX: Final = 16 * KIB  #: portable limit; Genoa's scratch would take 0x5000
#: The published firmware checks version and reserved bits only with a session, the paper always: §7.4.
CHECK_POLICY_WITHOUT_SESSION: Final = True


def launch_start(call: Call[buffers.LaunchStart]) -> buffers.LaunchStart:
    """LAUNCH_START: a new guest context, its memory key, and the owner's transport keys."""
    firmware, given = call.firmware, call.given
    # 1. the session: who may talk to this guest, bound to the policy
    transport = session.TransportKeys.parse(bytes(32))
    if given.dh_cert_paddr:
        transport = _open_session(firmware, given)
    # 2. the policy against this firmware
    if given.dh_cert_paddr or CHECK_POLICY_WITHOUT_SESSION:
        _check_policy(firmware, given.policy)
    # 3. a shared key, or a new one
    vek = _shared_key(firmware, given) if given.handle else _new_key(firmware)
    # 4. a context
    handle = firmware.free_handle()
    if given.policy & Policy.ES and not firmware.platform.es:
        raise Refused(Status.UNSUPPORTED, "the policy asks for ES, INIT did not enable it")
    call.subject = Guest(handle, given.policy, vek, transport)
    firmware.platform.guests[handle] = call.subject
    return given.replace(handle=handle)


def _open_session(firmware: Firmware, given: buffers.LaunchStart) -> session.TransportKeys:
    if given.session_len != Session.SIZE:
        raise Refused(
            Status.INVALID_LENGTH, f"session of {given.session_len:#x} bytes, must be {Session.SIZE:#x}"
        )
    blob = Session.parse(
        firmware.memory.read_host(given.session_paddr, Session.SIZE, "session"), canonical=False
    )
    if given.dh_cert_len != CERT_SIZE:
        raise Refused(
            Status.INVALID_LENGTH, f"DH certificate of {given.dh_cert_len:#x} bytes, must be {CERT_SIZE:#x}"
        )
    raw = firmware.memory.read_host(given.dh_cert_paddr, CERT_SIZE, "DH certificate")
    peer = SevCert.parse(raw, canonical=False)
    try:
        sev_cert.check_sanity(
            peer, usage=Usage.PDH, algo=Algo.ECDH_SHA256
        )  # no signature: sev-crypto.md §2.5
        z = ec.shared_secret(firmware.platform.identity.pdh_key, sev_cert.public_key(peer))
        return session.unwrap(blob, z=z, policy=given.policy)
    except InvalidCertificate as error:
        raise Refused(Status.INVALID_CERTIFICATE, f"DH {error}") from None
    except BadMeasurement as error:
        raise Refused(Status.BAD_MEASUREMENT, str(error)) from None


def _check_policy(firmware: Firmware, policy: int) -> None:
    if (wanted := required_api(policy)) > firmware.api:
        raise Refused(
            Status.POLICY_FAILURE, f"the policy wants API {wanted} or later, this firmware is {firmware.api}"
        )
    if policy & RESERVED_BITS:
        raise Refused(
            Status.POLICY_FAILURE, f"policy {policy:#x} sets reserved bits {policy & RESERVED_BITS:#x}"
        )


def _new_key(firmware: Firmware) -> Key:
    return Key(firmware.entropy.draw(firmware.limits.memory_key_bytes))


def _shared_key(firmware: Firmware, given: buffers.LaunchStart) -> Key:
    other = firmware.guest(given.handle)
    if other.policy != given.policy:
        raise Refused(
            Status.POLICY_FAILURE,
            f"policy {given.policy:#x} differs from guest {other.handle}'s {other.policy:#x}",
        )
    if other.has(Policy.NOKS):
        raise Refused(Status.POLICY_FAILURE, f"guest {other.handle}'s policy forbids key sharing (NOKS)")
    return other.vek


def launch_update_data(call: Call[buffers.LaunchUpdateData]) -> None:
    """LAUNCH_UPDATE_DATA: hash the plaintext into the digest, encrypt it in place."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    call.require_state(guest)
    asid = firmware.active_asid(guest)
    if given.paddr % BLOCK:
        raise Refused(Status.INVALID_ADDRESS, f"PADDR {given.paddr:#x} is not aligned to {BLOCK}")
    if given.length == 0 or given.length % BLOCK:
        raise Refused(Status.INVALID_LENGTH, f"length {given.length:#x} is 0 or not a multiple of {BLOCK}")
    rules = firmware.memory.rules
    valid = rules.valid_prefix(given.paddr, given.length, UPDATE_CHUNK)
    if valid:
        spa, c = rules.check(given.paddr, valid, "PADDR")
        chunks = firmware.memory.fabric.encrypt_in_place(
            spa, valid, key_id=guest_key_id(asid), source=HOST if c else UNENCRYPTED
        )
        assert guest.digest is not None
        for plaintext in chunks:
            guest.digest.update(plaintext)
    if valid < given.length:  # what came before the bad chunk is measured and encrypted, as on hardware
        rules.check(given.paddr + valid, min(UPDATE_CHUNK, given.length - valid), f"PADDR + {valid:#x}")


def launch_measure(call: Call[buffers.LaunchMeasure]) -> buffers.LaunchMeasure:
    """LAUNCH_MEASURE: close the digest and sign it for the owner."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    call.require_state(guest)
    if given.measure_len < MeasureBlob.SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"MEASURE_LEN {given.measure_len:#x}, needs {MeasureBlob.SIZE:#x}",
            corrected=given.replace(measure_len=MeasureBlob.SIZE),
        )
    assert guest.digest is not None
    assert guest.transport is not None
    launch_digest, mnonce = guest.digest.digest(), firmware.entropy.draw(16)
    measure = measurement(
        guest.transport.tik,
        api=firmware.api,
        build=firmware.build,
        policy=guest.policy,
        digest=launch_digest,
        mnonce=mnonce,
    )
    blob = MeasureBlob(measure=measure, mnonce=mnonce)
    firmware.memory.write_host(given.measure_paddr, bytes(blob), "MEASURE_PADDR")
    guest.launch_digest, guest.measure = launch_digest, measure
    return given


def launch_secret(call: Call[buffers.LaunchSecret]) -> None:
    """LAUNCH_SECRET: check the owner's packet and put its content into guest memory, encrypted."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    if given.guest_paddr % BLOCK:
        raise Refused(Status.INVALID_ADDRESS, f"GUEST_PADDR {given.guest_paddr:#x} is not aligned to {BLOCK}")
    _check_secret_lengths(given)
    call.require_state(guest)
    asid = firmware.active_asid(guest)
    assert guest.transport is not None
    memory = firmware.memory
    target, _ = memory.rules.check(given.guest_paddr, given.guest_len, "GUEST_PADDR")
    raw = memory.read_host(given.hdr_paddr, PacketHeader.SIZE, "HDR_PADDR")
    data = memory.read_host(given.trans_paddr, given.trans_len, "TRANS_PADDR")
    header = PacketHeader.parse(raw, canonical=False)
    try:
        plaintext = packet.open_packet(
            guest.transport,
            header,
            data,
            context=CONTEXT_SECRET,
            guest_len=given.guest_len,
            measure=guest.measure,
        )
    except BadMeasurement as error:
        raise Refused(Status.BAD_MEASUREMENT, str(error)) from None
    if header.flags & COMPRESSED:
        raise Refused(Status.UNSUPPORTED, "FLAGS.COMPRESSED is set")
    memory.fabric.write(target, plaintext, guest_key_id(asid))


def _check_secret_lengths(given: buffers.LaunchSecret) -> None:
    if given.hdr_len != PacketHeader.SIZE:
        raise Refused(Status.INVALID_LENGTH, f"HDR_LEN {given.hdr_len:#x}, must be {PacketHeader.SIZE:#x}")
    if given.guest_len == 0 or given.guest_len % BLOCK or given.guest_len > SECRET_MAX:
        raise Refused(
            Status.INVALID_LENGTH,
            f"GUEST_LEN {given.guest_len:#x}: 0, not a multiple of {BLOCK}, or over {SECRET_MAX:#x}",
        )
    if given.guest_len != given.trans_len:
        raise Refused(
            Status.INVALID_LENGTH,
            f"GUEST_LEN {given.guest_len:#x} differs from TRANS_LEN {given.trans_len:#x}",
        )


def launch_finish(call: Call[buffers.GuestHandle]) -> None:
    """LAUNCH_FINISH: the guest may run; the owner's transport keys are gone."""
    firmware = call.firmware
    guest = call.guest(call.given.handle)
    call.require_state(guest)
    if guest.asid is not None:
        firmware.platform.asids.start(guest.asid)
    guest.transport, guest.digest, guest.measure = None, None, b""
