"""KVM's requests: their numbers, the descriptors that they are made on, what the supplied KVM does with each.

A request's number says how its argument is used::

    31 the program gets bytes | 30 it gives bytes | 29 … 16 how many | 15 … 8 type 0xAE | 7 … 0 number

Layouts and numbers: linux, linux/kvm.h and asm/kvm.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from errno import EINVAL, ENOENT, ENXIO
from types import MappingProxyType
from typing import Final, NamedTuple

from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
)

TYPE: Final = 0xAE  #: bits 8 … 15 of every request of KVM

KVM_GET_API_VERSION: Final = 0xAE00
KVM_CREATE_VM: Final = 0xAE01
KVM_GET_MSR_INDEX_LIST: Final = 0xC004AE02
KVM_CHECK_EXTENSION: Final = 0xAE03
KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
KVM_GET_SUPPORTED_CPUID: Final = 0xC008AE05
KVM_X86_GET_MCE_CAP_SUPPORTED: Final = 0x8008AE9D
KVM_CREATE_VCPU: Final = 0xAE41
KVM_GET_DIRTY_LOG: Final = 0x4010AE42
KVM_SET_USER_MEMORY_REGION: Final = 0x4020AE46
KVM_CREATE_IRQCHIP: Final = 0xAE60
KVM_GET_IRQCHIP: Final = 0xC208AE62
KVM_SET_IRQCHIP: Final = 0x8208AE63
KVM_SET_GSI_ROUTING: Final = 0x4008AE6A
KVM_ENABLE_CAP: Final = 0x4068AEA3
KVM_RUN: Final = 0xAE80
KVM_X86_SETUP_MCE: Final = 0x4008AE9C
KVM_SET_REGS: Final = 0x4090AE82
KVM_SET_SREGS: Final = 0x4138AE84
KVM_GET_MSRS: Final = 0xC008AE88
KVM_SET_MSRS: Final = 0x4008AE89
KVM_SET_CPUID2: Final = 0x4008AE90
KVM_GET_CPUID2: Final = 0xC008AE91

KVM: Final = "/dev/kvm"
KVM_VM: Final = "anon_inode:kvm-vm"
KVM_VCPU: Final = "anon_inode:kvm-vcpu"

ENCRYPTION_REQUESTS: Final = (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
)


class Does(StrEnum):
    """What the supplied KVM does with a request."""

    ANSWERS = "answers"  #: as the kernel does
    KEEPS = "keeps"  #: bytes, or a number: what was set is what is got, and nothing else happens
    REFUSES = "refuses"  #: with ENOTTY


class Cap(IntEnum):
    """Capabilities that KVM_CHECK_EXTENSION is asked about, without the header's KVM_CAP_."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    DESTROY_MEMORY_REGION_WORKS = 21
    IRQ_ROUTING = 25
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    XSAVE = 55
    XCRS = 56
    MAX_VCPUS = 66
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IOEVENTFD_ANY_LENGTH = 122
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    VM_TYPES = 235


class Need(NamedTuple):
    """What a machine has to have before a request, by the name of a state, and the error where it has not."""

    state: str
    error: int


@dataclass(frozen=True, slots=True)
class Row:
    """One request.

    Attributes:
        name: the header's.
        on: which descriptors it is made on.
        does: what is done.
        about: of a request that keeps: what, under one name where it is set and where it is got; of one that
            is refused: why.
        need: what has to be there before.
        once: a second time is EEXIST.
    """

    name: str
    on: tuple[str, ...]
    does: Does
    about: str = ""
    need: Need | None = None
    once: bool = False


#: State of a machine that has them.
CHIPS: Final = "interrupt controllers"
_TIMER: Final = "timer"
_NEW: Final = (KVM,)
_VM: Final = (KVM_VM,)
_CPU: Final = (KVM_VCPU,)

REQUESTS: Final[Mapping[int, Row]] = MappingProxyType(
    {
        KVM_GET_API_VERSION: Row("KVM_GET_API_VERSION", _NEW, Does.ANSWERS),
        KVM_CREATE_VM: Row("KVM_CREATE_VM", _NEW, Does.ANSWERS),
        KVM_GET_MSR_INDEX_LIST: Row("KVM_GET_MSR_INDEX_LIST", _NEW, Does.ANSWERS),
        KVM_CHECK_EXTENSION: Row("KVM_CHECK_EXTENSION", (KVM, KVM_VM), Does.ANSWERS),
        KVM_GET_VCPU_MMAP_SIZE: Row("KVM_GET_VCPU_MMAP_SIZE", _NEW, Does.ANSWERS),
        KVM_GET_SUPPORTED_CPUID: Row("KVM_GET_SUPPORTED_CPUID", _NEW, Does.ANSWERS),
        KVM_X86_GET_MCE_CAP_SUPPORTED: Row("KVM_X86_GET_MCE_CAP_SUPPORTED", _NEW, Does.ANSWERS),
        KVM_CREATE_VCPU: Row("KVM_CREATE_VCPU", _VM, Does.ANSWERS),
        KVM_GET_DIRTY_LOG: Row("KVM_GET_DIRTY_LOG", _VM, Does.ANSWERS),
        KVM_SET_USER_MEMORY_REGION: Row("KVM_SET_USER_MEMORY_REGION", _VM, Does.ANSWERS),
        0x0000AE47: Row("KVM_SET_TSS_ADDR", _VM, Does.KEEPS, "task segment's place"),
        0x4008AE48: Row("KVM_SET_IDENTITY_MAP_ADDR", _VM, Does.KEEPS, "identity map's place"),
        KVM_CREATE_IRQCHIP: Row("KVM_CREATE_IRQCHIP", _VM, Does.ANSWERS, CHIPS, once=True),
        0x4008AE61: Row("KVM_IRQ_LINE", _VM, Does.KEEPS, "line", Need(CHIPS, ENXIO)),
        KVM_GET_IRQCHIP: Row("KVM_GET_IRQCHIP", _VM, Does.ANSWERS, need=Need(CHIPS, ENXIO)),
        KVM_SET_IRQCHIP: Row("KVM_SET_IRQCHIP", _VM, Does.ANSWERS, need=Need(CHIPS, ENXIO)),
        KVM_SET_GSI_ROUTING: Row("KVM_SET_GSI_ROUTING", _VM, Does.ANSWERS, need=Need(CHIPS, EINVAL)),
        0x4040AE77: Row("KVM_CREATE_PIT2", _VM, Does.KEEPS, _TIMER, Need(CHIPS, ENOENT), once=True),
        0x8070AE9F: Row("KVM_GET_PIT2", _VM, Does.KEEPS, "timer's state", Need(_TIMER, ENXIO)),
        0x4070AEA0: Row("KVM_SET_PIT2", _VM, Does.KEEPS, "timer's state", Need(_TIMER, ENXIO)),
        0x4040AE79: Row("KVM_IOEVENTFD", _VM, Does.KEEPS, "whom to notify"),
        0x4030AE7B: Row("KVM_SET_CLOCK", _VM, Does.KEEPS, "clock"),
        0x8030AE7C: Row("KVM_GET_CLOCK", _VM, Does.KEEPS, "clock"),
        0x4020AE76: Row("KVM_IRQFD", _VM, Does.KEEPS, "whom to hear", Need(CHIPS, EINVAL)),
        0x4020AEA5: Row("KVM_SIGNAL_MSI", _VM, Does.KEEPS, "message", Need(CHIPS, EINVAL)),
        KVM_ENABLE_CAP: Row(
            "KVM_ENABLE_CAP", (KVM_VM, KVM_VCPU), Does.REFUSES, "nothing that could be switched on is there"
        ),
        0x0000AECE: Row("KVM_GET_STATS_FD", (KVM_VM, KVM_VCPU), Does.REFUSES, "no statistics are kept"),
        KVM_MEMORY_ENCRYPT_OP: Row("KVM_MEMORY_ENCRYPT_OP", _VM, Does.ANSWERS),
        KVM_MEMORY_ENCRYPT_REG_REGION: Row("KVM_MEMORY_ENCRYPT_REG_REGION", _VM, Does.ANSWERS),
        KVM_MEMORY_ENCRYPT_UNREG_REGION: Row("KVM_MEMORY_ENCRYPT_UNREG_REGION", _VM, Does.ANSWERS),
        KVM_RUN: Row("KVM_RUN", _CPU, Does.ANSWERS),
        0x0000AEA3: Row("KVM_GET_TSC_KHZ", _CPU, Does.REFUSES, "its time-stamp counter stands still"),
        0x8090AE81: Row("KVM_GET_REGS", _CPU, Does.KEEPS, "registers"),
        KVM_SET_REGS: Row("KVM_SET_REGS", _CPU, Does.KEEPS, "registers"),
        0x8138AE83: Row("KVM_GET_SREGS", _CPU, Does.KEEPS, "special registers"),
        KVM_SET_SREGS: Row("KVM_SET_SREGS", _CPU, Does.KEEPS, "special registers"),
        KVM_GET_MSRS: Row("KVM_GET_MSRS", _CPU, Does.ANSWERS),
        KVM_SET_MSRS: Row("KVM_SET_MSRS", _CPU, Does.ANSWERS),
        0x81A0AE8C: Row("KVM_GET_FPU", _CPU, Does.KEEPS, "x87 and SSE state"),
        0x41A0AE8D: Row("KVM_SET_FPU", _CPU, Does.KEEPS, "x87 and SSE state"),
        0x8400AE8E: Row("KVM_GET_LAPIC", _CPU, Does.KEEPS, "local APIC", Need(CHIPS, EINVAL)),
        0x4400AE8F: Row("KVM_SET_LAPIC", _CPU, Does.KEEPS, "local APIC", Need(CHIPS, EINVAL)),
        KVM_SET_CPUID2: Row("KVM_SET_CPUID2", _CPU, Does.ANSWERS),
        KVM_GET_CPUID2: Row("KVM_GET_CPUID2", _CPU, Does.ANSWERS),
        0xC028AE92: Row("KVM_TPR_ACCESS_REPORTING", _CPU, Does.KEEPS, "reports of priority"),
        0x4008AE93: Row("KVM_SET_VAPIC_ADDR", _CPU, Does.KEEPS, "page of priority"),
        0x8004AE98: Row("KVM_GET_MP_STATE", _CPU, Does.KEEPS, "run state"),
        0x4004AE99: Row("KVM_SET_MP_STATE", _CPU, Does.KEEPS, "run state"),
        KVM_X86_SETUP_MCE: Row("KVM_X86_SETUP_MCE", _CPU, Does.ANSWERS),
        0x8040AE9F: Row("KVM_GET_VCPU_EVENTS", _CPU, Does.KEEPS, "events"),
        0x4040AEA0: Row("KVM_SET_VCPU_EVENTS", _CPU, Does.KEEPS, "events"),
        0x8080AEA1: Row("KVM_GET_DEBUGREGS", _CPU, Does.KEEPS, "debug registers"),
        0x4080AEA2: Row("KVM_SET_DEBUGREGS", _CPU, Does.KEEPS, "debug registers"),
        0x9000AEA4: Row("KVM_GET_XSAVE", _CPU, Does.KEEPS, "extended state"),
        0x5000AEA5: Row("KVM_SET_XSAVE", _CPU, Does.KEEPS, "extended state"),
        0x8188AEA6: Row("KVM_GET_XCRS", _CPU, Does.KEEPS, "extended control"),
        0x4188AEA7: Row("KVM_SET_XCRS", _CPU, Does.KEEPS, "extended control"),
    }
)


def requests_on(link: str) -> Iterator[int]:
    """Yield the numbers of the requests on a kind of descriptor."""
    return (number for number, row in REQUESTS.items() if link in row.on)


def argument_size(request: int) -> int:
    """Return how many bytes a request's argument points at, 0 if it is a number."""
    return request >> 16 & 0x3FFF


def gives(request: int) -> bool:
    """Tell whether the program gives bytes with a request, and does not get them."""
    return bool(request >> 30 & 1)
