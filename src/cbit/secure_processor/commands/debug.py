"""The host looks into a guest whose policy lets it, and writes.

Paper: sev-api.md §10.
"""

from __future__ import annotations

from cbit.secure_processor.call import Call
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import BLOCK
from cbit.spec.key_id import KeyId
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import Policy
from cbit.spec.status import Status


def dbg_decrypt(call: Call[buffers.Debug]) -> None:
    """DBG_DECRYPT: guest memory, plain, into a buffer of the host."""
    given, memory = call.given, call.firmware.memory
    key = _admit(call)
    source = memory.guest_range(given.src, given.length, "SRC")
    target, host_key = memory.host_range(given.dst, given.length, "DST")
    memory.move(source, target, given.length, source_key=key, target_key=host_key)


def dbg_encrypt(call: Call[buffers.Debug]) -> None:
    """DBG_ENCRYPT: a buffer of the host into guest memory, under the guest's key."""
    given, memory = call.given, call.firmware.memory
    key = _admit(call)
    source, host_key = memory.host_range(given.src, given.length, "SRC")
    target = memory.guest_range(given.dst, given.length, "DST")
    memory.move(source, target, given.length, source_key=host_key, target_key=key)


def _admit(call: Call[buffers.Debug]) -> KeyId:
    """Check everything but the ranges, and return the guest's key id."""
    given = call.given
    if given.src % BLOCK or given.dst % BLOCK:
        raise Refused(
            Status.INVALID_ADDRESS, f"SRC {given.src:#x} or DST {given.dst:#x} is not aligned to {BLOCK}"
        )
    if given.length % BLOCK:
        raise Refused(Status.INVALID_LENGTH, f"length {given.length:#x} is not a multiple of {BLOCK}")
    guest = call.guest(given.handle)
    if guest.has(Policy.NODBG):
        raise Refused(Status.POLICY_FAILURE, f"guest {guest.handle}'s policy forbids debugging (NODBG)")
    asid = call.firmware.active_asid(guest)
    # MODEL CHOICE: no check of the firmware names length 0, its transfer fails with an unpublished status.
    if given.length == 0:
        raise Refused(Status.INVALID_LENGTH, "length 0: there is nothing to transfer")
    return guest_key_id(asid)
