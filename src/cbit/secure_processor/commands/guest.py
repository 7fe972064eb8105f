"""Guest context commands: give an ASID, take it back, forget the guest.

Paper: sev-api.md §6; §4.1 for the activation model.
"""

from __future__ import annotations

from cbit.secure_processor.call import Call
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.states import GuestState
from cbit.spec.status import Status


def decommission(call: Call[buffers.GuestHandle]) -> None:
    """DECOMMISSION: zero the context."""
    guest = call.guest(call.given.handle)
    if guest.asid is not None:
        raise Refused(Status.ACTIVE, f"guest {guest.handle} still holds ASID {guest.asid}: DEACTIVATE first")
    del call.firmware.platform.guests[guest.handle]


def activate(call: Call[buffers.Activate]) -> None:
    """ACTIVATE: bind the guest to an ASID and put its key into that slot."""
    firmware, asid = call.firmware, call.given.asid
    asids = firmware.platform.asids
    guest = call.guest(call.given.handle)
    asids.check_range(asid)
    asids.check_free(asid)
    if guest.asid is not None:
        raise Refused(Status.ACTIVE, f"guest {guest.handle} already holds ASID {guest.asid}")
    call.require_state(guest)
    asids.check_clean(asid)
    asids.check_kind(asid, es=guest.is_es)
    firmware.install_key(asid, guest.vek)
    asids.bind(asid, running=guest.state in (GuestState.RUNNING, GuestState.SUPDATE))
    guest.asid = asid
    firmware.trace.emit(
        "secure_processor",
        "key installed",
        handle=guest.handle,
        asid=asid,
        fingerprint=guest.vek.fingerprint(),
    )


def deactivate(call: Call[buffers.GuestHandle]) -> None:
    """DEACTIVATE: unbind; the key stays in the slot, the ASID is dirty until WBINVD and DF_FLUSH."""
    guest = call.guest(call.given.handle)
    call.firmware.platform.asids.unbind(call.firmware.active_asid(guest))
    guest.asid = None


def guest_status(call: Call[buffers.GuestStatus]) -> buffers.GuestStatus:
    """GUEST_STATUS: an invalid handle is SUCCESS with state UNINIT, the other fields unchanged."""
    given = call.given
    guest = call.firmware.platform.guests.get(given.handle)
    if guest is None:
        return given.replace(state=GuestState.UNINIT)
    return given.replace(policy=guest.policy, asid=guest.asid or 0, state=guest.state)
