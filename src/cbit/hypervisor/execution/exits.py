"""What the hypervisor does at each exit: one handler for each exit code.

    CPUID  MSR  IOIO  HLT  WBINVD  INVD  VMMCALL      emulated, the guest goes on
    INTR  VINTR                                       nothing to do: the monitor looks at interrupts anyway
    SHUTDOWN  NPF                                     the guest cannot go on

Codes and EXITINFO are the AMD64 architecture's own; what a handler needs of the guest it reads in the VMCB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from cbit.cpu.engine.control_block import Exit
from cbit.cpu.faults import GeneralProtection, NestedPageFault, PageFault
from cbit.cpu.paging import Kind
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.msrs import TSC, GuestMsrs, NoSuchMsr
from cbit.hypervisor.execution.state import ProcessorState
from cbit.hypervisor.execution.string_io import MOST, RCX, RDI, RSI, LinearMemory, StringIo
from cbit.memory.errors import AddressError

RDX, RBX = 2, 3
INTR: Final = 0x60
IOIO: Final = 0x7B
_STRING: Final = 1 << 2  # of EXITINFO1
_UD: Final = 6
_LOW: Final = 0xFFFF_FFFF
_OSXSAVE_LEAF, _OSXSAVE_BIT, _OSXSAVE_CR4 = 0x1, 1 << 27, 1 << 18
_PAGING: Final = 1 << 31

EXIT_NAMES: Final[Mapping[int, str]] = {
    0x60: "INTR",
    0x64: "VINTR",
    0x72: "CPUID",
    0x76: "INVD",
    0x78: "HLT",
    0x7B: "IOIO",
    0x7C: "MSR",
    0x7F: "SHUTDOWN",
    0x81: "VMMCALL",
    0x89: "WBINVD",
    0x400: "NPF",
}


class Ports(Protocol):
    """What answers port I/O: a chipset."""

    def read(self, port: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""
        ...

    def write(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""
        ...


class Next(Enum):
    """How a guest goes on after an exit."""

    RUN = "run"
    HALTED = "halted until an interrupt"
    SHUTDOWN = "triple fault"
    NO_MEMORY = "access to memory that is not there"
    UNKNOWN = "an exit that this hypervisor does not know"
    MOVED = "runs on another machine"
    REFUSED = "a state that the processor does not enter"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a guest does not go on.

    Attributes:
        next: the kind of stop.
        why: in words.
    """

    next: Next
    why: str


#: Answers VMMCALL: takes the virtual CPU, gives RAX.
Hypercall = Callable[[ProcessorState], int]


class Exits:
    """The handlers of one virtual CPU.

    Mutable.

    Attributes:
        counts: exits by code.
        msrs: the registers that are not in the VMCB.
        unknown_msrs: registers that the guest asked for and does not have, with how often.
        refused_strings: ports of INS and OUTS that an encrypted guest was refused, with how often.
        stop: why the guest cannot go on; None while it can.
    """

    def __init__(
        self,
        vcpu: ProcessorState,
        *,
        cpuid: GuestCpuid,
        ports: Ports,
        hypercall: Hypercall = lambda _vcpu: 0xFFFF_FFFF_FFFF_FC18,  # -1000: no such call
    ) -> None:
        self._vcpu = vcpu
        self._cpuid = cpuid
        self._ports = ports
        self._hypercall = hypercall
        self.msrs = GuestMsrs()
        self.counts: dict[int, int] = {}
        self.unknown_msrs: dict[int, int] = {}
        self.refused_strings: dict[int, int] = {}
        self.stop: Stop | None = None
        self._handlers: Final[dict[int, Callable[[Exit], Next]]] = {
            0x60: self._nothing,
            0x64: self._nothing,
            0x72: self._do_cpuid,
            0x76: self._flush_caches,
            0x78: self._halt,
            0x7B: self._port_io,
            0x7C: self._msr,
            0x7F: self._shutdown,
            0x81: self._vmmcall,
            0x89: self._flush_caches,
            0x400: self._no_memory,
        }

    def handle(self, done: Exit) -> Next:
        """Do what an exit asks for."""
        self.counts[done.code] = self.counts.get(done.code, 0) + 1
        return self._handlers.get(done.code, self._unknown)(done)

    def _nothing(self, _done: Exit) -> Next:
        return Next.RUN

    def _port_io(self, done: Exit) -> Next:
        info = done.info_1
        if info & _STRING:
            return self._string_io(done)
        port, size = info >> 16 & 0xFFFF, info >> 4 & 7
        vcpu, mask = self._vcpu, (1 << 8 * size) - 1
        if info & 1:
            value = self._ports.read(port, size) & mask
            vcpu.rax = value if size == 4 else vcpu.rax & ~mask | value
        else:
            self._ports.write(port, size, vcpu.rax & mask)
        vcpu.go_on_at(done.info_2)
        return Next.RUN

    def _string_io(self, done: Exit) -> Next:
        """Do INS or OUTS; a repeated one in portions, each an exit of its own, as the guest goes on at it."""
        vcpu = self._vcpu
        memory = vcpu.linear_memory()
        if memory is None:
            # MODEL CHOICE: #UD, as KVM has it: tables and buffers of a SEV guest are ciphertext out here.
            port = done.info_1 >> 16
            self.refused_strings[port] = self.refused_strings.get(port, 0) + 1
            vcpu.raise_exception(_UD)
            return Next.RUN
        try:
            finished = self._move(vcpu.string_io(done.info_1), memory)
        except PageFault as fault:
            vcpu.raise_page_fault(fault.address, int(fault.code))
            return Next.RUN
        except GeneralProtection:
            vcpu.raise_general_protection()
            return Next.RUN
        except (NestedPageFault, AddressError) as fault:
            port = done.info_1 >> 16
            return self._stop(Next.NO_MEMORY, f"string I/O at port {port:#x}, RIP {vcpu.rip:#x}: {fault}")
        if finished:
            vcpu.go_on_at(done.info_2)
        return Next.RUN

    def _move(self, what: StringIo, memory: LinearMemory) -> bool:
        """Move elements between port and memory; say whether none is left (errors as `LinearMemory`)."""
        registers, base = self._vcpu.context.registers, 0
        number = RDI if what.reads_port else RSI
        if what.has_base:
            base = self._vcpu.segment_base(what.segment)
        left = what.count(registers[RCX])
        steps = what.steps(registers[number], registers[RCX])
        for _ in range(min(left, MOST)):
            at = what.linear(registers[number], base)
            if what.reads_port:
                reached = memory.reach(at, what.size, Kind.WRITE)  # first: a port may change when it is read
                value = self._ports.read(what.port, what.size)
                memory.write(reached, (value & (1 << 8 * what.size) - 1).to_bytes(what.size, "little"))
            else:
                self._ports.write(what.port, what.size, int.from_bytes(memory.read(at, what.size), "little"))
            registers[number], registers[RCX] = next(steps)
        return left <= MOST

    def _do_cpuid(self, _done: Exit) -> Next:
        vcpu = self._vcpu
        registers = vcpu.context.registers
        leaf = vcpu.rax & _LOW
        eax, ebx, ecx, edx = self._cpuid(leaf, registers[RCX] & _LOW)
        if leaf == _OSXSAVE_LEAF:
            ecx = ecx | _OSXSAVE_BIT if vcpu.cr4 & _OSXSAVE_CR4 else ecx & ~_OSXSAVE_BIT
        vcpu.rax, registers[RBX], registers[RCX], registers[RDX] = eax, ebx, ecx, edx
        vcpu.step()
        return Next.RUN

    def _msr(self, done: Exit) -> Next:
        vcpu = self._vcpu
        registers = vcpu.context.registers
        number = registers[RCX] & _LOW
        try:
            if done.info_1 & 1:
                value = vcpu.rax & _LOW | (registers[RDX] & _LOW) << 32
                if number == TSC:
                    vcpu.set_time_stamp(value)
                    vcpu.step()
                    return Next.RUN
                paging = bool(vcpu.cr0 & _PAGING)
                efer = vcpu.efer
                changed = self.msrs.write(number, value, efer=efer, paging=paging)
                if changed != efer:
                    vcpu.efer = changed
            else:
                value = vcpu.time_stamp if number == TSC else self.msrs.read(number, efer=vcpu.efer)
                vcpu.rax, registers[RDX] = value & _LOW, value >> 32
        except NoSuchMsr:
            self.unknown_msrs[number] = self.unknown_msrs.get(number, 0) + 1
            vcpu.raise_general_protection()
            return Next.RUN
        vcpu.step()
        return Next.RUN

    def _halt(self, _done: Exit) -> Next:
        self._vcpu.step()
        return Next.HALTED

    def _flush_caches(self, _done: Exit) -> Next:
        self._vcpu.flush_caches()
        self._vcpu.step()
        return Next.RUN

    def _vmmcall(self, _done: Exit) -> Next:
        self._vcpu.rax = self._hypercall(self._vcpu)
        self._vcpu.step()
        return Next.RUN

    def _shutdown(self, _done: Exit) -> Next:
        vcpu = self._vcpu
        why = f"triple fault at {vcpu.rip:#x}, last page fault at {vcpu.cr2:#x}"
        if self.refused_strings:
            ports = ", ".join(map(hex, sorted(self.refused_strings)))
            why += f"; INS or OUTS at port {ports} is an invalid opcode to an encrypted guest"
        return self._stop(Next.SHUTDOWN, why)

    def _no_memory(self, done: Exit) -> Next:
        what = "write to" if done.info_1 & 2 else "fetch from" if done.info_1 & 16 else "read of"
        why = f"{what} guest physical {done.info_2:#x}, where nothing is (RIP {self._vcpu.rip:#x})"
        return self._stop(Next.NO_MEMORY, why)

    def _unknown(self, done: Exit) -> Next:
        return self._stop(Next.UNKNOWN, f"exit code {done.code:#x} ({done.info_1:#x}, {done.info_2:#x})")

    def _stop(self, kind: Next, why: str) -> Next:
        self.stop = Stop(kind, why)
        return kind
