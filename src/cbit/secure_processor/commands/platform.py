"""Platform commands: start, stop, reset, status.

Paper: sev-api.md §5.
"""

from __future__ import annotations

from typing import Final

from cbit.secure_processor.asid_table import AsidTable
from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware, Platform
from cbit.secure_processor.identity import Identity
from cbit.secure_processor.nv_area import AREA_SIZE, NvArea
from cbit.secure_processor.nv_store import NvCorrupt, NvStore, NvUnusable
from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.vmsa_pool import VmsaPool
from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE, strip_c_bit
from cbit.spec.states import PlatformState
from cbit.spec.status import Status

ES: Final = 1 << 0  # INIT.FLAGS, PLATFORM_STATUS.CONFIG
RESERVED: Final = slice(0x04, 0x08)  # INIT: must be 0
RESERVED_EX: Final = slice(0x14, 0x18)  # INIT_EX: must be 0
EXTERNALLY_OWNED: Final = 1 << 0  # PLATFORM_STATUS.OWNER
TMR_SIZE: Final = MIB
ID_SIZE: Final = 64  # bytes per socket; one socket here


def init(call: Call[buffers.Init]) -> None:
    """INIT: UNINIT → INIT.  Any failure leaves UNINIT."""
    _check_start(call.firmware, call.given.flags, call.raw[RESERVED])
    _start(call.firmware, call.given, nv=None)


def init_ex(call: Call[buffers.InitEx]) -> None:
    """INIT_EX: INIT with the non-volatile store in host memory, if an address is given."""
    firmware, given = call.firmware, call.given
    _check_start(firmware, given.flags, call.raw[RESERVED_EX])
    if given.length != buffers.InitEx.SIZE:
        raise Refused(Status.INVALID_LENGTH, f"LENGTH {given.length:#x}, must be {buffers.InitEx.SIZE:#x}")
    nv = None
    if given.nv_paddr:
        if strip_c_bit(given.nv_paddr, firmware.memory.rules.c_bit)[0] % PAGE:
            raise Refused(Status.INVALID_ADDRESS, f"NV_PADDR {given.nv_paddr:#x} is not aligned to 4 KiB")
        start, _ = firmware.memory.rules.check(given.nv_paddr, AREA_SIZE, "NV_PADDR")
        if given.nv_length != AREA_SIZE:
            raise Refused(Status.INVALID_LENGTH, f"NV_LENGTH {given.nv_length:#x}, must be {AREA_SIZE:#x}")
        nv = NvArea(firmware.memory, given.nv_paddr, firmware.fuses, firmware.entropy)
        tmr = strip_c_bit(given.tmr_paddr, firmware.memory.rules.c_bit)[0]
        if given.flags & ES and start < tmr + given.tmr_length and tmr < start + AREA_SIZE:
            raise Refused(Status.INVALID_ADDRESS, f"the NV area at {start:#x} overlaps the TMR at {tmr:#x}")
    _start(firmware, given, nv=nv)


def _check_start(firmware: Firmware, flags: int, reserved: bytes) -> None:
    # 1. the hardware must be able to encrypt
    if not firmware.limits.memory_encryption:
        raise Refused(
            Status.HWERROR_PLATFORM, "memory encryption is off (SYSCFG bit 23): see the x86 boot image"
        )
    # 2. flags; the reserved word too
    if flags & ~ES or any(reserved):
        raise Refused(
            Status.INVALID_CONFIG, f"FLAGS {flags:#x}, reserved {reserved.hex()}: only bit 0 (ES) is defined"
        )


def _start(firmware: Firmware, given: buffers.Init | buffers.InitEx, *, nv: NvStore | None) -> None:
    # 3. identity from the NV store, completed and saved
    store = nv or firmware.nv
    issuer = firmware.issuer()
    identity = _identity(store)
    if identity is None:
        identity = Identity.self_owned(issuer)
        firmware.save(identity, store)
    # 4. ES wants its trusted memory region
    es = bool(given.flags & ES)
    tmr = _tmr(firmware, given) if es else None
    # 5. all ASIDs dirty
    asids = AsidTable(
        max_asid=firmware.limits.max_asid, min_sev_asid=firmware.limits.min_sev_asid, cores=firmware.cores
    )
    pool = VmsaPool(firmware.memory.fabric, tmr) if tmr is not None else None
    firmware.start(Platform(identity, issuer, asids, es=es, tmr=tmr, nv=store, vmsas=pool))


def _identity(store: NvStore) -> Identity | None:
    try:
        state = store.load()
    except NvCorrupt as error:
        _erase(store)  # the next INIT succeeds; Linux retries once
        raise Refused(Status.SECURE_DATA_INVALID, f"{error}; the store was erased") from None
    except NvUnusable as error:
        raise Refused(Status.HWERROR_PLATFORM, str(error)) from None
    return None if state is None else Identity.from_nv(state)


def _erase(store: NvStore) -> None:
    try:
        store.erase()
    except NvUnusable as error:
        raise Refused(Status.HWERROR_PLATFORM, str(error)) from None


def _tmr(firmware: Firmware, given: buffers.Init | buffers.InitEx) -> tuple[int, int]:
    if given.tmr_paddr % TMR_SIZE:
        raise Refused(Status.INVALID_ADDRESS, f"TMR {given.tmr_paddr:#x} is not aligned to 1 MiB")
    if given.tmr_length != TMR_SIZE:
        raise Refused(Status.INVALID_LENGTH, f"TMR length {given.tmr_length:#x}, must be {TMR_SIZE:#x}")
    spa, _ = firmware.memory.rules.check(given.tmr_paddr, TMR_SIZE, "TMR")
    return spa, spa + TMR_SIZE


def shutdown(call: Call[None]) -> None:
    """SHUTDOWN: any → UNINIT; guests are decommissioned implicitly."""
    call.firmware.stop()


def platform_reset(call: Call[None]) -> None:
    """PLATFORM_RESET: erase the NV store; the next INIT makes a new identity."""
    _erase(call.firmware.nv)


def platform_status(call: Call[buffers.PlatformStatus]) -> buffers.PlatformStatus:
    """PLATFORM_STATUS: always succeeds; owner, ES and guest count read 0 before INIT."""
    firmware, state = call.firmware, call.firmware.state
    platform = None if state is PlatformState.UNINIT else firmware.platform
    return buffers.PlatformStatus(
        api_major=firmware.api.major,
        api_minor=firmware.api.minor,
        build=firmware.build,
        state=int(state),
        owner=EXTERNALLY_OWNED if platform and platform.identity.externally_owned else 0,
        config=ES if platform and platform.es else 0,
        guest_count=len(platform.guests) if platform else 0,
    )


def df_flush(call: Call[None]) -> None:
    """DF_FLUSH: the data fabric's write buffers; makes ASIDs clean after WBINVD."""
    call.firmware.platform.asids.flush()


def get_id(call: Call[buffers.GetId]) -> buffers.GetId:
    """GET_ID: 64 bytes per socket; this machine has one."""
    given = call.given
    if given.length < ID_SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"length {given.length}, needs {ID_SIZE}",
            corrected=given.replace(length=ID_SIZE),
        )
    call.firmware.memory.write_host(given.paddr, call.firmware.chip_id, "GET_ID buffer")
    return given.replace(length=ID_SIZE)


def nop(call: Call[None]) -> None:
    """NOP: always succeeds."""
