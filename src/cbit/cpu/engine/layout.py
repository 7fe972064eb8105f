"""Where the library keeps what the engine must see: derived from the running library, never assumed.

A scratch engine is asked architectural questions and its memory is searched for the answers: registers
written through the public interface, a real VMRUN whose VMCB is full of unique numbers, a real #VMEXIT,
VMLOAD, INT.
Every answer must be the only one, and is cross-checked; otherwise `LayoutError` names the field.

Offsets: ``uc_`` from uc_engine, ``cs_`` from CPUState, the others from the register file (``env``).
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cbit.cpu.engine.errors import LayoutError
from cbit.cpu.engine.library import Library, library, peek

_POINTER, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
_VMCB, _HSAVE, _MSRPM, _CODE = 0x1000, 0x2000, 0x3000, 0x8000
_VM_HSAVE_PA, _EFER = 0xC001_0117, 0xC000_0080
_SVME, _LONG_MODE = 1 << 12, 1 << 8 | 1 << 10
_GUEST: Final = 1 << 21  # in hflags
_VIRTUAL_INTERRUPT: Final = 0x100  # in interrupt_request
_CR0, _CR2, _CR3, _CR4 = 0x0005_0033, 0x0C2C_2C2C_2000, 0x5E5E_0000, 0x20
_INT_A, _INT_B = 0xA7, 0xB3  # two interrupt vectors that nothing else has
_ONES: Final = 0xFFFF_FFFF
_STOP: Final = 0xFFFF_0000  # in the word that every block looks at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Offsets in bytes."""

    uc_cpu: int
    uc_no_exit_request: int
    cs_env: int  # the pointer to the register file
    env: int  # the register file itself, from CPUState
    cs_exception_index: int
    cs_interrupt_request: int
    cs_exit_word: int  # negative: the next block is to stop
    rip: int
    cc_src: int
    hflags: int
    segments: int  # ES; 24 bytes each: selector, base, limit, flags
    cr0: int  # CR1 … CR4 follow
    efer: int
    nested_cr3: int
    star: int
    lstar: int
    cstar: int
    sfmask: int
    old_exception: int
    error_code: int
    is_int: int
    next_eip: int
    cpuid_1_edx: int
    cpuid_7_ebx: int


def find_all(hay: bytes, needle: bytes, align: int) -> list[int]:
    """List the aligned offsets at which ``needle`` lies in ``hay``."""
    found, at = [], hay.find(needle)
    while at >= 0:
        if at % align == 0:
            found.append(at)
        at = hay.find(needle, at + 1)
    return found


def one(field: str, candidates: Iterable[int]) -> int:
    """Return the only candidate.

    Raises:
        LayoutError: there is none, or a choice.
    """
    found = list(candidates)
    if len(found) != 1:
        some = ", ".join(hex(at) for at in found[:6])
        raise LayoutError(field, f"{len(found)} candidates instead of one {some}".rstrip())
    return found[0]


def _q(value: int) -> bytes:
    return struct.pack("<Q", value)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _quad(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one engine lies: addresses of uc_engine, CPUState and register file, and how they were found."""

    uc: int
    cs: int
    env: int
    uc_cpu: int
    cs_env: int


def locate(uc: Any, x86: Any) -> Place:
    """Find the structures of one engine by four register values that nothing else in the process has.

    Args:
        uc: a `unicorn.Uc`.
        x86: the package's x86 constants.

    Raises:
        LayoutError: not found, or more than one.
    """
    registers = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX)
    handle: int = uc._uch.value
    before = [uc.reg_read(register) for register in registers]
    marks = [0xA5C3_0000_0000_0000 | number * 0x1111_2357 for number in (1, 2, 3, 4)]
    for register, mark in zip(registers, marks, strict=True):
        uc.reg_write(register, mark)
    found = list(_register_files(handle, struct.pack("<4Q", *marks)))
    for register, value in zip(registers, before, strict=True):
        uc.reg_write(register, value)
    if len({place.env for place in found}) != 1:
        raise LayoutError("env", f"{len(found)} candidates instead of one")
    # uc_engine points at the CPU object more than once; all point at the same one, so any may serve.
    return max(found, key=lambda place: (place.cs, -place.uc_cpu))


def _register_files(handle: int, marks: bytes) -> Iterator[Place]:
    for at, cs in enumerate(struct.unpack("<512Q", peek(handle, 4096))):
        if cs % 8 or not 0x10000 < cs < 1 << 47 or abs(cs - handle) < 0x1000:
            continue
        head = peek(cs, 0x400)
        if len(head) < 0x400:
            continue
        for index, env in enumerate(struct.unpack("<128Q", head)):
            if cs < env < cs + 0x40000 and env % 8 == 0 and peek(env, 32) == marks:
                yield Place(handle, cs, env, at * 8, index * 8)


def env_size(place: Place) -> int:
    """Return how many bytes of this engine's CPU object are the register file.

    The object is one malloc block, and what lies behind it is somebody else's. Two engines of one library
    may differ: malloc gives away a remainder that is too small to be a block of its own.

    Raises:
        LayoutError: the block cannot be a CPU object.
    """
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.argtypes, usable.restype = [_POINTER], ctypes.c_size_t
    size = int(usable(place.cs))
    env_at = place.env - place.cs
    if not env_at + 0x1000 < size < 0x40000:
        raise LayoutError("CPU object", f"{size:#x} bytes with the register file at {env_at:#x}")
    return size - env_at


class Scratch:
    """An engine to ask questions of."""

    def __init__(self, lib: Library) -> None:
        package = lib.package
        self.lib = lib
        self.uc = package.Uc(package.UC_ARCH_X86, package.UC_MODE_64)
        self.uc.mem_map(0, 0x40000)
        self.place = locate(self.uc, package.x86_const)
        self.env_at = self.place.env - self.place.cs
        self.env_size = env_size(self.place)

    def call(self, name: str, *arguments: int) -> None:
        """Call an internal function on the register file; 32-bit arguments but for one that is longer."""
        kinds = [_U64 if value > _ONES else _U32 for value in arguments]
        self.lib.function(name, None, _POINTER, *kinds)(self.place.env, *arguments)

    def cs(self) -> bytes:
        """Copy CPUState, up to the register file."""
        return peek(self.place.cs, self.env_at)

    def env(self) -> bytes:
        """Copy the register file."""
        return peek(self.place.env, self.env_size)

    def changes(self, act: Callable[[], object]) -> tuple[bytes, bytes]:
        """Copy the register file before and after an act."""
        before = self.env()
        act()
        return before, self.env()

    def set_word(self, at: int, value: int) -> None:
        """Write 32 bits of the register file."""
        _U32.from_address(self.place.env + at).value = value

    def set_registers(self, **values: int) -> None:
        """Write general registers by their order in the register file."""
        for name, value in values.items():
            _U64.from_address(self.place.env + 8 * ("rax", "rcx", "rdx").index(name)).value = value


@functools.cache
def layout() -> Layout:
    """Derive everything, once per process: about 10 ms.

    Raises:
        NoEngine: no library here.
        LayoutError: a field that cannot be proven.
    """
    lib = library()
    scratch = Scratch(lib)
    answers: dict[str, int] = {
        "uc_cpu": scratch.place.uc_cpu,
        "cs_env": scratch.place.cs_env,
        "env": scratch.env_at,
    }
    _check_against_code(lib, scratch.env_at)
    answers |= _ask_registers(scratch)
    answers |= _ask_vmrun(scratch, answers["rip"])
    answers |= _ask_vmload(scratch)
    answers |= _ask_exceptions(lib, answers["rip"])
    answers["cpuid_1_edx"] = _ask_feature(scratch, leaf=1, register=3, bit=19)
    answers["cpuid_7_ebx"] = _ask_feature(scratch, leaf=7, register=1, bit=23)
    answers["uc_no_exit_request"] = _ask_exit_check(lib, scratch.place)
    return Layout(**answers)


def _check_against_code(lib: Library, env_at: int) -> None:
    """Compare with the library's code: env to CPUState is ``lea reg, [rdi - offset]`` in cpu_vmexit."""
    code = peek(lib.internal("cpu_vmexit"), 64)
    lea = re.search(rb"[\x48\x4c]\x8d[\x87\x8f\x97\x9f\xa7\xaf\xb7\xbf](.{4})", code, re.DOTALL)
    if lea is None or -struct.unpack("<i", lea[1])[0] != env_at:
        raise LayoutError("env", "its offset in memory and the one in the library's code differ")


def _ask_registers(scratch: Scratch) -> dict[str, int]:
    mark = 0x5A5_A123_4567
    scratch.uc.reg_write(scratch.lib.package.x86_const.UC_X86_REG_RIP, mark)
    rip = one("rip", find_all(scratch.env(), _q(mark), 8))
    # RDRAND reports success in the carry flag, which QEMU derives from cc_src.
    before, after = scratch.changes(lambda: scratch.call("helper_rdrand"))
    cc_src = one(
        "cc_src",
        (at for at in range(rip, 0x200, 8) if before[at : at + 8] != after[at : at + 8] == _q(1)),
    )
    return {"rip": rip, "cc_src": cc_src}


def _vmcb() -> bytes:
    """A VMCB whose every field is a number that occurs nowhere else."""
    vmcb = bytearray(4096)
    for form, at, value in (
        ("Q", 0x0C, 0x1D2E_3F4A_5B6C_7D8E),  # intercepts
        ("Q", 0x48, _MSRPM),
        ("I", 0x60, 1 << 8),  # V_IRQ
        ("Q", 0x90, 1),  # nested paging
        ("Q", 0xB0, 0x7ACE_5000),  # nCR3
        ("Q", 0x4D0, _LONG_MODE | _SVME),
        ("Q", 0x548, _CR4),
        ("Q", 0x550, _CR3),
        ("Q", 0x558, _CR0),
        ("Q", 0x560, 0x400),
        ("Q", 0x568, 0xFFFF_0FF0),
        ("Q", 0x570, 2),
        ("Q", 0x578, 0x6E6E_6000),
        ("Q", 0x640, _CR2),
    ):
        struct.pack_into("<" + form, vmcb, at, value)
    for index in range(4):
        segment = struct.pack("<HHIQ", 8, 0xA9B if index == 1 else 0xC93, _ONES, _segment_base(index))
        vmcb[0x400 + 16 * index : 0x410 + 16 * index] = segment
    return bytes(vmcb)


def _segment_base(index: int) -> int:
    return 0xBA5E_0000 + (index << 12)


def _ask_vmrun(scratch: Scratch, rip: int) -> dict[str, int]:
    """Run VMRUN from here, search, and go back by #VMEXIT, which must restore the host."""
    uc = scratch.uc
    uc.mem_write(_VMCB, _vmcb())
    scratch.set_registers(rax=_HSAVE, rcx=_VM_HSAVE_PA, rdx=0)
    scratch.call("helper_wrmsr")
    scratch.set_registers(rax=_VMCB)
    host_rip = _quad(scratch.env(), rip) + 3
    host, host_cs = scratch.env(), scratch.cs()
    scratch.call("helper_vmrun", 2, 3)
    guest, guest_cs = scratch.env(), scratch.cs()

    segments = one("segments", find_all(guest, _q(_segment_base(0)), 8)) - 8
    for index in range(1, 4):
        if segments + 24 * index + 8 != one("segments", find_all(guest, _q(_segment_base(index)), 8)):
            raise LayoutError("segments", "they do not lie 24 bytes apart")
    cr2 = one("cr2", find_all(guest, _q(_CR2), 8))
    if [_quad(guest, cr2 + 8 * step) for step in (-2, 1, 2)] != [_CR0, _CR3, _CR4]:
        raise LayoutError("cr0", "the control registers are not in a row")
    # Bit 21 says "guest"; bit 21 of the segment flags behind says "long", so the search ends there.
    hflags = one(
        "hflags",
        (
            at
            for at in range(rip + 8, segments, 4)
            if not _word(host, at) & _GUEST and _word(guest, at) & _GUEST and _word(guest, at) < 1 << 28
        ),
    )
    efer = one(
        "efer",
        (at for at in find_all(guest, _q(_LONG_MODE | _SVME), 8) if guest[at : at + 8] != host[at : at + 8]),
    )
    request = one(
        "interrupt_request",
        (at for at in range(0, 0x400, 4) if _word(guest_cs, at) & ~_word(host_cs, at) == _VIRTUAL_INTERRUPT),
    )
    scratch.call("do_vmexit", 0x72, 0x1122_3344_5566_7788)
    code, info = struct.unpack("<QQ", bytes(uc.mem_read(_VMCB + 0x70, 16)))
    if (code, info) != (0x72, 0x1122_3344_5566_7788) or _quad(scratch.env(), rip) != host_rip:
        raise LayoutError("vm_hsave", "#VMEXIT did not bring the host back")
    if _word(scratch.env(), hflags) & _GUEST:
        raise LayoutError("hflags", "#VMEXIT did not leave guest mode")
    return {
        "segments": segments,
        "cr0": cr2 - 16,
        "hflags": hflags,
        "efer": efer,
        "cs_interrupt_request": request,
        "nested_cr3": one("nested_cr3", find_all(guest, _q(0x7ACE_5000), 8)),
    }


def _ask_vmload(scratch: Scratch) -> dict[str, int]:
    fields = {"star": 0x600, "lstar": 0x608, "cstar": 0x610, "sfmask": 0x618}
    vmcb = bytearray(4096)
    for at in fields.values():
        struct.pack_into("<Q", vmcb, at, 0x7E57_0000_0000 + at)
    scratch.uc.mem_write(_VMCB, bytes(vmcb))
    scratch.set_registers(rax=_VMCB)
    scratch.call("helper_vmload", 2)
    loaded = scratch.env()
    return {name: one(name, find_all(loaded, _q(0x7E57_0000_0000 + at), 8)) for name, at in fields.items()}


def _ask_exceptions(lib: Library, rip: int) -> dict[str, int]:
    """Run two INTs and a division by zero, and look at the machine in their hooks."""
    scratch = Scratch(lib)
    seen: list[tuple[int, bytes, bytes]] = []

    stopped: list[bytes] = []

    def hook(uc: Any, number: int, _user: object) -> None:
        seen.append((number, scratch.cs(), scratch.env()))
        uc.emu_stop()
        stopped.append(scratch.cs())

    scratch.uc.hook_add(lib.package.UC_HOOK_INTR, hook)
    before = scratch.env()
    division = b"\x31\xc9\xf7\xf1"  # xor ecx, ecx; div ecx
    for at, code in ((0, bytes([0xCD, _INT_A])), (16, bytes([0xCD, _INT_B])), (32, division)):
        scratch.uc.mem_write(_CODE + at, code)
        with suppress(lib.package.UcError):
            scratch.uc.emu_start(_CODE + at, 0, count=2)
    if [number for number, _, _ in seen] != [_INT_A, _INT_B, 0]:
        raise LayoutError("exception_index", f"the probes raised {[number for number, _, _ in seen]}")
    (_, cs_a, env_a), (_, cs_b, env_b), (_, _, env_division) = seen
    next_eip = one(
        "next_eip",
        (
            at
            for at in range(rip + 8, len(env_a) - 8, 8)
            if (_quad(env_a, at), _quad(env_b, at)) == (_CODE + 2, _CODE + 18)
        ),
    )
    is_int, error_code = next_eip - 4, next_eip - 8
    if [_word(env, is_int) for _, _, env in seen] != [1, 1, 0] or _word(env_a, error_code):
        raise LayoutError("is_int", "error code and kind do not lie before next_eip")
    never = (at for at in range(next_eip + 8, next_eip + 0x200, 4) if _word(before, at) == _ONES)
    return {
        "cs_exit_word": one(
            "exit_word",
            (at for at in range(0, len(cs_a), 4) if (_word(cs_a, at), _word(stopped[0], at)) == (0, _STOP)),
        ),
        "cs_exception_index": one(
            "exception_index",
            (at for at in range(0, len(cs_a), 4) if (_word(cs_a, at), _word(cs_b, at)) == (_INT_A, _INT_B)),
        ),
        "next_eip": next_eip,
        "is_int": is_int,
        "error_code": error_code,
        "old_exception": one("old_exception", (at for at in never if _word(env_division, at) == 0)),
    }


def _ask_feature(scratch: Scratch, *, leaf: int, register: int, bit: int) -> int:
    """Find the word behind one register of a CPUID leaf: toggle a bit and ask again."""
    cpuid = scratch.lib.function("cpu_x86_cpuid", None, _POINTER, _U32, _U32, *4 * [_POINTER])
    answer = (_U32 * 4)()

    def ask() -> int:
        cpuid(scratch.place.env, leaf, 0, *(ctypes.addressof(answer) + 4 * index for index in range(4)))
        return int(answer[register])

    before, env = ask(), scratch.env()
    found = []
    for at in find_all(env, struct.pack("<I", before), 4):
        scratch.set_word(at, before ^ 1 << bit)
        if ask() == before ^ 1 << bit:
            found.append(at)
        scratch.set_word(at, before)
    return one(f"CPUID leaf {leaf}", found)


def _ask_exit_check(lib: Library, place: Place) -> int:
    """Find uc->no_exit_request: ``cmp byte [reg + offset], 0`` at the top of its only exported reader."""
    code = peek(lib.internal("check_exit_request"), 64)
    compare = re.search(rb"\x80[\xb8-\xbb\xbd-\xbf](.{4})\x00", code, re.DOTALL)
    if compare is None:
        raise LayoutError("no_exit_request", "its reader begins with no comparison")
    at: int = struct.unpack("<i", compare[1])[0]
    if peek(place.uc + at, 1) not in (b"\0", b"\1"):
        raise LayoutError("no_exit_request", "what lies there is no truth value")
    return at
