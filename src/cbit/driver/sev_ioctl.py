"""The device behind /dev/sev: a program's ioctl in, mailbox commands, errno and error field out.

    SEV_ISSUE_CMD ── struct sev_issue_cmd ── write access? ── INIT if needed ── mailbox ── error, data, errno

What the firmware refuses is EIO with its status in ``error``; what never reaches it leaves ``error`` as the
caller had it.  The reason of either goes to the trace ("driver", the command's name).

MODEL CHOICE: where §12 names no errno it is that of Linux 6.11.  A length past the limit is EFAULT where a
certificate is asked for, EINVAL where one is brought, and ENOMEM for an id, past what the kernel's allocator
gives; a certificate to import that is nowhere or empty is EINVAL; a mailbox that does not answer ETIMEDOUT.
The SNP commands are EINVAL without asking the firmware, as on every host where SNP is not initialised, before
write access is looked at (later kernels try to initialise it first, and fail otherwise).

Paper: sev-api.md §12.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

from cbit.driver.caller_memory import CallerMemory
from cbit.driver.ccp import Ccp
from cbit.driver.errors import PART, FirmwareError, MailboxTimeout, refused
from cbit.driver.sev_structs import (
    BLOB_MAX,
    SEV_ISSUE_CMD,
    IssueCmd,
    SevCommand,
    UserGetId,
    UserGetId2,
    UserPdhCertExport,
    UserPekCertImport,
    UserPekCsr,
    UserStatus,
)
from cbit.machine.board import Machine
from cbit.spec import buffers
from cbit.spec.address import MIB, Spa
from cbit.spec.command import Command
from cbit.spec.key_id import UNENCRYPTED
from cbit.spec.states import PlatformState
from cbit.spec.status import Status
from cbit.spec.wire import Wire

AnyWire = TypeVar("AnyWire", bound=Wire)
#: Bytes of physical memory that the device needs: two certificates, the longest command's.
ROOM: Final = 2 * BLOB_MAX
#: The trusted memory region of INIT with ES; aligned to its size.
TMR_SIZE: Final = MIB
ES: Final = 1 << 0
#: The longest buffer that Linux makes room for, of those that have no limit of their own.
ALLOCATION_MAX: Final = 4 * MIB


class ErrorField(Protocol):
    """Where the status of each firmware command goes; the caller sees the last one."""

    error: int


@dataclass(frozen=True, slots=True)
class Opening:
    """How a program has the device open.

    Attributes:
        writable: for writing; without it, commands that change the platform are refused (EPERM).
    """

    writable: bool = True


@dataclass(slots=True)
class _Request:
    """One command on its way; ``error`` changes with each firmware command."""

    memory: CallerMemory
    data: int
    writable: bool
    error: int
    answer: Wire | None = None  #: written last, together with the error field

    def take(self, layout: type[AnyWire]) -> AnyWire:
        return layout.parse(self.memory.read(self.data, layout.SIZE))

    def give(self, answer: Wire) -> None:
        self.memory.write(self.data, bytes(answer))

    def insist_on_write(self) -> None:
        if not self.writable:
            raise OSError(errno.EPERM, "the device is not open for writing")


class SevDevice:
    """Answers SEV_ISSUE_CMD for all programs, one command after another.

    The platform is initialised when a command first needs it, as the driver does.
    """

    def __init__(self, machine: Machine, ccp: Ccp, *, room: Spa, tmr: Spa | None = None) -> None:
        """Take the device over.

        Args:
            machine: whose secure processor; it is on.
            ccp: its mailbox.
            room: ``ROOM`` bytes of free memory.
            tmr: ``TMR_SIZE`` bytes of it, aligned; INIT then switches ES on, as wherever it could be had.
        """
        self._machine = machine
        self._ccp = ccp
        self._room = room
        self._tmr = tmr

    def open(self, client: object, *, writable: bool = True) -> Opening:
        """Begin to serve a program that has the device open, for writing or for reading only."""
        return Opening(writable)

    def close(self, handle: Opening) -> None:
        """Nothing is kept by open file."""

    def ioctl(self, handle: Opening, request: int, argument: int, memory: CallerMemory) -> int:
        """Run one command and return 0.

        Raises:
            OSError: ENOTTY another request; EFAULT bad memory; EINVAL an unknown command or a length past the
                limit; EPERM no write access; EBUSY guests are in the way; EIO the firmware refused, and
                ``error`` says how; ETIMEDOUT the mailbox is silent.
        """
        if request != SEV_ISSUE_CMD:
            raise OSError(errno.ENOTTY, f"request {request:#x} is not SEV_ISSUE_CMD")
        name = "SEV_ISSUE_CMD"
        try:
            raw = memory.read(argument, IssueCmd.SIZE)
            issue = IssueCmd.parse(raw)
            row = ROWS.get(issue.cmd)
            if row is None:
                raise OSError(errno.EINVAL, f"command {issue.cmd} is out of range")
            name = _NAMES[issue.cmd]
            asked = _Request(memory, issue.data, handle.writable, issue.error)
            try:
                if row.write:
                    asked.insist_on_write()
                row.handler(self, asked)
            finally:
                told = (argument, raw[: _ERROR.offset] + asked.error.to_bytes(_ERROR.size, "little"))
                memory.write_all(
                    [told] if asked.answer is None else [(asked.data, bytes(asked.answer)), told]
                )
        except (FirmwareError, MailboxTimeout, OSError) as failure:
            raise refused(self._machine.trace, name, failure) from None
        return 0

    # ---- the firmware ----

    @property
    def has_es(self) -> bool:
        """Whether INIT switches ES on."""
        return self._tmr is not None

    def _call(self, request: ErrorField, command: int, buffer: AnyWire) -> AnyWire:
        after, refusal = self._attempt(request, command, buffer)
        if refusal is not None:
            raise refusal
        return after

    def _attempt(
        self, request: ErrorField, command: int, buffer: AnyWire
    ) -> tuple[AnyWire, FirmwareError | None]:
        status, why, after = self._ccp.attempt(command, buffer)
        request.error = status
        return after, None if status == Status.SUCCESS else FirmwareError(command, status, why)

    def _issue(self, request: ErrorField, command: int) -> None:
        self._call(request, command, _NO_BUFFER)

    def _status(self, request: ErrorField) -> buffers.PlatformStatus:
        return self._call(request, Command.PLATFORM_STATUS, _EMPTY_STATUS)

    def _is_uninit(self) -> bool:
        """Whether INIT comes first: Linux remembers, so the caller's error field hears nothing of it."""
        _, _, after = self._ccp.attempt(Command.PLATFORM_STATUS, _EMPTY_STATUS)
        return after.state == PlatformState.UNINIT

    def initialise_on_demand(self, request: ErrorField) -> None:
        """INIT if the platform is UNINIT, once more if its store was damaged; then make all ASIDs clean."""
        if not self._is_uninit():
            return
        init = (
            buffers.Init()
            if self._tmr is None
            else buffers.Init(flags=ES, tmr_paddr=self._tmr, tmr_length=TMR_SIZE)
        )
        _, refusal = self._attempt(request, Command.INIT, init)
        if refusal is not None and refusal.status == Status.SECURE_DATA_INVALID:
            why = str(refusal).removeprefix("INIT: ")
            self._machine.trace.emit(PART, "INIT", f"{why}; tried once more", errno="")
            _, refusal = self._attempt(request, Command.INIT, init)
        if refusal is not None:
            raise refusal
        self._machine.wbinvd_on_all_cores()
        self._issue(request, Command.DF_FLUSH)

    # ---- the commands, in the order of §12 ----

    def _factory_reset(self, request: _Request) -> None:
        state = self._status(request).state
        if state == PlatformState.WORKING:
            raise OSError(errno.EBUSY, "the platform is WORKING: guests exist")
        if state == PlatformState.INIT:
            self._issue(request, Command.SHUTDOWN)
        self._issue(request, Command.PLATFORM_RESET)

    def _platform_status(self, request: _Request) -> None:
        is_ = self._status(request)
        request.answer = UserStatus(
            api_major=is_.api_major,
            api_minor=is_.api_minor,
            state=is_.state,
            flags=is_.owner | is_.config << 8,
            build=is_.build,
            guest_count=is_.guest_count,
        )

    def _pek_csr(self, request: _Request) -> None:
        asked = request.take(UserPekCsr)
        length = _room_for(asked.address, asked.length)
        self.initialise_on_demand(request)
        after, refusal = self._attempt(
            request, Command.PEK_CSR, buffers.PekCsr(paddr=self._room, length=length)
        )
        request.give(asked.replace(length=after.length))
        if refusal is not None:
            raise refusal
        request.memory.write(asked.address, self._read(0, after.length))

    def _pdh_cert_export(self, request: _Request) -> None:
        if self._is_uninit():
            request.insist_on_write()
        self.initialise_on_demand(request)  # before the caller's structure is looked at
        asked = request.take(UserPdhCertExport)
        pdh_len = chain_len = 0
        if asked.pdh_address and asked.pdh_len and asked.chain_address:  # anything else asks for the lengths
            pdh_len = _room_for(asked.pdh_address, asked.pdh_len)
            chain_len = _room_for(asked.chain_address, asked.chain_len)
        buffer = buffers.PdhCertExport(
            pdh_paddr=self._room, pdh_len=pdh_len, certs_paddr=self._room + BLOB_MAX, certs_len=chain_len
        )
        after, refusal = self._attempt(request, Command.PDH_CERT_EXPORT, buffer)
        request.give(asked.replace(pdh_len=after.pdh_len, chain_len=after.certs_len))
        if refusal is not None:
            raise refusal
        request.memory.write(asked.pdh_address, self._read(0, after.pdh_len))
        request.memory.write(asked.chain_address, self._read(BLOB_MAX, after.certs_len))

    def _pek_cert_import(self, request: _Request) -> None:
        asked = request.take(UserPekCertImport)
        self._bring(0, request, asked.pek_address, asked.pek_len)
        self._bring(BLOB_MAX, request, asked.oca_address, asked.oca_len)
        self.initialise_on_demand(request)
        buffer = buffers.PekCertImport(
            pek_paddr=self._room,
            pek_len=asked.pek_len,
            oca_paddr=self._room + BLOB_MAX,
            oca_len=asked.oca_len,
        )
        self._call(request, Command.PEK_CERT_IMPORT, buffer)

    def _get_id(self, request: _Request) -> None:
        """GET_ID: room for two sockets is offered; what the firmware filled is handed on."""
        after = self._call(request, Command.GET_ID, buffers.GetId(paddr=self._room, length=UserGetId.SIZE))
        request.memory.write(request.data, self._read(0, after.length))

    def _get_id2(self, request: _Request) -> None:
        asked = request.take(UserGetId2)
        length = asked.length if asked.address else 0
        if length > ALLOCATION_MAX:
            raise OSError(errno.ENOMEM, f"length {length:#x} is past what the kernel's allocator gives")
        length = min(length, ROOM)  # an id is much shorter
        after, refusal = self._attempt(
            request, Command.GET_ID, buffers.GetId(paddr=self._room, length=length)
        )
        request.give(asked.replace(length=after.length))
        if refusal is not None:
            raise refusal
        request.memory.write(asked.address, self._read(0, after.length))

    # ---- memory ----

    def _read(self, offset: int, length: int) -> bytes:
        return self._machine.memory.read(Spa(self._room + offset), length, UNENCRYPTED)

    def _bring(self, offset: int, request: _Request, address: int, length: int) -> None:
        """Copy what a caller wants imported to where the secure processor can read it."""
        if not address or not length:
            raise OSError(errno.EINVAL, "a certificate to import has no address or no length")
        if length > BLOB_MAX:
            raise OSError(errno.EINVAL, _past_the_limit(length))
        data = request.memory.read(address, length)
        self._machine.memory.write(Spa(self._room + offset), data, UNENCRYPTED)


#: The firmware reads no buffer of the commands that have none; the mailbox's page is there all the same.
_NO_BUFFER: Final = buffers.GuestHandle(handle=0)
_EMPTY_STATUS: Final = buffers.PlatformStatus()
_ERROR: Final = IssueCmd.FIELDS["error"]  #: the last of its fields
_NAMES: Final[Mapping[int, str]] = MappingProxyType({int(command): command.name for command in SevCommand})


def _room_for(address: int, length: int) -> int:
    """Return the length to offer to the firmware: 0, which asks for it, where nothing could be copied to."""
    if not address or not length:
        return 0
    if length > BLOB_MAX:
        raise OSError(errno.EFAULT, _past_the_limit(length))
    return length


def _past_the_limit(length: int) -> str:
    return f"length {length:#x} is past the limit of {BLOB_MAX:#x}"


_Handler = Callable[[SevDevice, _Request], None]


def _no_snp(device: SevDevice, request: _Request) -> None:
    raise OSError(errno.EINVAL, "SNP is not initialised: this platform has none")


def _initialised(command: int) -> _Handler:
    """Let the firmware answer, the platform being initialised."""

    def handler(device: SevDevice, request: _Request) -> None:
        device.initialise_on_demand(request)
        device._issue(request, command)

    return handler


@dataclass(frozen=True, slots=True)
class Row:
    """One command.

    Attributes:
        write: it needs write access whatever the platform's state.
        handler: what is done.
    """

    write: bool
    handler: _Handler


# fmt: off
ROWS: Final[Mapping[int, Row]] = MappingProxyType({
    # command                            write  handler
    SevCommand.FACTORY_RESET:        Row(True,  SevDevice._factory_reset),
    SevCommand.PLATFORM_STATUS:      Row(False, SevDevice._platform_status),
    SevCommand.PEK_GEN:              Row(True,  _initialised(Command.PEK_GEN)),
    SevCommand.PEK_CSR:              Row(True,  SevDevice._pek_csr),
    SevCommand.PDH_GEN:              Row(True,  _initialised(Command.PDH_GEN)),
    SevCommand.PDH_CERT_EXPORT:      Row(False, SevDevice._pdh_cert_export),
    SevCommand.PEK_CERT_IMPORT:      Row(True,  SevDevice._pek_cert_import),
    SevCommand.GET_ID:               Row(False, SevDevice._get_id),
    SevCommand.GET_ID2:              Row(False, SevDevice._get_id2),
    SevCommand.SNP_PLATFORM_STATUS:  Row(False, _no_snp),
    SevCommand.SNP_COMMIT:           Row(False, _no_snp),
    SevCommand.SNP_SET_CONFIG:       Row(False, _no_snp),
    SevCommand.SNP_VLEK_LOAD:        Row(False, _no_snp),
})
# fmt: on
