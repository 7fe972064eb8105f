"""Guest context commands: give an ASID, take it back, move pages, forget the guest.

Paper: sev-api.md §6; §4.1 for the activation model.
"""

from __future__ import annotations

from typing import Final

from cbit.secure_processor.call import Call
from cbit.secure_processor.memory_port import TRANSFER_WINDOW
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import PAGE, Spa, strip_c_bit
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.states import GuestState
from cbit.spec.status import Status

MAX_IDS: Final = 1024  #: APIC ids that ACTIVATE_EX takes


def decommission(call: Call[buffers.GuestHandle]) -> None:
    """DECOMMISSION: zero the context."""
    guest = call.guest(call.given.handle)
    if guest.asid is not None:
        raise Refused(Status.ACTIVE, f"guest {guest.handle} still holds ASID {guest.asid}: DEACTIVATE first")
    platform = call.firmware.platform
    if platform.vmsas is not None:
        platform.vmsas.give_back(guest.vmsa_slots)
    del platform.guests[guest.handle]


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
    if firmware.trace.watched("secure_processor"):
        fingerprint = guest.vek.fingerprint()
        firmware.trace.emit(
            "secure_processor", "key installed", handle=guest.handle, asid=asid, fingerprint=fingerprint
        )


def activate_ex(call: Call[buffers.ActivateEx]) -> None:
    """ACTIVATE_EX: ACTIVATE on the core complexes of the listed cores; may be repeated with more of them."""
    firmware, given = call.firmware, call.given
    asids, asid = firmware.platform.asids, given.asid
    if given.length != buffers.ActivateEx.SIZE:
        raise Refused(Status.INVALID_PARAM, f"LENGTH {given.length:#x}, must be {buffers.ActivateEx.SIZE:#x}")
    guest = call.guest(given.handle)
    asids.check_range(asid)
    if not 0 < given.numids <= MAX_IDS:
        raise Refused(Status.INVALID_PARAM, f"NUMIDS {given.numids}: 1..{MAX_IDS}")
    raw = firmware.memory.read_host(given.ids_paddr, 4 * given.numids, "IDS_PADDR")
    complexes = set()
    for at in range(0, len(raw), 4):
        apic_id = int.from_bytes(raw[at : at + 4], "little")
        ccx = firmware.cores.complex_of(apic_id)
        if ccx is None:
            raise Refused(Status.INVALID_CONFIG, f"no core has APIC id {apic_id}")
        complexes.add(ccx)
    if guest.asid != asid:
        asids.check_free(asid)
        if guest.asid is not None:
            raise Refused(Status.ACTIVE, f"guest {guest.handle} already holds ASID {guest.asid}")
    call.require_state(guest)
    asids.check_clean(asid, complexes)
    asids.check_kind(asid, es=guest.is_es)
    firmware.install_key(asid, guest.vek)
    asids.bind(
        asid, running=guest.state in (GuestState.RUNNING, GuestState.SUPDATE), complexes=frozenset(complexes)
    )
    guest.asid = asid


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


def copy(call: Call[buffers.Copy]) -> None:
    """COPY: move pages of a guest; the engine's tweak is the address, so moving means encrypting again."""
    firmware, given = call.firmware, call.given
    memory, length = firmware.memory, given.length
    guest = call.guest(given.handle)
    key = guest_key_id(firmware.active_asid(guest))
    if length == 0 or length % PAGE:
        raise Refused(Status.INVALID_LENGTH, f"length {length:#x} is 0 or not a multiple of {PAGE}")
    source, target = (Spa(strip_c_bit(at, memory.rules.c_bit)[0]) for at in (given.src, given.dst))
    if source % PAGE or target % PAGE:
        raise Refused(Status.INVALID_ADDRESS, f"SRC {source:#x} or DST {target:#x} is not aligned to {PAGE}")
    if source == target:  # of aligned pages, only the same one overlaps
        return
    for what, start in (("SRC", source), ("DST", target)):
        if start // TRANSFER_WINDOW != (start + length - 1) // TRANSFER_WINDOW:
            raise Refused(Status.INVALID_PARAM, f"{what} {start:#x} + {length:#x} crosses a 64 MiB boundary")
    source = memory.guest_range(source, length, "SRC")
    target = memory.guest_range(target, length, "DST")
    memory.move(source, target, length, source_key=key, target_key=key)
