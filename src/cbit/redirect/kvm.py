"""The KVM that cbit supplies where there is none: virtual machines that can be launched, and do not run.

    /dev/kvm ── KVM_CREATE_VM ──> a machine ── KVM_CREATE_VCPU ──> a processor
                                     └── memory-encryption requests: the device behind (``behind``)

It keeps the books as the kernel does (slots of memory, numbers of processors, what their registers were set
to), refuses what the kernel refuses, and answers KVM_RUN with EOPNOTSUPP: nothing here executes a guest;
``cbit run`` does.  ``kvm_requests.REQUESTS`` says what is done with each request.

MODEL CHOICE: what this KVM can do: 64 processors and 509 slots of memory a machine, of the extensions the
ones that its requests stand for; KVM_RUN ends with EOPNOTSUPP.

Paper: sev-api.md §13.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

from cbit.driver.caller_memory import CallerMemory
from cbit.redirect import kvm_chips as chips
from cbit.redirect import kvm_cpu as cpu
from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client, Give, Told
from cbit.redirect.kvm_cpu import Asked, Refuses, State, Vcpu, keep
from cbit.redirect.kvm_requests import (
    ENCRYPTION_REQUESTS,
    KVM,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_ENABLE_CAP,
    KVM_GET_API_VERSION,
    KVM_GET_CPUID2,
    KVM_GET_DIRTY_LOG,
    KVM_GET_IRQCHIP,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_RUN,
    KVM_SET_CPUID2,
    KVM_SET_GSI_ROUTING,
    KVM_SET_IRQCHIP,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_USER_MEMORY_REGION,
    KVM_VCPU,
    KVM_VM,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KVM_X86_SETUP_MCE,
    Cap,
    Does,
)
from cbit.spec.address import MIB, PAGE
from cbit.trace import Trace

API_VERSION: Final = 12
SLOTS: Final = 509
SLOT_PAGES: Final = (1 << 31) - 1  #: of one slot
PROCESSORS: Final = 64
RUN_SIZE: Final = 3 * PAGE  #: of the area that a program maps for each processor
#: Types of machines that can be made: default, SEV, SEV-ES (linux: asm/kvm.h).
TYPES: Final = frozenset({0, 2, 3})

#: KVM_CHECK_EXTENSION: what it says; 0 of all others.
EXTENSIONS: Final[Mapping[int, int]] = {
    Cap.IRQCHIP: 1,
    Cap.USER_MEMORY: 1,
    Cap.SET_TSS_ADDR: 1,
    Cap.EXT_CPUID: 1,
    Cap.NR_VCPUS: PROCESSORS,
    Cap.NR_MEMSLOTS: SLOTS,
    Cap.MP_STATE: 1,
    Cap.DESTROY_MEMORY_REGION_WORKS: 1,
    Cap.IRQ_ROUTING: chips.ROUTES,
    Cap.JOIN_MEMORY_REGIONS_WORKS: 1,
    Cap.MCE: cpu.MCE_BANKS,
    Cap.IRQFD: 1,
    Cap.PIT2: 1,
    Cap.PIT_STATE2: 1,
    Cap.IOEVENTFD: 1,
    Cap.SET_IDENTITY_MAP_ADDR: 1,
    Cap.ADJUST_CLOCK: 1,
    Cap.VCPU_EVENTS: 1,
    Cap.DEBUGREGS: 1,
    Cap.XSAVE: 1,
    Cap.XCRS: 1,
    Cap.MAX_VCPUS: PROCESSORS,
    Cap.SIGNAL_MSI: 1,
    Cap.READONLY_MEM: 1,
    Cap.IOEVENTFD_ANY_LENGTH: 1,
    Cap.MAX_VCPU_ID: PROCESSORS,
    Cap.VM_TYPES: sum(1 << kind for kind in TYPES),
    # Of guests that run; hypervisors insist on them, and none is ever put to the test:
    Cap.INTERNAL_ERROR_DATA: 1,
    Cap.X86_ROBUST_SINGLESTEP: 1,
    Cap.IMMEDIATE_EXIT: 1,
}

_REGION: Final = struct.Struct("<IIQQQ")  #: slot, flags, guest-physical address, size, address
_DIRTY: Final = struct.Struct("<IIQ")  #: slot, padding, address of a bitmap
_LOGGED: Final = 0b01
_READ_ONLY: Final = 0b10
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
        slots: its memory.
        processors: the numbers of those that were made.
        state: what requests set, by name; what is not named is zero.
    """

    behind: Any
    slots: dict[int, Slot] = field(default_factory=dict)
    processors: set[int] = field(default_factory=set)
    state: State = field(default_factory=lambda: {"timer's state": chips.reset_timer()})


class SuppliedKvm:
    """The devices of a KVM of ours.

    Attributes:
        devices: one for each kind of descriptor.
    """

    def __init__(self, behind: AnyDevice, trace: Trace) -> None:
        """Put it in front of the device that answers memory-encryption requests."""
        refuses = Refuses(trace)
        self.devices: Mapping[str, AnyDevice] = {
            KVM: _System(behind, refuses),
            KVM_VM: _Machine(behind, refuses),
            KVM_VCPU: _Processor(behind, refuses),
        }


class _System:
    def __init__(self, behind: AnyDevice, refuses: Refuses) -> None:
        self._behind, self._refuses = behind, refuses

    def open(self, client: Client, *, writable: bool) -> Client:
        return client

    def ioctl(self, handle: Client, request: int, argument: int, memory: CallerMemory) -> int | Give:
        if request == KVM_CREATE_VM:
            return self._create(handle, argument, memory)
        return _SYSTEM[request](Asked(request, argument, memory, self._refuses))

    def close(self, handle: Client) -> None:
        """Its machines have descriptors of their own."""

    def _create(self, client: Client, kind: int, memory: CallerMemory) -> Give:
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
    def __init__(self, behind: AnyDevice, refuses: Refuses) -> None:
        self._behind, self._refuses = behind, refuses

    def open(self, client: Client, *, writable: bool) -> NoReturn:
        raise OSError(errno.ENODEV, "a virtual machine is made by KVM_CREATE_VM")

    def ioctl(self, handle: Vm, request: int, argument: int, memory: CallerMemory) -> int | Give:
        if request in ENCRYPTION_REQUESTS:
            return self._behind.ioctl(handle.behind, request, argument, memory)
        if request == KVM_CREATE_VCPU:
            return self._create(handle, argument, memory)
        asked = Asked(request, argument, memory, self._refuses)
        return _do(handle, asked, handle.state, handle.state, _MACHINE)

    def close(self, handle: Vm) -> None:
        self._behind.close(handle.behind)

    def _create(self, vm: Vm, number: int, memory: CallerMemory) -> Give:
        what = "KVM_CREATE_VCPU"
        if number >= PROCESSORS:
            self._refuses(what, errno.EINVAL, f"processor {number:#x}: there are {PROCESSORS} at most")
        if number in vm.processors:
            self._refuses(what, errno.EEXIST, f"processor {number} is there already")
        _announce(self._behind, vm.behind, KVM_CREATE_VCPU, number, memory)
        vm.processors.add(number)
        return Give(KVM_VCPU, cpu.after_reset(number, vm.state, vm.behind), size=RUN_SIZE)


class _Processor:
    def __init__(self, behind: AnyDevice, refuses: Refuses) -> None:
        self._behind, self._refuses = behind, refuses

    def open(self, client: Client, *, writable: bool) -> NoReturn:
        raise OSError(errno.ENODEV, "a virtual processor is made by KVM_CREATE_VCPU")

    def ioctl(self, handle: Vcpu, request: int, argument: int, memory: CallerMemory) -> int:
        asked = Asked(request, argument, memory, self._refuses)
        result = _do(handle, asked, handle.state, handle.of_machine, _PROCESSOR)
        if request in _MEASURED:
            registers = Told(handle.state[asked.row.about])
            _announce(self._behind, handle.behind, request, handle.number, registers)
        return result

    def close(self, handle: Vcpu) -> None:
        """Its machine keeps the books."""


Handle = TypeVar("Handle", Vm, Vcpu)


def _do(
    handle: Handle,
    asked: Asked,
    state: State,
    of_machine: State,
    answers: Mapping[int, Callable[[Handle, Asked], int]],
) -> int:
    """Do what the table says of a request."""
    row = asked.row
    if row.does is Does.REFUSES:
        asked.refuse(errno.ENOTTY, f"{_which(asked)}{row.about}")
    if row.need and row.need.state not in of_machine:
        asked.refuse(row.need.error, f"the machine has no {row.need.state}")
    if row.once and row.about in state:
        asked.refuse(errno.EEXIST, f"the machine has its {row.about} already")
    return answers[asked.request](handle, asked) if row.does is Does.ANSWERS else keep(state, asked)


def _which(asked: Asked) -> str:
    """Name the capability that a program wants to switch on; nothing of another request."""
    if asked.request != KVM_ENABLE_CAP:
        return ""
    return f"capability {int.from_bytes(asked.read(4), 'little')}: "


def _says(number: int) -> Callable[[Asked], int]:
    """Answer with a number; a request without an argument."""

    def answer(asked: Asked) -> int:
        if asked.argument:
            asked.refuse(errno.EINVAL, f"argument {asked.argument:#x}: it has none")
        return number

    return answer


def _check_extension(asked: Asked) -> int:
    return EXTENSIONS.get(asked.argument, 0)


def _set_region(vm: Vm, asked: Asked) -> int:
    """Add, change or take away a slot; the checks in the kernel's order."""
    number, flags, gpa, size, address = _REGION.unpack(asked.read(_REGION.size))

    def refuse(code: int, why: str) -> NoReturn:
        asked.refuse(code, f"slot {number}: {why}")

    if flags & ~(_LOGGED | _READ_ONLY):
        refuse(errno.EINVAL, f"flags {flags:#x}: bits 0 and 1 are known")
    for name, value in (("size", size), ("guest address", gpa), ("address", address)):
        if value % PAGE:
            refuse(errno.EINVAL, f"{name} {value:#x} is no multiple of 4 KiB")
    if address + size > _TOP:
        refuse(errno.EINVAL, f"address {address:#x} is no program's")
    if number >= SLOTS:
        refuse(errno.EINVAL, f"there are {SLOTS}")
    if size // PAGE > SLOT_PAGES:
        refuse(errno.EINVAL, f"size {size:#x}: {SLOT_PAGES} pages at most")
    old = vm.slots.get(number)
    if size == 0:
        if old is None:
            refuse(errno.EINVAL, "it is taken away and was not there")
        del vm.slots[number]
        return 0
    if gpa + size > 1 << 64:
        refuse(errno.EINVAL, f"guest address {gpa:#x} wraps around")
    if old is not None and (size != old.size or address != old.address or (flags ^ old.flags) & _READ_ONLY):
        refuse(errno.EINVAL, "its size, address and read-only flag cannot change: take it away first")
    for other, slot in vm.slots.items():
        if other != number and gpa < slot.gpa + slot.size and slot.gpa < gpa + size:
            refuse(errno.EEXIST, f"slot {other} has memory there already")
    vm.slots[number] = Slot(gpa, size, address, flags)
    return 0


def _dirty_log(vm: Vm, asked: Asked) -> int:
    """Say which pages of a slot the guest has written to: none, for it does not run."""
    number, _, address = _DIRTY.unpack(asked.read(_DIRTY.size))
    slot = vm.slots.get(number)
    if slot is None or not slot.flags & _LOGGED:
        asked.refuse(errno.ENOENT, f"slot {number}: no log is kept of it")
    length = -(-slot.size // (PAGE * 64)) * 8
    for at in range(0, length, MIB):
        asked.write_to(address + at, bytes(min(MIB, length - at)))
    return 0


def _create_chips(vm: Vm, asked: Asked) -> int:
    """Make the interrupt controllers, which come before the processors."""
    if vm.processors:
        asked.refuse(errno.EINVAL, f"{len(vm.processors)} processors are there: they come after it")
    vm.state |= chips.reset_chips()
    return keep(vm.state, asked)


def _run(_vcpu: Vcpu, asked: Asked) -> NoReturn:
    asked.refuse(errno.EOPNOTSUPP, "this KVM launches guests and runs none; cbit run does")


#: What they set is in a processor's save area, which the device behind makes.
_MEASURED: Final = frozenset({KVM_SET_REGS, KVM_SET_SREGS})

_SYSTEM: Final[Mapping[int, Callable[[Asked], int]]] = {
    KVM_GET_API_VERSION: _says(API_VERSION),
    KVM_GET_MSR_INDEX_LIST: cpu.msr_index_list,
    KVM_CHECK_EXTENSION: _check_extension,
    KVM_GET_VCPU_MMAP_SIZE: _says(RUN_SIZE),
    KVM_GET_SUPPORTED_CPUID: cpu.supported_cpuid,
    KVM_X86_GET_MCE_CAP_SUPPORTED: cpu.mce_capabilities,
}
_MACHINE: Final[Mapping[int, Callable[[Vm, Asked], int]]] = {
    KVM_CHECK_EXTENSION: lambda _, asked: _check_extension(asked),
    KVM_GET_DIRTY_LOG: _dirty_log,
    KVM_SET_USER_MEMORY_REGION: _set_region,
    KVM_CREATE_IRQCHIP: _create_chips,
    KVM_GET_IRQCHIP: lambda vm, asked: chips.get_chip(vm.state, asked),
    KVM_SET_IRQCHIP: lambda vm, asked: chips.set_chip(vm.state, asked),
    KVM_SET_GSI_ROUTING: lambda _, asked: chips.set_routing(asked),
}
_PROCESSOR: Final[Mapping[int, Callable[[Vcpu, Asked], int]]] = {
    KVM_RUN: _run,
    KVM_GET_MSRS: cpu.get_msrs,
    KVM_SET_MSRS: cpu.set_msrs,
    KVM_SET_CPUID2: cpu.set_cpuid2,
    KVM_GET_CPUID2: cpu.get_cpuid2,
    KVM_X86_SETUP_MCE: cpu.setup_mce,
}


def _announce(behind: AnyDevice, handle: Any, request: int, argument: int, memory: CallerMemory) -> None:
    """Tell the device behind what has been made; raises what it refuses with."""
    result = behind.ioctl(handle, request, argument, memory)
    if isinstance(result, int) and result < 0:
        raise OSError(-result, "the machine's memory encryption refuses it")
