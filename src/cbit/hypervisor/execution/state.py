"""Registers, exits and events of one processor that executes: everything that a VMCB holds, by name.

Who runs it is another's affair: a hypervisor (`vcpu`), or nobody (`bare_metal`).

Paper: memory-encryption.md §10.1; the control area is the AMD64 architecture's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Protocol

from cbit.cpu.control import Controls, Efer
from cbit.cpu.engine.block_loan import HeldBlock
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.engine.processor import TSC_PER_BLOCK, Context
from cbit.hypervisor.execution.string_io import LinearMemory, StringIo
from cbit.spec.vmsa import Vmsa

_INTR, _VINTR, _INVD, _CPUID = 1 << 0, 1 << 4, 1 << 0x16, 1 << 0x12
_HLT, _IOIO, _MSR, _SHUTDOWN = 1 << 0x18, 1 << 0x1B, 1 << 0x1C, 1 << 0x1F
_VMRUN, _VMMCALL, _WBINVD = 1 << 0x20, 1 << 0x21, 1 << 0x29
#: Without a hypervisor: what the engine cannot answer by itself.
BARE_INTERCEPTS: Final = _INTR | _CPUID | _HLT | _IOIO | _MSR | _SHUTDOWN | _VMRUN
INTERCEPTS: Final = _INTR | _INVD | _CPUID | _HLT | _IOIO | _MSR | _SHUTDOWN | _VMRUN | _VMMCALL | _WBINVD

AT_INTERCEPTS, _AT_TLB, _AT_VIRQ, _AT_SHADOW, _AT_EXIT = 0x00C, 0x05C, 0x060, 0x068, 0x070
_AT_INTERRUPTED, _AT_EVENT, _AT_CLEAN, _AT_NEXT_RIP, AT_SAVE = 0x088, 0x0A8, 0x0C0, 0x0C8, 0x400
_AT_EFER, _AT_CR4, _AT_CR0, _AT_RFLAGS, _AT_RIP, _AT_RSP, _AT_RAX, _AT_CR2 = (
    *(0x4D0, 0x548, 0x558, 0x570, 0x578, 0x5D8, 0x5F8, 0x640),
)
_AT_TSC_OFFSET: Final = 0x050
_ALL: Final = (1 << 64) - 1
_SAVE_SIZE: Final = 0x300
_V_IRQ: Final = 1 << 8 | 1 << 20  # pending, and TPR does not hold it back
_EVENT_VALID, _EVENT_ERROR = 1 << 31, 1 << 11
_EXCEPTION: Final = 3 << 8
_IF: Final = 1 << 9
_CLEAN_MAPS: Final = 1 << 1
_GP, _PF = 13, 14
_AT_SEGMENTS, _AT_CPL, _AT_CR3 = 0x400, 0x4CB, 0x550
_CS, _USER_CPL = 1, 3
_LONG_CODE: Final = 1 << 9  # in a segment's attributes, as a VMCB keeps them
_DF, _AC = 1 << 10, 1 << 18
_REGISTERS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


class Page(Protocol):
    """Where a VMCB lies."""

    def read(self, at: int, length: int) -> bytes:
        """Read bytes."""
        ...

    def write(self, at: int, data: bytes) -> None:
        """Write bytes."""
        ...


class ProcessorState(ABC):
    """A processor between two exits.

    Mutable.

    Attributes:
        context: its registers outside the VMCB.
        waits: it asked for an exit when an interrupt may be taken.
    """

    def __init__(self, page: Page, context: Context, start: Vmsa) -> None:
        """Put a processor into its start state.

        Args:
            page: where its VMCB lies.
            context: its other registers.
            start: what a save area holds, and the general registers behind it.
        """
        self._page = page
        self.context = context
        self.waits = False
        self._held = HeldBlock()
        page.write(AT_SAVE, _save_area(start))
        for number, name in enumerate(_REGISTERS):
            context.registers[number] = getattr(start, name)

    @abstractmethod
    def enter(self, *, blocks: int | None) -> Exit:
        """Execute until an exit, or so many blocks."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """The clock of the core that executes it."""

    @abstractmethod
    def flush_caches(self) -> None:
        """Do what WBINVD asks for."""

    @abstractmethod
    def linear_memory(self) -> LinearMemory | None:
        """Give memory as the software addresses it; None: it is ciphertext to whoever runs the processor."""

    def keep_event(self) -> None:
        """After an exit that came while an event was on its way: let it come again."""
        interrupted = self._u64(_AT_INTERRUPTED)
        if interrupted & _EVENT_VALID:
            self._set_event(interrupted)

    # --- events

    def offer(self) -> bool:
        """Say whether an external interrupt may be injected now; if not, ask for an exit when it may be."""
        flags, shadow = self._u64(_AT_RFLAGS), self._u64(_AT_SHADOW)
        open_ = bool(flags & _IF) and not shadow & 1 and not self._u64(_AT_EVENT) & _EVENT_VALID
        if open_ is self.waits:
            self._ask_for_window(wanted=not open_)
        return open_

    def withdraw(self) -> None:
        """Hear that no interrupt waits any more: a device has lowered its line."""
        self._ask_for_window(wanted=False)

    def _ask_for_window(self, *, wanted: bool) -> None:
        """Put a virtual interrupt that exits before it is taken, or take it back."""
        self.waits = wanted
        intercepts = self._u64(AT_INTERCEPTS)
        self._set_u64(AT_INTERCEPTS, intercepts | _VINTR if wanted else intercepts & ~_VINTR)
        self._set_u64(_AT_VIRQ, _V_IRQ if wanted else 0)

    def inject(self, vector: int) -> None:
        """Inject an external interrupt; `offer` has said that it may be."""
        self._set_event(_EVENT_VALID | vector)

    def raise_exception(self, vector: int, error_code: int | None = None) -> None:
        """Inject an exception."""
        error = 0 if error_code is None else _EVENT_ERROR | error_code << 32
        self._set_event(_EVENT_VALID | _EXCEPTION | vector | error)

    def raise_general_protection(self) -> None:
        """Inject #GP(0)."""
        self.raise_exception(_GP, 0)

    def raise_page_fault(self, address: int, error_code: int) -> None:
        """Inject #PF, with its address in CR2."""
        self._set_u64(_AT_CR2, address)
        self.raise_exception(_PF, error_code)

    # --- registers

    def string_io(self, info: int) -> StringIo:
        """Describe the INS or OUTS that exited with EXITINFO1."""
        long = bool(self.efer & Efer.LMA) and bool(self._u64(_AT_SEGMENTS + 16 * _CS) >> 16 & _LONG_CODE)
        return StringIo(info, long=long, backwards=bool(self.rflags & _DF))

    def segment_base(self, number: int) -> int:
        """Base of ES, CS, SS, DS, FS, GS."""
        return self._u64(_AT_SEGMENTS + 16 * number + 8)

    @property
    def controls(self) -> Controls:
        """The control registers that its page walks obey."""
        ac = bool(self.rflags & _AC)
        return Controls(cr0=self.cr0, cr3=self._u64(_AT_CR3), cr4=self.cr4, efer=self.efer, ac=ac)

    @property
    def user(self) -> bool:
        """CPL 3."""
        return self._page.read(_AT_CPL, 1)[0] == _USER_CPL

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return self._u64(_AT_RIP)

    @property
    def rax(self) -> int:
        """RAX, which is in the VMCB."""
        return self._u64(_AT_RAX)

    @rax.setter
    def rax(self, value: int) -> None:
        self._set_u64(_AT_RAX, value)

    @property
    def rsp(self) -> int:
        """RSP, which is in the VMCB."""
        return self._u64(_AT_RSP)

    @property
    def rflags(self) -> int:
        """RFLAGS."""
        return self._u64(_AT_RFLAGS)

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        return bool(self.rflags & _IF)

    @property
    def efer(self) -> int:
        """EFER, with the SVME bit that VMRUN insists on."""
        return self._u64(_AT_EFER)

    @efer.setter
    def efer(self, value: int) -> None:
        self._set_u64(_AT_EFER, value)

    @property
    def cr0(self) -> int:
        """CR0."""
        return self._u64(_AT_CR0)

    @property
    def cr4(self) -> int:
        """CR4."""
        return self._u64(_AT_CR4)

    @property
    def cr2(self) -> int:
        """CR2: where the last page fault was."""
        return self._u64(_AT_CR2)

    @property
    def event(self) -> int:
        """EVENTINJ: what is delivered at the next VMRUN; 0 or not valid: nothing."""
        return self._u64(_AT_EVENT)

    @property
    def shadow(self) -> int:
        """The interrupt shadow, with the guest's interrupt mask that no guest of ours uses."""
        return self._u64(_AT_SHADOW)

    def resume(self, *, event: int, shadow: int) -> None:
        """Go on where another processor stopped: with an event on its way, in an interrupt shadow."""
        self._set_u64(_AT_EVENT, event)
        self._set_u64(_AT_SHADOW, shadow)

    @property
    def time_stamp(self) -> int:
        """The time-stamp counter, as RDTSC gives it: the clock and TSC_OFFSET."""
        return (self.blocks * TSC_PER_BLOCK + self._u64(_AT_TSC_OFFSET)) & _ALL

    def set_time_stamp(self, value: int) -> None:
        """Let it count from here."""
        self._set_u64(_AT_TSC_OFFSET, (value - self.blocks * TSC_PER_BLOCK) & _ALL)

    def skip(self, length: int) -> None:
        """Step over the instruction that exited; an interrupt shadow ends with it."""
        self.go_on_at(self._u64(_AT_RIP) + length)

    def step(self) -> None:
        """Step over the instruction that exited, as long as the processor says that it is (nRIP)."""
        self.go_on_at(self._u64(_AT_NEXT_RIP))

    def go_on_at(self, rip: int) -> None:
        """Go on at an address."""
        self._set_u64(_AT_RIP, rip & 0xFFFF_FFFF_FFFF_FFFF)
        if self._u64(_AT_SHADOW) & 1:
            self._set_u64(_AT_SHADOW, 0)

    def save_area(self) -> Vmsa:
        """The registers as the hypervisor can read them: with plain SEV, all of them."""
        area = self._page.read(AT_SAVE, _SAVE_SIZE)
        state = Vmsa.parse(area.ljust(Vmsa.SIZE, b"\0"), canonical=False)
        others = (name for name in _REGISTERS if name not in ("rax", "rsp"))
        numbers = {name: number for number, name in enumerate(_REGISTERS)}
        return state.replace(**{name: self.context.registers[numbers[name]] for name in others})

    # Most fields are read and written where the VMCB lies, as long as it lies there: an access through the
    # cache costs more than all else that an exit takes.

    def _u64(self, at: int) -> int:
        words = self._held.words
        if words is None or at & 7:
            return int.from_bytes(self._page.read(at, 8), "little")
        return words[at >> 3]

    def _set_u64(self, at: int, value: int) -> None:
        words = self._held.words
        if words is None or at & 7:
            self._page.write(at, value.to_bytes(8, "little"))
        else:
            words[at >> 3] = value

    def _set_event(self, value: int) -> None:
        self._set_u64(_AT_EVENT, value)


def _save_area(start: Vmsa) -> bytes:
    whole = bytes(start.replace(efer=start.efer | Efer.SVME))
    return whole[:_SAVE_SIZE]
