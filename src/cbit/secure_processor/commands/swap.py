"""A page of a guest goes to the host's disk and comes back: sealed on the way, under a key that never leaves.

    SWAP_OUT   guest page ── AES-256-GCM, the guest's offline key ──> host page + 64 bytes of metadata
    SWAP_IN    the tag covers page and metadata; which of several copies of a page is the newest it cannot say

MODEL CHOICE: the offline key is drawn when a guest is first swapped, and a page is a save area if it has the
checksum of one of its guest's: without SEV-SNP nothing else says so.

Paper: sev-api.md §10; sev-crypto.md §13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.crypto import swap
from cbit.crypto.key import Key
from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.guest import Guest
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import LINE, MIB, PAGE, Spa
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.status import Status
from cbit.spec.swap import IN_PLACE, LARGE, TYPE, TYPE_DATA, TYPE_VMSA, SwapMetadata

LARGE_PAGE: Final = 2 * MIB
KEY_SIZE: Final = 32
IV_END: Final = (1 << 64) - 2  #: the counter's last value is not used


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a page comes from, where it goes, and its metadata: validated, the host's C-bit in the key."""

    size: int
    guest_page: Spa
    host_page: tuple[Spa, KeyId]
    mdata: tuple[Spa, KeyId]


def swap_out(call: Call[buffers.SwapOut]) -> None:
    """SWAP_OUT: seal a guest page into memory of the host, with its metadata beside it."""
    firmware, given = call.firmware, call.given
    places = _places(firmware, given)
    guest = call.guest(given.handle)
    key = guest_key_id(firmware.active_asid(guest))
    if guest.swapped >= IV_END:
        raise Refused(
            Status.AEAD_OFLOW, f"guest {guest.handle} was swapped {guest.swapped} times: no IV is left"
        )
    page = firmware.memory.fabric.read(places.guest_page, places.size, key)
    found = _type_of(firmware, guest, page)
    if found != given.page & TYPE:
        raise Refused(
            Status.INVALID_PARAM, f"PAGE_TYPE {given.page & TYPE:#x}, the page is of type {found:#x}"
        )
    metadata = SwapMetadata(
        software_data=given.software_data, iv=guest.swapped, page=given.page & (LARGE | TYPE)
    )
    metadata, sealed = swap.seal_page(_offline_key(firmware, guest), page, metadata)
    guest.swapped += 1
    firmware.memory.fabric.write(places.host_page[0], sealed, places.host_page[1])
    firmware.memory.fabric.write(places.mdata[0], bytes(metadata), places.mdata[1])


def swap_in(call: Call[buffers.SwapIn]) -> None:
    """SWAP_IN: check a page that SWAP_OUT sealed and put it into guest memory, encrypted."""
    firmware, given = call.firmware, call.given
    places = _places(firmware, given)
    guest = call.guest(given.handle)
    key = guest_key_id(firmware.active_asid(guest))
    raw = firmware.memory.fabric.read(places.mdata[0], SwapMetadata.SIZE, places.mdata[1])
    metadata = SwapMetadata.parse(raw, canonical=False)
    if (metadata.page ^ given.page) & (LARGE | TYPE):
        raise Refused(
            Status.INVALID_PARAM,
            f"size and type {given.page & 7:#x}, the metadata say {metadata.page & 7:#x}",
        )
    if given.page & IN_PLACE:
        if given.page & TYPE == TYPE_VMSA:
            raise Refused(Status.INVALID_PARAM, "a save area is not swapped in in its place")
        if places.guest_page != places.host_page[0]:
            raise Refused(Status.INVALID_PARAM, "SWAP_IN_PLACE, and DST is not SRC")
    sealed = firmware.memory.fabric.read(places.host_page[0], places.size, places.host_page[1])
    try:
        page = swap.open_page(_offline_key(firmware, guest), sealed, raw)
    except BadMeasurement as error:
        raise Refused(Status.BAD_MEASUREMENT, str(error)) from None
    firmware.memory.fabric.write(places.guest_page, page, key)


def _places(firmware: Firmware, given: buffers.SwapOut | buffers.SwapIn) -> _Places:
    """Check all addresses, in the paper's order: ranges, alignment, overlap, and what a large page may be."""
    out = isinstance(given, buffers.SwapOut)
    size = LARGE_PAGE if given.page & LARGE else PAGE
    check = firmware.memory.rules.check
    # 1. ranges
    src, src_c = check(given.src, size, "SRC")
    dst, dst_c = check(given.dst, size, "DST")
    mdata, mdata_c = check(given.mdata, SwapMetadata.SIZE, "MDATA")
    # 2. alignment; of a large page that comes back the firmware asks no more than of a small one (§10)
    if src % size or dst % (size if out else PAGE) or mdata % LINE:
        raise Refused(
            Status.INVALID_ADDRESS,
            f"SRC {src:#x}, DST {dst:#x} or MDATA {mdata:#x} is not aligned ({size:#x}, {LINE})",
        )
    # 3. overlap
    if any(start < mdata + SwapMetadata.SIZE and mdata < start + size for start in (src, dst)):
        raise Refused(Status.INVALID_PARAM, f"MDATA {mdata:#x} overlaps SRC {src:#x} or DST {dst:#x}")
    # 4. a save area is a small page
    if given.page & LARGE and given.page & TYPE == TYPE_VMSA:
        raise Refused(Status.INVALID_PARAM, "a save area of 2 MiB")
    guest_side, (host_side, c) = (src, (dst, dst_c)) if out else (dst, (src, src_c))
    return _Places(size, guest_side, (host_side, _host_key(c=c)), (mdata, _host_key(c=mdata_c)))


def _host_key(*, c: bool) -> KeyId:
    return HOST if c else UNENCRYPTED


def _type_of(firmware: Firmware, guest: Guest, page: bytes) -> int:
    pool = firmware.platform.vmsas
    is_vmsa = pool is not None and len(page) == PAGE and pool.is_good(page, guest.vmsa_slots)
    return TYPE_VMSA if is_vmsa else TYPE_DATA


def _offline_key(firmware: Firmware, guest: Guest) -> Key:
    if guest.offline_key is None:
        guest.offline_key = Key(firmware.entropy.draw(KEY_SIZE))
    return guest.offline_key
