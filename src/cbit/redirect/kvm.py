"""The KVM that cbit supplies where there is none: virtual machines that can be launched, and do not run.

    /dev/kvm ── KVM_CREATE_VM ──> a machine ── KVM_CREATE_VCPU ──> a processor
                                     └── memory-encryption requests: the device behind (``behind``)

It keeps the books as the kernel does (slots of memory, numbers of processors), refuses what the kernel
refuses, and answers KVM_RUN with EOPNOTSUPP: nothing here executes a guest; ``cbit run`` does.

MODEL CHOICE: what this KVM can do: 64 processors and 509 slots of memory a machine, of the extensions the
ones that its requests stand for; KVM_RUN ends with EOPNOTSUPP.

Paper: sev-api.md §13.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client, Give, Memory
from cbit.redirect.files import (
    ENCRYPTION_REQUESTS,
    KVM,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_SET_USER_MEMORY_REGION,
    KVM_VCPU,
    KVM_VM,
    REQUEST_NAMES,
)
from cbit.spec.address import PAGE
from cbit.trace import Trace

PART: Final = "driver"
API_VERSION: Final = 12
SLOTS: Final = 509
PROCESSORS: Final = 64
RUN_SIZE: Final = 3 * PAGE  #: of the area that a program maps for each processor
#: Types of machines that can be made: default, SEV, SEV-ES (linux: asm/kvm.h).
TYPES: Final = frozenset({0, 2, 3})

#: KVM_CHECK_EXTENSION: number, and what it says; 0 to all others.
EXTENSIONS: Final[Mapping[int, int]] = {
    3: 1,  # USER_MEMORY
    9: PROCESSORS,  # NR_VCPUS
    10: SLOTS,  # NR_MEMSLOTS
    21: 1,  # DESTROY_MEMORY_REGION_WORKS
    30: 1,  # JOIN_MEMORY_REGIONS_WORKS
    66: PROCESSORS,  # MAX_VCPUS
    81: 1,  # READONLY_MEM
    128: PROCESSORS,  # MAX_VCPU_ID
    235: sum(1 << kind for kind in TYPES),  # VM_TYPES
}

_REGION: Final = struct.Struct("<IIQQQ")  #: slot, flags, guest-physical address, size, address
_FLAGS: Final = 0b11  #: log dirty pages, read-only
_TOP: Final = 1 << 47  #: addresses of programs end here


@dataclass(frozen=True, slots=True)
class Slot:
    """Guest memory that is a piece of the program's."""

    gpa: int
    size: int
    address: int
    flags: int


@dataclass(eq=False)
class Vm:
    """One machine; changes.

    Attributes:
        behind: the handle of the device that answers memory-encryption requests.
    """

    behind: Any
    slots: dict[int, Slot] = field(default_factory=dict)
    processors: set[int] = field(default_factory=set)


class SuppliedKvm:
    """The devices of a KVM of ours.

    Attributes:
        devices: one for each kind of descriptor.
    """

    def __init__(self, behind: AnyDevice, trace: Trace) -> None:
        """Put it in front of the device that answers memory-encryption requests."""
        refuses = _Refuses(trace)
        self.devices: Mapping[str, AnyDevice] = {
            KVM: _System(behind, refuses),
            KVM_VM: _Machine(behind, refuses),
            KVM_VCPU: _Processor(refuses),
        }


class _Refuses:
    """Raises what a program gets, and tells why."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(self, what: str, number: int, why: str) -> NoReturn:
        self._trace.emit(PART, what, why, errno=errno.errorcode[number])
        raise OSError(number, why)


class _System:
    def __init__(self, behind: AnyDevice, refuses: _Refuses) -> None:
        self._behind, self._refuses = behind, refuses

    def open(self, client: Client, *, writable: bool) -> Client:
        return client

    def ioctl(self, handle: Client, request: int, argument: int, memory: Memory) -> int | Give:
        if request == KVM_CHECK_EXTENSION:
            return EXTENSIONS.get(argument, 0)
        if request == KVM_CREATE_VM:
            return self._create(handle, argument, memory)
        if argument:
            self._refuses(REQUEST_NAMES[request], errno.EINVAL, f"argument {argument:#x}: it has none")
        return {KVM_GET_API_VERSION: API_VERSION, KVM_GET_VCPU_MMAP_SIZE: RUN_SIZE}[request]

    def close(self, handle: Client) -> None:
        """Its machines have descriptors of their own."""

    def _create(self, client: Client, kind: int, memory: Memory) -> Give:
        if kind not in TYPES:
            self._refuses("KVM_CREATE_VM", errno.EINVAL, f"type {kind:#x} is none of {sorted(TYPES)}")
        behind = self._behind.open(client, writable=True)
        try:
            _announce(self._behind, behind, KVM_CREATE_VM, kind, memory)
        except BaseException:
            self._behind.close(behind)
            raise
        return Give(KVM_VM, Vm(behind))


class _Machine:
    def __init__(self, behind: AnyDevice, refuses: _Refuses) -> None:
        self._behind, self._refuses = behind, refuses

    def open(self, client: Client, *, writable: bool) -> NoReturn:
        raise OSError(errno.ENODEV, "a virtual machine is made by KVM_CREATE_VM")

    def ioctl(self, handle: Vm, request: int, argument: int, memory: Memory) -> int | Give:
        if request in ENCRYPTION_REQUESTS:
            return self._behind.ioctl(handle.behind, request, argument, memory)
        if request == KVM_CHECK_EXTENSION:
            return EXTENSIONS.get(argument, 0)
        if request == KVM_CREATE_VCPU:
            return self._create(handle, argument, memory)
        assert request == KVM_SET_USER_MEMORY_REGION
        try:
            region = memory.read(argument, _REGION.size)
        except OSError as fault:
            what = REQUEST_NAMES[request]
            self._refuses(
                what, fault.errno or errno.EFAULT, fault.strerror or "the caller has no such memory"
            )
        self._set(handle, region)
        return 0

    def close(self, handle: Vm) -> None:
        self._behind.close(handle.behind)

    def _create(self, vm: Vm, number: int, memory: Memory) -> Give:
        what = "KVM_CREATE_VCPU"
        if number >= PROCESSORS:
            self._refuses(what, errno.EINVAL, f"processor {number:#x}: there are {PROCESSORS} at most")
        if number in vm.processors:
            self._refuses(what, errno.EEXIST, f"processor {number} is there already")
        _announce(self._behind, vm.behind, KVM_CREATE_VCPU, number, memory)
        vm.processors.add(number)
        return Give(KVM_VCPU, number, size=RUN_SIZE)

    def _set(self, vm: Vm, region: bytes) -> None:
        """Add, change or take away a slot; the checks in the kernel's order."""
        number, flags, gpa, size, address = _REGION.unpack(region)

        def refuse(code: int, why: str) -> NoReturn:
            self._refuses("KVM_SET_USER_MEMORY_REGION", code, f"slot {number}: {why}")

        if flags & ~_FLAGS:
            refuse(errno.EINVAL, f"flags {flags:#x}: bits 0 and 1 are known")
        for name, value in (("size", size), ("guest address", gpa), ("address", address)):
            if value % PAGE:
                refuse(errno.EINVAL, f"{name} {value:#x} is no multiple of 4 KiB")
        if address + size > _TOP:
            refuse(errno.EINVAL, f"address {address:#x} is no program's")
        if number >= SLOTS:
            refuse(errno.EINVAL, f"there are {SLOTS}")
        old = vm.slots.get(number)
        if size == 0:
            if old is None:
                refuse(errno.EINVAL, "it is taken away and was not there")
            del vm.slots[number]
            return
        if gpa + size > 1 << 64:
            refuse(errno.EINVAL, f"guest address {gpa:#x} wraps around")
        if old is not None and (size != old.size or address != old.address or (flags ^ old.flags) & 0b10):
            refuse(errno.EINVAL, "its size, address and read-only flag cannot change: take it away first")
        for other, slot in vm.slots.items():
            if other != number and gpa < slot.gpa + slot.size and slot.gpa < gpa + size:
                refuse(errno.EEXIST, f"slot {other} has memory there already")
        vm.slots[number] = Slot(gpa, size, address, flags)


class _Processor:
    def __init__(self, refuses: _Refuses) -> None:
        self._refuses = refuses

    def open(self, client: Client, *, writable: bool) -> NoReturn:
        raise OSError(errno.ENODEV, "a virtual processor is made by KVM_CREATE_VCPU")

    def ioctl(self, handle: int, request: int, argument: int, memory: Memory) -> int:
        self._refuses("KVM_RUN", errno.EOPNOTSUPP, "this KVM launches guests and runs none; cbit run does")

    def close(self, handle: int) -> None:
        """Its machine keeps the books."""


def _announce(behind: AnyDevice, handle: Any, request: int, argument: int, memory: Memory) -> None:
    """Tell the device behind what has been made; raises what it refuses with."""
    result = behind.ioctl(handle, request, argument, memory)
    if isinstance(result, int) and result < 0:
        raise OSError(-result, "the machine's memory encryption refuses it")
