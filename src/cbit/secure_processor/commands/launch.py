"""The launch family: from an owner's session to a measured, encrypted image.

Paper: sev-api.md §7; sev-crypto.md §7.4 (session), §8 (digest), §9 (measurement), §10 (secret).
"""

from __future__ import annotations

from typing import Final

from cbit.crypto import packet
from cbit.crypto.measurement import measurement
from cbit.crypto.session import TransportKeys
from cbit.secure_processor.call import Call
from cbit.secure_processor.commands.opening import Offer, check_policy, new_guest, open_session
from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.vmsa_pool import require_es
from cbit.spec import buffers
from cbit.spec.address import BLOCK, KIB
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.session import COMPRESSED, CONTEXT_SECRET, MeasureBlob, PacketHeader
from cbit.spec.status import Status
from cbit.spec.vmsa import Vmsa

UPDATE_CHUNK: Final = 20 * KIB  #: addresses are checked per chunk, so earlier chunks are already done
SECRET_MAX: Final = 16 * KIB  #: portable limit; Genoa's scratch would take 0x5000
#: The published firmware checks version and reserved bits only with a session, the paper always: §7.4.
CHECK_POLICY_WITHOUT_SESSION: Final = True


def launch_start(call: Call[buffers.LaunchStart]) -> buffers.LaunchStart:
    """LAUNCH_START: a new guest context, its memory key, and the owner's transport keys."""
    firmware, given = call.firmware, call.given
    # 1. the session: who may talk to this guest, bound to the policy
    transport = TransportKeys.parse(bytes(32))
    if given.dh_cert_paddr:
        offer = Offer(given.dh_cert_paddr, given.dh_cert_len, given.session_paddr, given.session_len)
        transport = open_session(firmware, offer, policy=given.policy)
    # 2. the policy against this firmware
    if given.dh_cert_paddr or CHECK_POLICY_WITHOUT_SESSION:
        check_policy(firmware, given.policy)
    # 3. a context, with a shared memory key or a new one
    call.subject = new_guest(firmware, share=given.handle, policy=given.policy, transport=transport)
    return given.replace(handle=call.subject.handle)


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
        assert guest.digest is not None
        firmware.memory.fabric.encrypt_in_place(
            spa,
            valid,
            key_id=guest_key_id(asid),
            source=HOST if c else UNENCRYPTED,
            show=guest.digest.update,
        )
    if valid < given.length:  # what came before the bad chunk is measured and encrypted, as on hardware
        rules.check(given.paddr + valid, min(UPDATE_CHUNK, given.length - valid), f"PADDR + {valid:#x}")


def vmsa_length(given: buffers.LaunchUpdateVmsa) -> None:
    """LAUNCH_UPDATE_VMSA's first check, before that of the platform's state."""
    if given.length != Vmsa.SIZE:
        raise Refused(Status.INVALID_LENGTH, f"length {given.length:#x}, must be {Vmsa.SIZE:#x}")


def launch_update_vmsa(call: Call[buffers.LaunchUpdateVmsa]) -> None:
    """LAUNCH_UPDATE_VMSA: hash a save area as supplied, add the firmware's words, encrypt it in place."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    call.require_state(guest)
    pool = require_es(firmware, guest)
    asid = firmware.active_asid(guest)
    if given.paddr % BLOCK:
        raise Refused(Status.INVALID_ADDRESS, f"PADDR {given.paddr:#x} is not aligned to {BLOCK}")
    memory = firmware.memory
    target, c = memory.rules.check(given.paddr, Vmsa.SIZE, "PADDR")
    slot = pool.take()
    page = memory.fabric.read(target, Vmsa.SIZE, HOST if c else UNENCRYPTED)
    assert guest.digest is not None
    guest.digest.update(page)
    memory.fabric.write(target, pool.seal(page, slot), guest_key_id(asid))
    guest.vmsa_slots.append(slot)


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
