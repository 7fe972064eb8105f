"""A guest leaves for another platform, page by page, and arrives there: neither host can read it on the way.

    sender                                            receiver
    SEND_START         session for the receiver's PDH   RECEIVE_START        opens it with its PDH
    SEND_UPDATE_DATA   page, sealed with TEK and TIK    RECEIVE_UPDATE_DATA  checks, encrypts with its own key
    SEND_FINISH        the guest is gone from here      RECEIVE_FINISH       the guest runs here

Paper: sev-api.md §8, §9; sev-crypto.md §10 (packets), §11 (channel).
MODEL CHOICE: a packet of a save area holds all of its page; the paper names no length of its own.
"""

from __future__ import annotations

from typing import Final

from cbit.crypto import packet, session
from cbit.secure_processor.call import Call
from cbit.secure_processor.commands.opening import Offer, check_policy, new_guest, open_session, shared_secret
from cbit.secure_processor.commands.receiver import check_receiver
from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.vmsa_pool import require_es
from cbit.spec import buffers
from cbit.spec.address import BLOCK, KIB
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import Policy
from cbit.spec.session import COMPRESSED, CONTEXT_DATA, CONTEXT_VMSA, PacketHeader, Session
from cbit.spec.status import Status
from cbit.spec.vmsa import Vmsa

PACKET_MAX: Final = 16 * KIB  #: as for LAUNCH_SECRET: the portable limit
#: What SEND_UPDATE_* corrects when it is asked for lengths: as the published firmware does; Linux expects
#: TRANS_LEN too (§8).
QUERY_TELLS: Final = "hdr_len"

# ---- out ---------------------------------------------------------------------------------------------------


def send_start(call: Call[buffers.SendStart]) -> buffers.SendStart:
    """SEND_START: check the receiving platform as the policy asks, make a session for it."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    # 1. the session's room; a host learns its length by asking
    if given.session_len != Session.SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"SESSION_LEN {given.session_len:#x}, must be {Session.SIZE:#x}",
            corrected=given.replace(session_len=Session.SIZE),
        )
    call.require_state(guest)
    # 2. may it leave, and to this platform?
    if guest.has(Policy.NOSEND):
        raise Refused(Status.POLICY_FAILURE, f"guest {guest.handle}'s policy forbids sending (NOSEND)")
    pdh = check_receiver(firmware, given, policy=guest.policy)
    # 3. fresh transport keys, wrapped for its PDH and bound to the policy
    z, entropy = shared_secret(firmware, pdh), firmware.entropy
    transport = session.TransportKeys.random(entropy)
    blob = session.wrap(transport, z=z, policy=guest.policy, nonce=entropy.draw(16), wrap_iv=entropy.draw(16))
    firmware.memory.write_host(given.session_paddr, bytes(blob), "SESSION_PADDR")
    guest.transport = transport
    return given.replace(policy=guest.policy)


def send_update_data(call: Call[buffers.SendUpdateData]) -> buffers.SendUpdateData:
    """SEND_UPDATE_DATA: decrypt guest memory and seal it for the receiver; TRANS_LEN stays as given."""
    return _send_update(call, vmsa=False)


def send_update_vmsa(call: Call[buffers.SendUpdateData]) -> buffers.SendUpdateData:
    """SEND_UPDATE_VMSA: the same of a save area, which must be as it was left (its checksum)."""
    return _send_update(call, vmsa=True)


def _send_update(call: Call[buffers.SendUpdateData], *, vmsa: bool) -> buffers.SendUpdateData:
    firmware, given = call.firmware, call.given
    if given.hdr_len < PacketHeader.SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"HDR_LEN {given.hdr_len:#x}, needs {PacketHeader.SIZE:#x}",
            corrected=given.replace(**{QUERY_TELLS: PacketHeader.SIZE}),
        )
    guest = call.guest(given.handle)
    call.require_state(guest)
    pool = require_es(firmware, guest) if vmsa else None
    asid = firmware.active_asid(guest)
    _check_length(given.guest_len, "GUEST_LEN", vmsa=vmsa)
    if given.trans_len < given.guest_len:
        raise Refused(
            Status.INVALID_LENGTH, f"TRANS_LEN {given.trans_len:#x}, needs GUEST_LEN {given.guest_len:#x}"
        )
    _check_alignment(given.guest_paddr)
    memory = firmware.memory
    source = memory.guest_range(given.guest_paddr, given.guest_len, "GUEST_PADDR")
    memory.host_range(given.hdr_paddr, PacketHeader.SIZE, "HDR_PADDR")
    memory.host_range(given.trans_paddr, given.guest_len, "TRANS_PADDR")
    plaintext = memory.fabric.read(source, given.guest_len, guest_key_id(asid))
    if pool is not None and not pool.is_good(plaintext, guest.vmsa_slots):
        raise Refused(Status.INVALID_PARAM, f"the save area at {source:#x} does not have its checksum")
    assert guest.transport is not None
    header, data = packet.seal(
        guest.transport,
        plaintext,
        context=CONTEXT_VMSA if vmsa else CONTEXT_DATA,
        iv=firmware.entropy.draw(16),
    )
    memory.write_host(given.trans_paddr, data, "TRANS_PADDR")
    memory.write_host(given.hdr_paddr, bytes(header), "HDR_PADDR")
    return given.replace(hdr_len=PacketHeader.SIZE)


def send_finish(call: Call[buffers.GuestHandle]) -> None:
    """SEND_FINISH: the guest lives elsewhere, and what is left here is activated no more.

    It takes nothing away: §4.1 names it in no transition of an ASID, so until DEACTIVATE the ASID stays
    in use, its key in its slot, and a host that wants to runs the guest on.
    """
    _forget_transport(call)


def send_cancel(call: Call[buffers.GuestHandle]) -> None:
    """SEND_CANCEL: the guest stays and runs on."""
    _forget_transport(call)


# ---- in ----------------------------------------------------------------------------------------------------


def receive_start(call: Call[buffers.ReceiveStart]) -> buffers.ReceiveStart:
    """RECEIVE_START: LAUNCH_START with another platform in the owner's place; there is no launch digest."""
    firmware, given = call.firmware, call.given
    offer = Offer(given.pdh_cert_paddr, given.pdh_cert_len, given.session_paddr, given.session_len)
    transport = open_session(firmware, offer, policy=given.policy)
    check_policy(firmware, given.policy)
    guest = new_guest(firmware, share=given.handle, policy=given.policy, transport=transport)
    guest.digest = None
    call.subject = guest
    return given.replace(handle=guest.handle)


def receive_update_data(call: Call[buffers.ReceiveUpdateData]) -> None:
    """RECEIVE_UPDATE_DATA: check a packet of the sender, put its content into guest memory, encrypted."""
    _receive_update(call, vmsa=False)


def receive_update_vmsa(call: Call[buffers.ReceiveUpdateData]) -> None:
    """RECEIVE_UPDATE_VMSA: the same of a save area, which gets a checksum here."""
    _receive_update(call, vmsa=True)


def _receive_update(call: Call[buffers.ReceiveUpdateData], *, vmsa: bool) -> None:
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    call.require_state(guest)
    pool = require_es(firmware, guest) if vmsa else None
    asid = firmware.active_asid(guest)
    _check_length(given.trans_len, "TRANS_LEN", vmsa=vmsa)
    if given.guest_len != given.trans_len:
        raise Refused(
            Status.INVALID_LENGTH,
            f"GUEST_LEN {given.guest_len:#x} differs from TRANS_LEN {given.trans_len:#x}",
        )
    if given.hdr_len < PacketHeader.SIZE:
        raise Refused(Status.INVALID_LENGTH, f"HDR_LEN {given.hdr_len:#x}, needs {PacketHeader.SIZE:#x}")
    _check_alignment(given.guest_paddr)
    memory = firmware.memory
    target = memory.guest_range(given.guest_paddr, given.guest_len, "GUEST_PADDR")
    raw = memory.read_host(given.hdr_paddr, PacketHeader.SIZE, "HDR_PADDR")
    data = memory.read_host(given.trans_paddr, given.trans_len, "TRANS_PADDR")
    header = PacketHeader.parse(raw, canonical=False)
    if header.flags & COMPRESSED:  # here before the MAC, in LAUNCH_SECRET after it (§10)
        raise Refused(Status.UNSUPPORTED, "FLAGS.COMPRESSED is set")
    assert guest.transport is not None
    try:
        plaintext = packet.open_packet(
            guest.transport,
            header,
            data,
            context=CONTEXT_VMSA if vmsa else CONTEXT_DATA,
            guest_len=given.guest_len,
        )
    except BadMeasurement as error:
        raise Refused(Status.BAD_MEASUREMENT, str(error)) from None
    if pool is not None:
        slot = pool.take()
        plaintext = pool.seal(plaintext, slot)
        guest.vmsa_slots.append(slot)
    memory.fabric.write(target, plaintext, guest_key_id(asid))


def receive_finish(call: Call[buffers.GuestHandle]) -> None:
    """RECEIVE_FINISH: the guest may run; the transport keys are gone."""
    _forget_transport(call)
    assert call.subject is not None
    if call.subject.asid is not None:
        call.firmware.platform.asids.start(call.subject.asid)


def _forget_transport(call: Call[buffers.GuestHandle]) -> None:
    guest = call.guest(call.given.handle)
    call.require_state(guest)
    guest.transport = None


def _check_length(length: int, what: str, *, vmsa: bool) -> None:
    if vmsa and length != Vmsa.SIZE:
        raise Refused(Status.INVALID_LENGTH, f"{what} {length:#x}, a save area has {Vmsa.SIZE:#x}")
    if length == 0 or length % BLOCK or length > PACKET_MAX:
        raise Refused(
            Status.INVALID_LENGTH,
            f"{what} {length:#x}: 0, not a multiple of {BLOCK}, or over {PACKET_MAX:#x}",
        )


def _check_alignment(guest_paddr: int) -> None:
    if guest_paddr % BLOCK:
        raise Refused(Status.INVALID_ADDRESS, f"GUEST_PADDR {guest_paddr:#x} is not aligned to {BLOCK}")
