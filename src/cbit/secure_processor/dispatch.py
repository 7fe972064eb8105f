"""One table of commands: dispatch, documentation and test plan.

A command that is not in the table, or not in the booted firmware image, is answered INVALID_COMMAND.
To add one: its buffer to ``spec.buffers``, its handler to ``commands/<family>.py``, its row here.

Paper: sev-api.md §2.1 (dispatch rules), §3 and §4 (states), §5–§10 (commands).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from cbit.secure_processor.call import Call
from cbit.secure_processor.commands import (
    debug,
    guest,
    launch,
    migration,
    ownership,
    platform,
    report,
    ring,
    swap,
    update,
)
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.command import Command, name_of
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.spec.states import GuestState, PlatformState
from cbit.spec.status import Status
from cbit.spec.wire import Wire


class Buffer(Enum):
    """When a command's buffer is read and written back (§2.1)."""

    NONE = "none"
    IN = "in"
    OUT = "out, on success"
    IN_OUT = "in/out, back on success"
    IN_OUT_ERR = "in/out, back on success and on INVALID_LENGTH"


@dataclass(frozen=True, slots=True)
class Row:
    """One command.

    Attributes:
        layout: the parameter buffer, or None.
        buffer: its class.
        platform: platform states it may be called in.
        guest: guest states it may be called in; None if it names no guest or does not care.
        then: the guest's state afterwards; None if it stays.
        handler: the paper's action list.
        first: a check that comes even before the platform's state; mostly None.
    """

    layout: type[Wire] | None
    buffer: Buffer
    platform: frozenset[PlatformState]
    guest: frozenset[GuestState] | None
    then: GuestState | None
    handler: Callable[[Call[Any]], Wire | None]
    first: Callable[[Any], None] | None = None


_P, _G, _B = PlatformState, GuestState, Buffer
_ANY: Final = frozenset(_P)
_UNINIT: Final = frozenset({_P.UNINIT})
_INIT: Final = frozenset({_P.INIT})
_UP: Final = frozenset({_P.INIT, _P.WORKING})
_WORK: Final = frozenset({_P.WORKING})
#: Where DF_FLUSH may be called: the published firmware asks for no state, descriptions list these two (§3).
_FLUSHABLE: Final = _UP
_NOT_SENT: Final = frozenset(_G) - {_G.UNINIT, _G.SENT}
_LUPDATE: Final = frozenset({_G.LUPDATE})
_LSECRET: Final = frozenset({_G.LSECRET})
_RUNNING: Final = frozenset({_G.RUNNING})
_SUPDATE: Final = frozenset({_G.SUPDATE})
_RUPDATE: Final = frozenset({_G.RUPDATE})
_ATTESTED: Final = frozenset({_G.LSECRET, _G.RUNNING, _G.SUPDATE, _G.SENT})

# fmt: off
# ruff: noqa: E501 (the table is read across)
COMMANDS: Final[Mapping[Command, Row]] = MappingProxyType({
    # command                         layout                     buffer         platform  guest in    then        handler
    Command.INIT:               Row(buffers.Init,             _B.IN,          _UNINIT,  None,       None,       platform.init),
    Command.SHUTDOWN:           Row(None,                     _B.NONE,        _ANY,     None,       None,       platform.shutdown),
    Command.PLATFORM_RESET:     Row(None,                     _B.NONE,        _UNINIT,  None,       None,       platform.platform_reset),
    Command.PLATFORM_STATUS:    Row(buffers.PlatformStatus,   _B.OUT,         _ANY,     None,       None,       platform.platform_status),
    Command.PEK_GEN:            Row(None,                     _B.NONE,        _INIT,    None,       None,       ownership.pek_gen),
    Command.PEK_CSR:            Row(buffers.PekCsr,           _B.IN_OUT_ERR,  _UP,      None,       None,       ownership.pek_csr),
    Command.PEK_CERT_IMPORT:    Row(buffers.PekCertImport,    _B.IN,          _INIT,    None,       None,       ownership.pek_cert_import),
    Command.PDH_CERT_EXPORT:    Row(buffers.PdhCertExport,    _B.IN_OUT_ERR,  _UP,      None,       None,       ownership.pdh_cert_export),
    Command.PDH_GEN:            Row(None,                     _B.NONE,        _UP,      None,       None,       ownership.pdh_gen),
    Command.DF_FLUSH:           Row(None,                     _B.NONE,        _FLUSHABLE, None,       None,       platform.df_flush),
    Command.DOWNLOAD_FIRMWARE:  Row(buffers.DownloadFirmware, _B.IN,          _UNINIT,  None,       None,       update.download_firmware),
    Command.GET_ID:             Row(buffers.GetId,            _B.IN_OUT_ERR,  _ANY,     None,       None,       platform.get_id),
    Command.INIT_EX:            Row(buffers.InitEx,           _B.IN,          _UNINIT,  None,       None,       platform.init_ex),
    Command.NOP:                Row(None,                     _B.NONE,        _ANY,     None,       None,       platform.nop),
    Command.RING_BUFFER:        Row(buffers.RingBuffer,       _B.IN,          _UP,      None,       None,       ring.ring_buffer),

    Command.DECOMMISSION:       Row(buffers.GuestHandle,      _B.IN,          _WORK,    None,       None,       guest.decommission),
    Command.ACTIVATE:           Row(buffers.Activate,         _B.IN,          _WORK,    _NOT_SENT,  None,       guest.activate),
    Command.DEACTIVATE:         Row(buffers.GuestHandle,      _B.IN,          _WORK,    None,       None,       guest.deactivate),
    Command.GUEST_STATUS:       Row(buffers.GuestStatus,      _B.IN_OUT,      _UP,      None,       None,       guest.guest_status),
    Command.ACTIVATE_EX:        Row(buffers.ActivateEx,       _B.IN,          _WORK,    _NOT_SENT,  None,       guest.activate_ex),
    Command.COPY:               Row(buffers.Copy,             _B.IN,          _WORK,    None,       None,       guest.copy),

    Command.LAUNCH_START:       Row(buffers.LaunchStart,      _B.IN_OUT,      _UP,      None,       _G.LUPDATE, launch.launch_start),
    Command.LAUNCH_UPDATE_DATA: Row(buffers.LaunchUpdateData, _B.IN,          _WORK,    _LUPDATE,   None,       launch.launch_update_data),
    Command.LAUNCH_UPDATE_VMSA: Row(buffers.LaunchUpdateVmsa, _B.IN,          _WORK,    _LUPDATE,   None,       launch.launch_update_vmsa, launch.vmsa_length),
    Command.LAUNCH_MEASURE:     Row(buffers.LaunchMeasure,    _B.IN_OUT_ERR,  _WORK,    _LUPDATE,   _G.LSECRET, launch.launch_measure),
    Command.LAUNCH_SECRET:      Row(buffers.LaunchSecret,     _B.IN,          _WORK,    _LSECRET,   None,       launch.launch_secret),
    Command.LAUNCH_FINISH:      Row(buffers.GuestHandle,      _B.IN,          _WORK,    _LSECRET,   _G.RUNNING, launch.launch_finish),
    Command.ATTESTATION:        Row(buffers.Attestation,      _B.IN_OUT_ERR,  _WORK,    _ATTESTED,  None,       report.attestation),

    Command.SEND_START:         Row(buffers.SendStart,        _B.IN_OUT_ERR,  _WORK,    _RUNNING,   _G.SUPDATE, migration.send_start),
    Command.SEND_UPDATE_DATA:   Row(buffers.SendUpdateData,   _B.IN_OUT_ERR,  _WORK,    _SUPDATE,   None,       migration.send_update_data),
    Command.SEND_UPDATE_VMSA:   Row(buffers.SendUpdateData,   _B.IN_OUT_ERR,  _WORK,    _SUPDATE,   None,       migration.send_update_vmsa),
    Command.SEND_FINISH:        Row(buffers.GuestHandle,      _B.IN,          _WORK,    _SUPDATE,   _G.SENT,    migration.send_finish),
    Command.SEND_CANCEL:        Row(buffers.GuestHandle,      _B.IN,          _WORK,    _SUPDATE,   _G.RUNNING, migration.send_cancel),

    Command.RECEIVE_START:      Row(buffers.ReceiveStart,     _B.IN_OUT,      _UP,      None,       _G.RUPDATE, migration.receive_start),
    Command.RECEIVE_UPDATE_DATA: Row(buffers.ReceiveUpdateData, _B.IN,        _WORK,    _RUPDATE,   None,       migration.receive_update_data),
    Command.RECEIVE_UPDATE_VMSA: Row(buffers.ReceiveUpdateData, _B.IN,        _WORK,    _RUPDATE,   None,       migration.receive_update_vmsa),
    Command.RECEIVE_FINISH:     Row(buffers.GuestHandle,      _B.IN,          _WORK,    _RUPDATE,   _G.RUNNING, migration.receive_finish),

    Command.DBG_DECRYPT:        Row(buffers.Debug,            _B.IN,          _WORK,    None,       None,       debug.dbg_decrypt),
    Command.DBG_ENCRYPT:        Row(buffers.Debug,            _B.IN,          _WORK,    None,       None,       debug.dbg_encrypt),
    Command.SWAP_OUT:           Row(buffers.SwapOut,          _B.IN_OUT_ERR,  _WORK,    None,       None,       swap.swap_out),
    Command.SWAP_IN:            Row(buffers.SwapIn,           _B.IN,          _WORK,    None,       None,       swap.swap_in),

    Command.DOWNLOAD_FIRMWARE_EX: Row(buffers.DownloadFirmwareEx, _B.IN,      _UNINIT,  None,       None,       update.download_firmware_ex),
})
# fmt: on


def dispatch(firmware: Firmware, command: int, address: int) -> Status:
    """Carry out one mailbox command and return its status.

    The host's buffer is read once.  A refused command moves no state.

    Args:
        firmware: the running firmware.
        command: the command id as the host wrote it.
        address: system-physical address of the command buffer, C-bit allowed.
    """
    status, why = Status.SUCCESS, ""
    try:
        _carry_out(firmware, command, address)
    except Refused as refusal:
        status, why = refusal.status, refusal.why
    firmware.why = why
    if firmware.trace.watched("secure_processor"):
        firmware.trace.emit("secure_processor", name_of(command), why, status=status.name)
    return status


def _carry_out(firmware: Firmware, command: int, address: int) -> None:
    row = COMMANDS.get(command)  # type: ignore[call-overload] # an IntEnum key is found by its number
    if row is None or command not in firmware.implements:
        raise Refused(Status.INVALID_COMMAND, f"{name_of(command)} is not implemented by this firmware")
    raw = _read(firmware, row, address)
    taken = None if row.buffer is Buffer.OUT else row.layout  # of an OUT buffer nothing is looked at
    given = None if taken is None else taken.parse(raw, canonical=False)
    if row.first is not None:
        row.first(given)
    if firmware.state not in row.platform:
        wanted = ", ".join(state.name for state in sorted(row.platform))
        raise Refused(Status.INVALID_PLATFORM_STATE, f"the platform is {firmware.state.name}, needs {wanted}")
    call = Call(firmware, raw, given, row.guest)
    try:
        answer = row.handler(call)
    except Refused as refusal:
        if refusal.corrected is not None and row.buffer is Buffer.IN_OUT_ERR:
            _write_back(firmware, row, refusal.corrected, raw, address)
        raise
    if row.then is not None and call.subject is not None:
        firmware.set_guest_state(call.subject, row.then)
    if answer is not None:
        _write_back(firmware, row, answer, raw, address)


def _read(firmware: Firmware, row: Row, address: int) -> bytes:
    """Copy the buffer in; an OUT buffer is only checked, so that success can be written."""
    if row.layout is None:
        return b""
    spa, c = firmware.memory.rules.check(address, row.layout.SIZE, "command buffer")
    if row.buffer is Buffer.OUT:
        return bytes(row.layout.SIZE)
    return firmware.memory.fabric.read(spa, row.layout.SIZE, HOST if c else UNENCRYPTED)


def _write_back(firmware: Firmware, row: Row, answer: Wire, raw: bytes, address: int) -> None:
    whole = row.buffer is Buffer.OUT  # all its fields are, and its gaps are zero
    data = bytes(answer) if whole else answer.patched(raw, *answer.written_back())
    firmware.memory.write_host(address, data, "command buffer")
