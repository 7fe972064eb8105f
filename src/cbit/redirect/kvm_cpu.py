"""A virtual processor of the supplied KVM: it keeps what programs set, and runs nothing.

MODEL CHOICE: what it can be: an x86-64 processor with AVX2 that is told of no KVM, and the model-specific
registers of one.

Layouts: linux, asm/kvm.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn

from cbit.cpu.cpuid import Registers
from cbit.driver.caller_memory import CallerMemory
from cbit.driver.kvm_registers import KvmRegs, KvmSregs
from cbit.redirect.kvm_requests import CHIPS, REQUESTS, argument_size, gives
from cbit.trace import Trace

PART: Final = "driver"
MOST_LEAVES: Final = 256  #: of CPUID, in one request
MOST_MSRS: Final = 255

_COUNT: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<II")  #: of kvm_cpuid2 and kvm_msrs: how many, padding
_CPUID: Final = struct.Struct("<7I12x")  #: leaf, index, flags, EAX, EBX, ECX, EDX
_MSR: Final = struct.Struct("<I4xQ")  #: which, value
_INDEX_COUNTS: Final = 1  #: flag of a leaf that has several entries


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_VENDOR: Final = Registers(0, *(int.from_bytes(part, "little") for part in (b"Auth", b"cAMD", b"enti")))
#: Leaf 1: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1 and .2, x2APIC, MOVBE, POPCNT, AES, XSAVE,
#: AVX, F16C, RDRAND, and that it is a guest; what every x86-64 processor has.
_LEAF_1: Final = Registers(
    0, 0, _bits(0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30, 31), 0x078B_FBFF
)
#: Leaf 7: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA; UMIP,
#: VAES, VPCLMULQDQ, RDPID; FSRM.
_LEAF_7: Final = Registers(
    0, _bits(0, 3, 5, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29), _bits(2, 9, 10, 22), _bits(4)
)
#: Leaf 8000_0001: LAHF, several cores, CR8, LZCNT, SSE4A, unaligned SSE, PREFETCHW, OSVW, topology; SYSCALL,
#: NX, MMX+, FXSR+, pages of a GiB, RDTSCP, 64 bits.
_LEAF_8000_0001: Final = Registers(
    0, 0, _bits(0, 1, 4, 5, 6, 7, 8, 9, 22), _bits(11, 20, 22, 23, 24, 25, 26, 27, 29)
)
#: By leaf and index; the extended state is that of x87, SSE (832 bytes with the header) and AVX (256 at 576).
SUPPORTED_CPUID: Final[Mapping[tuple[int, int], Registers]] = MappingProxyType(
    {
        (0x0, 0): _VENDOR._replace(eax=0xD),
        (0x1, 0): _LEAF_1,
        (0x7, 0): _LEAF_7,
        (0xD, 0): Registers(7, 832, 832, 0),
        (0xD, 1): Registers(_bits(0, 1, 2), 832, 0, 0),  # XSAVEOPT, XSAVEC, XGETBV1
        (0xD, 2): Registers(256, 576, 0, 0),
        (0x8000_0000, 0): _VENDOR._replace(eax=0x8000_0008),
        (0x8000_0001, 0): _LEAF_8000_0001,
        (0x8000_0008, 0): Registers(0x3030, _bits(0, 2, 9, 12), 0, 0),  # CLZERO, XSAVEERPTR, WBNOINVD, IBPB
    }
)
_INDEXED: Final = frozenset({0x7, 0xD})

MCE_BANKS: Final = 32
_MCE: Final = 1 << 8 | 1 << 24  #: a control register, recovery
_APIC_BASE, _MCG_CAP, _PAT = 0x1B, 0x179, 0x277
#: Registers that are kept: time-stamp counter, SYSENTER, PAT; STAR … SFMASK, KERNEL_GS_BASE, TSC_AUX.
MSRS: Final = (0x10, 0x174, 0x175, 0x176, _PAT, *range(0xC000_0081, 0xC000_0085), 0xC000_0102, 0xC000_0103)
#: And those that KVM's list does not name: the local APIC's place, KVM's clock, memory types, machine checks.
_UNLISTED: Final = (
    *(_APIC_BASE, 0x11, 0x12),
    *range(0x200, 0x210),
    *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),
    *(_MCG_CAP, 0x17A, 0x17B, *range(0x400, 0x400 + 4 * MCE_BANKS)),
)
_KEPT: Final = frozenset({*MSRS, *_UNLISTED})

_FCW, _MXCSR = 0x37F, 0x1F80
_FPU: Final = struct.pack("<128xH286x", _FCW)  # KVM leaves MXCSR out of this one
_EXTENDED: Final = struct.pack("<H22xII4064x", _FCW, _MXCSR, 0xFFFF)
_EVENTS: Final = struct.pack("<20xI40x", 0b1101)  # NMI, interrupt shadow and SMM are said
_RUNNABLE, _UNINITIALIZED = struct.pack("<I", 0), struct.pack("<I", 1)
_APIC_AT: Final = 0xFEE0_0800  #: enabled; the first processor's has bit 8, too
_MASKED: Final = 0x1_0000
#: By offset: version 0x14 with six vectors, all destinations, the spurious vector; the vectors masked.
_APIC: Final = {0x30: 0x5_0014, 0xE0: 0xFFFF_FFFF, 0xF0: 0xFF} | dict.fromkeys(
    range(0x320, 0x380, 0x10), _MASKED
)
_APIC_ID, _APIC_LINT0, _EXTERNAL = 0x20, 0x350, 0x700


class Refuses:
    """Raises what a program gets, and tells why."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(self, what: str, number: int, why: str) -> NoReturn:
        """Refuse a request."""
        self._trace.emit(PART, what, why, errno=errno.errorcode[number])
        raise OSError(number, why)

    def tell(self, what: str, why: str) -> None:
        """Tell of what is less than was asked for, and no error."""
        self._trace.emit(PART, what, why)


class Asked:
    """One request on its way: what its argument points at.

    Attributes:
        request: its number.
        row: what the table says of it.
        argument: as the program gave it.
    """

    def __init__(self, request: int, argument: int, memory: CallerMemory, refuses: Refuses) -> None:
        self.request, self.argument = request, argument
        self.row = REQUESTS[request]
        self._memory, self._refuses = memory, refuses

    def refuse(self, number: int, why: str) -> NoReturn:
        """Refuse it."""
        self._refuses(self.row.name, number, why)

    def tell(self, why: str) -> None:
        """Tell why less is done than it asks for."""
        self._refuses.tell(self.row.name, why)

    def read(self, length: int, at: int = 0) -> bytes:
        """Read from what the argument points at."""
        try:
            return self._memory.read(self.argument + at, length)
        except OSError as fault:
            self._explain(fault)

    def write(self, data: bytes, at: int = 0) -> None:
        """Write to what the argument points at."""
        self.write_to(self.argument + at, data)

    def write_to(self, address: int, data: bytes) -> None:
        """Write to what another pointer points at."""
        try:
            self._memory.write(address, data)
        except OSError as fault:
            self._explain(fault)

    def _explain(self, fault: OSError) -> NoReturn:
        self.refuse(fault.errno or errno.EFAULT, fault.strerror or "the caller has no such memory")


State = dict[str, bytes]


def keep(state: State, asked: Asked) -> int:
    """Set what a request sets, or give it back."""
    what, length = asked.row.about, argument_size(asked.request)
    if not length:
        state[what] = asked.argument.to_bytes(8, "little")
    elif gives(asked.request):
        state[what] = asked.read(length)
    else:
        asked.write(state.get(what, bytes(length)))
    return 0


@dataclass(eq=False)
class Vcpu:
    """One virtual processor; changes with what programs set.

    Attributes:
        number: among its machine's.
        of_machine: what requests set of the whole machine.
        behind: the machine's handle of the device that answers memory-encryption requests.
        state: what requests set of this one, by name; what is not named is zero.
        msrs: the model-specific registers.
        cpuid: the entries that were set.
    """

    number: int
    of_machine: State
    behind: Any
    state: State
    msrs: dict[int, int]
    cpuid: bytes = b""


def after_reset(number: int, of_machine: State, behind: Any) -> Vcpu:
    """Make a processor as a reset leaves it."""
    apic_base = _APIC_AT | (number == 0) << 8
    apic = bytearray(0x400)
    own = {_APIC_ID: number << 24} if number else {_APIC_LINT0: _EXTERNAL}
    for at, word in {**_APIC, **own}.items():
        struct.pack_into("<I", apic, at, word)
    waits = bool(number) and CHIPS in of_machine  # for the first one's start-up interrupt
    state = {
        "registers": bytes(KvmRegs()),
        "special registers": bytes(KvmSregs(apic_base=apic_base)),
        "x87 and SSE state": _FPU,
        "local APIC": bytes(apic),
        "events": _EVENTS,
        "run state": _UNINITIALIZED if waits else _RUNNABLE,
        "debug registers": struct.pack("<6Q", 0, 0, 0, 0, 0xFFFF_0FF0, 0x400) + bytes(80),
        "extended state": _EXTENDED,
        "extended control": struct.pack("<4IQ", 1, 0, 0, 0, 1) + bytes(368),
    }
    msrs = {_APIC_BASE: apic_base, _MCG_CAP: MCE_BANKS, _PAT: 0x0007_0406_0007_0406}
    return Vcpu(number, of_machine, behind, state, msrs)


def get_msrs(vcpu: Vcpu, asked: Asked) -> int:
    """KVM_GET_MSRS: fill in values, up to the first register that there is none of; return how many."""
    wanted = _msrs(asked)
    values = [_MSR.pack(number, vcpu.msrs.get(number, 0)) for number, _ in wanted]
    asked.write(b"".join(values), _HEADER.size)
    return len(wanted)


def set_msrs(vcpu: Vcpu, asked: Asked) -> int:
    """KVM_SET_MSRS: set registers, up to the first that there is none of; return how many."""
    wanted = _msrs(asked)
    vcpu.msrs.update(wanted)
    return len(wanted)


def set_cpuid2(vcpu: Vcpu, asked: Asked) -> int:
    """KVM_SET_CPUID2: keep the entries."""
    vcpu.cpuid = _take(asked, _CPUID.size, most=MOST_LEAVES)
    return 0


def get_cpuid2(vcpu: Vcpu, asked: Asked) -> int:
    """KVM_GET_CPUID2: give the entries back."""
    return _give(asked, vcpu.cpuid, _CPUID.size, at=_HEADER.size)


def supported_cpuid(asked: Asked) -> int:
    """KVM_GET_SUPPORTED_CPUID: say what a virtual processor can be."""
    entries = (
        _CPUID.pack(leaf, index, _INDEX_COUNTS if leaf in _INDEXED else 0, *registers)
        for (leaf, index), registers in SUPPORTED_CPUID.items()
    )
    return _give(asked, b"".join(entries), _CPUID.size, at=_HEADER.size)


def msr_index_list(asked: Asked) -> int:
    """KVM_GET_MSR_INDEX_LIST: say which registers are kept; how many, also where there is no room."""
    return _give(asked, struct.pack(f"<{len(MSRS)}I", *MSRS), 4, at=_COUNT.size, tells=True)


def mce_capabilities(asked: Asked) -> int:
    """KVM_X86_GET_MCE_CAP_SUPPORTED: say what there may be of machine checks: registers."""
    asked.write(_MCE.to_bytes(8, "little"))
    return 0


def setup_mce(vcpu: Vcpu, asked: Asked) -> int:
    """KVM_X86_SETUP_MCE: choose what there is of machine checks."""
    wanted = int.from_bytes(asked.read(8), "little")
    banks = wanted & 0xFF
    if not 0 < banks <= MCE_BANKS:
        asked.refuse(errno.EINVAL, f"{banks} banks: there are 1 … {MCE_BANKS}")
    if wanted >> 8 & ~(_MCE >> 8):
        asked.refuse(errno.EINVAL, f"{wanted:#x}: beside the banks only {_MCE:#x} is known")
    vcpu.msrs[_MCG_CAP] = wanted
    return 0


def _msrs(asked: Asked) -> list[tuple[int, int]]:
    """Take the registers of a request, with their values, up to the first that is not kept."""
    wanted = [
        (int(number), int(value))
        for number, value in _MSR.iter_unpack(_take(asked, _MSR.size, most=MOST_MSRS))
    ]
    for done, (number, _) in enumerate(wanted):
        if number not in _KEPT:
            asked.tell(f"register {number:#x} is not kept: {done} of {len(wanted)} are done")
            return wanted[:done]
    return wanted


def _take(asked: Asked, size: int, *, most: int) -> bytes:
    """Take the entries behind a header that counts them."""
    count, _ = _HEADER.unpack(asked.read(_HEADER.size))
    if count > most:
        asked.refuse(errno.E2BIG, f"{count} entries: there are {most} at most")
    return asked.read(count * size, _HEADER.size) if count else b""


def _give(asked: Asked, entries: bytes, size: int, *, at: int, tells: bool = False) -> int:
    """Give entries where the header says there is room, and how many they are.

    Args:
        asked: the request.
        entries: all of them.
        size: bytes of one.
        at: where they go, behind the header.
        tells: how many they are is said also where there is no room.
    """
    (room,) = _COUNT.unpack_from(asked.read(at))
    count = len(entries) // size
    if tells or room >= count:
        asked.write(_COUNT.pack(count))
    if room < count:
        asked.refuse(errno.E2BIG, f"{count} entries, and room for {room}")
    asked.write(entries, at)
    return 0
