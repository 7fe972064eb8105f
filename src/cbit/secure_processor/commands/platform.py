"""Platform commands: start, stop, reset, status.

Paper: sev-api.md §5.
"""

from __future__ import annotations

from typing import Final

from cbit.secure_processor.asid_table import AsidTable
from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware, Platform
from cbit.secure_processor.identity import Identity
from cbit.secure_processor.nv_store import NvCorrupt, NvUnusable
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.states import PlatformState
from cbit.spec.status import Status

ES: Final = 1 << 0  # INIT.FLAGS, PLATFORM_STATUS.CONFIG
RESERVED: Final = slice(0x04, 0x08)  # INIT: must be 0
EXTERNALLY_OWNED: Final = 1 << 0  # PLATFORM_STATUS.OWNER
TMR_SIZE: Final = MIB
ID_SIZE: Final = 64  # bytes per socket; one socket here


def init(call: Call[buffers.Init]) -> None:
    """INIT: UNINIT → INIT.  Any failure leaves UNINIT."""
    firmware, given = call.firmware, call.given
    # 1. the hardware must be able to encrypt
    if not firmware.limits.memory_encryption:
        raise Refused(
            Status.HWERROR_PLATFORM, "memory encryption is off (SYSCFG bit 23): see the x86 boot image"
        )
    # 2. flags; the reserved word too
    if given.flags & ~ES or any(call.raw[RESERVED]):
        reserved = call.raw[RESERVED].hex()
        raise Refused(
            Status.INVALID_CONFIG, f"FLAGS {given.flags:#x}, reserved {reserved}: only bit 0 (ES) is defined"
        )
    # 3. identity from the NV store, completed and saved
    issuer = firmware.issuer()
    identity = _identity(firmware)
    if identity is None:
        identity = Identity.self_owned(issuer)
        firmware.save(identity)
    # 4. ES wants its trusted memory region
    es = bool(given.flags & ES)
    tmr = _tmr(firmware, given) if es else None
    # 5. all ASIDs dirty
    asids = AsidTable(
        max_asid=firmware.limits.max_asid, min_sev_asid=firmware.limits.min_sev_asid, cores=firmware.cores
    )
    firmware.start(Platform(identity, issuer, asids, es=es, tmr=tmr))


def _identity(firmware: Firmware) -> Identity | None:
    try:
        state = firmware.nv.load()
    except NvCorrupt as error:
        _erase(firmware)  # the next INIT succeeds; Linux retries once
        raise Refused(Status.SECURE_DATA_INVALID, f"{error}; the store was erased") from None
    except NvUnusable as error:
        raise Refused(Status.HWERROR_PLATFORM, str(error)) from None
    return None if state is None else Identity.from_nv(state)


def _erase(firmware: Firmware) -> None:
    try:
        firmware.nv.erase()
    except NvUnusable as error:
        raise Refused(Status.HWERROR_PLATFORM, str(error)) from None


def _tmr(firmware: Firmware, given: buffers.Init) -> tuple[int, int]:
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
    _erase(call.firmware)


def platform_status(call: Call[buffers.PlatformStatus]) -> buffers.PlatformStatus:
    """PLATFORM_STATUS: always succeeds; owner, ES and guest count read 0 before INIT."""
    firmware = call.firmware
    status = buffers.PlatformStatus(
        api_major=firmware.api.major,
        api_minor=firmware.api.minor,
        build=firmware.build,
        state=int(firmware.state),
    )
    if firmware.state is PlatformState.UNINIT:
        return status
    platform = firmware.platform
    return status.replace(
        owner=EXTERNALLY_OWNED if platform.identity.externally_owned else 0,
        config=ES if platform.es else 0,
        guest_count=len(platform.guests),
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
    call.firmware.memory.write_host(given.paddr, call.firmware.fuses.chip_id(), "GET_ID buffer")
    return given.replace(length=ID_SIZE)


def nop(call: Call[None]) -> None:
    """NOP: always succeeds."""
