"""What KVM knows of one virtual machine with encrypted memory, and what its sub-commands are made of.

The firmware's buffers name physical addresses, the program's its own: `ClientPages` stands between them.

Paper: sev-api.md §13.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from cbit.driver.caller_memory import CallerMemory
from cbit.driver.ccp import Ccp
from cbit.driver.client_pages import ClientPages, FreeFrames, MemoryRule, Run
from cbit.driver.errors import FirmwareError, MailboxTimeout
from cbit.driver.kvm_registers import KvmRegs, KvmSregs
from cbit.driver.kvm_structs import EncRegion, KvmInit2, KvmSevCmd, KvmSevCommand, VmType
from cbit.driver.sev_ioctl import SevDevice
from cbit.driver.sev_structs import BLOB_MAX
from cbit.machine.board import Machine
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.command import Command
from cbit.spec.errors import CbitError
from cbit.spec.key_id import UNENCRYPTED, KeyId
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.status import Status
from cbit.spec.vmsa import SevFeatures
from cbit.spec.wire import Wire

AnyWire = TypeVar("AnyWire", bound=Wire)
GHCB_VERSION_MAX: Final = 2
#: What INIT2 may switch on in a virtual CPU's save area; DEBUG_VIRT is what KVM calls debug-swap.
VMSA_FEATURES: Final = SevFeatures.DEBUG_VIRT


class Asids(Protocol):
    """Free ASIDs of one kind."""

    @property
    def free(self) -> int:
        """How many are left."""
        ...

    def take(self) -> int:
        """Give one out."""
        ...

    def give_back(self, asid: int, *, dirty: bool = True) -> None:
        """Take one back."""
        ...


class HostSide(Protocol):
    """What a virtual machine needs of the host that it runs on."""

    @property
    def machine(self) -> Machine:
        """The hardware."""
        ...

    @property
    def ccp(self) -> Ccp:
        """Its secure processor's mailbox."""
        ...

    @property
    def frames(self) -> FreeFrames:
        """Free memory."""
        ...

    @property
    def asids(self) -> Asids:
        """ASIDs for guests without ES."""
        ...

    @property
    def es_asids(self) -> Asids:
        """ASIDs for guests with ES."""
        ...


class Asked:
    """One sub-command on its way; ``error`` changes with each firmware command."""

    __slots__ = ("command", "error", "memory")

    def __init__(self, command: KvmSevCmd, memory: CallerMemory) -> None:
        self.command, self.memory, self.error = command, memory, command.error

    def take(self, layout: type[AnyWire]) -> AnyWire:
        """Read the sub-command's structure."""
        return layout.parse(self.memory.read(self.command.data, layout.SIZE), canonical=False)

    def give(self, answer: Wire) -> None:
        """Write the sub-command's structure back."""
        self.memory.write(self.command.data, bytes(answer))

    def blob(self, address: int, length: int, what: str) -> bytes:
        """Read a certificate, session, header or packet."""
        if not address or not length:
            raise OSError(errno.EINVAL, f"the {what} has no address or no length")
        if length > BLOB_MAX:
            raise OSError(errno.EINVAL, f"the {what} has {length:#x} bytes, past the limit of {BLOB_MAX:#x}")
        return self.memory.read(address, length)


class Lent:
    """Frames for the buffers of one command; they go back at its end."""

    def __init__(self, host: HostSide) -> None:
        self._host = host
        self._taken: list[range] = []

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *error: object) -> None:
        for frames in self._taken:
            self._host.frames.give_back(frames)

    def room(self, length: int) -> Spa:
        """Take room for a buffer, zeroed.

        Raises:
            OSError: ENOMEM.
        """
        return self.put(bytes(length))

    def put(self, data: bytes) -> Spa:
        """Put bytes where the firmware can read them (errors as ``room``)."""
        try:
            frames = self._host.frames.take(max(len(data), 1))
        except CbitError as error:
            raise OSError(errno.ENOMEM, str(error)) from None
        self._taken.append(frames)
        self._host.machine.memory.write(Spa(frames.start), data, UNENCRYPTED)
        return Spa(frames.start)

    def read(self, paddr: int, length: int) -> bytes:
        """Read what the firmware left in a buffer."""
        return self._host.machine.memory.read(Spa(paddr), length, UNENCRYPTED)


class _Error:
    """An error field that is nobody's."""

    def __init__(self, error: int) -> None:
        self.error = error


@dataclass
class Cpu:
    """A virtual CPU's registers, as after a reset until a program sets them."""

    regs: KvmRegs = field(default_factory=KvmRegs)
    sregs: KvmSregs = field(default_factory=KvmSregs)


class SevVm:
    """The memory encryption of one virtual machine, from its creation to the end of its last descriptor.

    Attributes:
        pages: where the program's pages lie in the machine.
        asid: 0 until INIT.
        handle: the firmware's; 0 until LAUNCH_START or RECEIVE_START.
        sev_fd: the caller's descriptor of /dev/sev, as that command named it: Linux issues all later ones
            through it, whatever they name, and before that takes 0 for it.
        cpus: the virtual CPUs by number, in the order in which they were made.
        regions: what the program registered.
        save_areas: frames of the virtual CPUs' save areas, encrypted.
    """

    def __init__(
        self,
        host: HostSide,
        device: SevDevice,
        *,
        rule: MemoryRule,
        is_sev: Callable[[int], bool],
        kind: int = VmType.DEFAULT,
    ) -> None:
        """Begin with a machine that has no encryption yet.

        Args:
            host: where it runs.
            device: the driver that initialises the platform when INIT needs it.
            rule: what the program's pages hold after a command has encrypted them.
            is_sev: whether a descriptor number of the caller is /dev/sev; EBADF if there is none.
            kind: the type that KVM_CREATE_VM was given.
        """
        self.host, self.device, self._is_sev, self._kind = host, device, is_sev, kind
        memory = host.machine.memory
        self.pages = ClientPages(memory, host.frames, limit=host.machine.memory_size, rule=rule)
        self.asid = self.handle = self.sev_fd = self.features = 0
        self.cpus: dict[int, Cpu] = {}
        self.save_areas: list[range] = []
        self.es = self.active = self.by_init2 = False
        self.regions: list[EncRegion] = []

    def create_vcpu(self, number: int) -> None:
        """Note that the program created a virtual CPU: INIT comes before the first one."""
        self.cpus.setdefault(number, Cpu())

    def set_registers(self, number: int, registers: KvmRegs | KvmSregs) -> None:
        """Note what the program set; raises EINVAL where there is no such virtual CPU."""
        cpu = self.cpus.get(number)
        if cpu is None:
            raise OSError(errno.EINVAL, f"there is no virtual CPU {number}")
        if isinstance(registers, KvmRegs):
            cpu.regs = registers
        else:
            cpu.sregs = registers

    def close(self) -> None:
        """End: the guest leaves its ASID and is forgotten, the frames go back."""
        if self.handle:
            self._forget(self.handle)
        if self.asid:
            self._asids().give_back(self.asid)
        if self.host.machine.is_on:
            self.host.machine.wbinvd_on_all_cores()  # the frames change hands
        self.pages.release()
        for frames in self.save_areas:
            self.host.frames.give_back(frames)
        self.save_areas.clear()
        self.regions.clear()
        self.asid = self.handle = 0
        self.active = False

    # ---- what the sub-commands are made of ----

    @property
    def key(self) -> KeyId:
        """The guest's key slot."""
        return guest_key_id(self.asid)

    def require_sev(self) -> None:
        """Refuse what needs a machine with SEV."""
        if not self.active:
            raise OSError(errno.ENOTTY, "the machine has no SEV: INIT comes first")

    def issue(self, asked: Asked, command: Command, buffer: AnyWire) -> AnyWire:
        """Run a firmware command on behalf of the caller's /dev/sev (raises FirmwareError)."""
        return _insist(*self.attempt(asked, command, buffer))

    def attempt(
        self, asked: Asked, command: Command, buffer: AnyWire
    ) -> tuple[AnyWire, FirmwareError | None]:
        """Run a firmware command and return its buffer and its refusal."""
        if not self._names_sev(self.sev_fd):
            why = f"descriptor {self.sev_fd}, which the start named, is not /dev/sev any more"
            early = "LAUNCH_START or RECEIVE_START comes first: it names the descriptor of /dev/sev"
            raise OSError(errno.EBADF, why if self.handle else early)
        return self._run(asked, command, buffer)

    def begin(self, asked: Asked, command: Command, buffer: AnyWire) -> AnyWire:
        """Run LAUNCH_START or RECEIVE_START, whose caller names the descriptor of /dev/sev (as ``issue``)."""
        if not self._names_sev(asked.command.sev_fd):
            raise OSError(errno.EBADF, f"sev_fd {asked.command.sev_fd} is not /dev/sev")
        return _insist(*self._run(asked, command, buffer))

    def bind(self, asked: Asked, handle: int, give: Callable[[], None]) -> None:
        """ACTIVATE a new guest and tell the caller its handle; forget it if either fails."""
        try:
            _insist(*self._run(asked, Command.ACTIVATE, buffers.Activate(handle=handle, asid=self.asid)))
            give()
        except BaseException:
            self._forget(handle)
            raise
        self.handle, self.sev_fd = handle, asked.command.sev_fd

    def _names_sev(self, descriptor: int) -> bool:
        try:
            return self._is_sev(descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return False

    def _run(self, asked: Asked, command: Command, buffer: AnyWire) -> tuple[AnyWire, FirmwareError | None]:
        status, why, after = self.host.ccp.attempt(command, buffer)
        asked.error = status
        return after, None if status == Status.SUCCESS else FirmwareError(command, status, why)

    def pinned(self, asked: Asked, address: int, length: int) -> tuple[bytes, list[Run]]:
        """Pin guest memory and give it frames: what is in it, and where it lies."""
        data = self.pages.pin(asked.memory, address, length)
        return data, self.pages.place(address, length)

    def _forget(self, handle: int) -> None:
        """DEACTIVATE and DECOMMISSION; a guest that is gone already (the platform was shut down) is gone."""
        request = buffers.GuestHandle(handle=handle)
        for command in (Command.DEACTIVATE, Command.DECOMMISSION):
            try:
                self.host.ccp.attempt(command, request)
            except MailboxTimeout:
                return

    def _asids(self) -> Asids:
        return self.host.es_asids if self.es else self.host.asids

    # ---- INIT ----

    def init(self, asked: Asked, *, es: bool, asked_for: KvmInit2 | None) -> None:
        """SEV_INIT, SEV_ES_INIT, INIT2: an ASID, and the platform initialised if it was not."""
        wanted = asked_for or KvmInit2()
        if self.cpus:
            raise OSError(errno.EINVAL, f"{len(self.cpus)} virtual CPUs exist: INIT comes before the first")
        if wanted.flags:
            raise OSError(errno.EINVAL, f"flags {wanted.flags:#x}: none is known")
        known = int(VMSA_FEATURES) if es else 0
        if wanted.vmsa_features & ~known:
            raise OSError(errno.EINVAL, f"vmsa_features {wanted.vmsa_features:#x}: only {known:#x} are known")
        if wanted.ghcb_version > GHCB_VERSION_MAX or (wanted.ghcb_version and not es):
            raise OSError(errno.EINVAL, f"ghcb_version {wanted.ghcb_version}: 0, or 1 and 2 with ES")
        if self.active:
            raise OSError(errno.EINVAL, "the machine has SEV already")
        asids = self.host.es_asids if es else self.host.asids
        if not asids.free:
            raise OSError(errno.EBUSY, f"no ASID is free for a guest with{'' if es else 'out'} ES")
        private = _Error(asked.error)
        try:
            self.device.initialise_on_demand(private)
            asid = asids.take()  # its flush wants a platform that is up
        except BaseException:
            asked.error = private.error  # of what goes well the caller hears nothing
            raise
        self.es, self.asid = es, asid
        self.active, self.features, self.by_init2 = True, wanted.vmsa_features, asked_for is not None

    def init_legacy(self, asked: Asked) -> None:
        """SEV_INIT and SEV_ES_INIT."""
        es = asked.command.id == KvmSevCommand.SEV_ES_INIT
        if es and not self.device.has_es:
            raise OSError(errno.ENOTTY, "this host has no ES")
        if self._kind != VmType.DEFAULT:
            raise OSError(errno.EINVAL, f"a machine of type {self._kind} is initialised by INIT2")
        self.init(asked, es=es, asked_for=None)

    def init2(self, asked: Asked) -> None:
        """INIT2."""
        if self._kind not in (VmType.SEV, VmType.SEV_ES):
            raise OSError(errno.EINVAL, f"a machine of type {self._kind} has no INIT2")
        self.init(asked, es=self._kind == VmType.SEV_ES, asked_for=asked.take(KvmInit2))


def _insist(after: AnyWire, refusal: FirmwareError | None) -> AnyWire:
    if refusal is not None:
        raise refusal
    return after
