"""A virtual CPU that executes: its VMCB in the machine's memory, its registers, events on their way in.

      start state (a save area) ──> VMCB ── VMRUN … #VMEXIT ──> handlers ──> VMRUN …

Plain SEV leaves the save area in the clear: the hypervisor reads and writes it, and so can an attack.

Paper: memory-encryption.md §7 rule 3 (who flushes), §8 rules 3 and 5, §10.1; the control area is the AMD64
architecture's own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from cbit.cpu.control import Efer
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.tlb import TlbControl
from cbit.cpu.vmcb import Enable
from cbit.hypervisor.execution.msrs import DIRECT, EFER
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Spa
from cbit.spec.vmsa import Vmsa

_INTR, _VINTR, _INVD, _CPUID = 1 << 0, 1 << 4, 1 << 0x16, 1 << 0x12
_HLT, _IOIO, _MSR, _SHUTDOWN = 1 << 0x18, 1 << 0x1B, 1 << 0x1C, 1 << 0x1F
_VMRUN, _VMMCALL, _WBINVD = 1 << 0x20, 1 << 0x21, 1 << 0x29
INTERCEPTS: Final = _INTR | _INVD | _CPUID | _HLT | _IOIO | _MSR | _SHUTDOWN | _VMRUN | _VMMCALL | _WBINVD

_AT_INTERCEPTS, _AT_TLB, _AT_VIRQ, _AT_SHADOW, _AT_EXIT = 0x00C, 0x05C, 0x060, 0x068, 0x070
_AT_INTERRUPTED, _AT_EVENT, _AT_CLEAN, _AT_SAVE = 0x088, 0x0A8, 0x0C0, 0x400
_AT_EFER, _AT_CR4, _AT_CR0, _AT_RFLAGS, _AT_RIP, _AT_RSP, _AT_RAX, _AT_CR2 = (
    *(0x4D0, 0x548, 0x558, 0x570, 0x578, 0x5D8, 0x5F8, 0x640),
)
_SAVE_SIZE: Final = 0x300
#: What is read and written together: (first byte, length) of the part that each field is in.
_PARTS: Final = (
    (0x008, 0x010),
    (0x060, 0x050),
    (0x4D0, 0x008),
    (0x548, 0x018),
    (0x570, 0x090),
    (0x640, 0x008),
)
_PART_OF: Final[Mapping[int, tuple[int, int]]] = {
    at: (start, length) for start, length in _PARTS for at in range(start, start + length, 4)
}
_V_IRQ: Final = 1 << 8 | 1 << 20  # pending, and TPR does not hold it back
_EVENT_VALID, _EVENT_ERROR = 1 << 31, 1 << 11
_EXCEPTION: Final = 3 << 8
_IF: Final = 1 << 9
_CLEAN_MAPS: Final = 1 << 1
_GP: Final = 13
_REGISTERS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


class ExecutingVcpu:
    """One virtual CPU.

    Mutable.  Its frames go back with the guest's memory.

    Attributes:
        vm: the guest.
        core: number of the core that executes it.
        vmcb_at: where its VMCB lies; who has the power to write there may.
        context: its registers outside the VMCB.
    """

    def __init__(
        self,
        vm: Vm,
        start: Vmsa,
        *,
        core: int = 0,
        asid: int | None = None,
        sev: bool | None = None,
    ) -> None:
        """Make a virtual CPU in its start state.

        Args:
            vm: the guest.
            start: its registers: what a save area holds, and the general registers behind it.
            core: which core executes it.
            asid: another ASID than the guest's own.
            sev: whether the VMCB asks for SEV, if that is not what the guest's protection says.

        Raises:
            NoEngine: this computer cannot execute guests.
        """
        self.vm = vm
        self.core = core
        self._host = vm.host
        self._core = vm.host.machine.cores[core]
        self.context = self._core.new_context()
        sev = vm.protection is Protection.SEV if sev is None else sev
        self.vmcb_at = vm.take_page()
        self._page = vm.host.window(self.vmcb_at)
        self._page.write(
            0, self._control_area(vm.asid if asid is None else asid, sev=sev) + bytes(PAGE - 0x400)
        )
        self._page.write(_AT_SAVE, _save_area(start))
        for number, name in enumerate(_REGISTERS):
            self.context.registers[number] = getattr(start, name)
        self._asid = vm.asid if asid is None else asid
        self._waits = False
        self._fields: dict[int, bytearray] = {}  # parts of the VMCB read since the last exit
        self._changed: set[int] = set()  # which of them were changed

    def _control_area(self, asid: int, *, sev: bool) -> bytes:
        area = bytearray(_AT_SAVE)
        iopm, msrpm = permission_maps(self.vm)
        for form, at, value in (
            ("Q", _AT_INTERCEPTS, INTERCEPTS),
            ("Q", 0x040, iopm),
            ("Q", 0x048, msrpm),
            ("I", 0x058, asid),
            ("Q", 0x090, int(Enable.NP_ENABLE | (Enable.SEV if sev else Enable(0)))),
            ("Q", 0x0B0, self.vm.tables.ncr3),
        ):
            struct.pack_into("<" + form, area, at, value)
        return bytes(area)

    # --- VMRUN

    def enter(self, *, blocks: int | None) -> Exit:
        """VMRUN until #VMEXIT, with the flush that a change of VMCB under one ASID needs.

        Raises:
            VmexitInvalid, NotModelled, EngineFault: as ``Core.execute``.
        """
        last = self._host.last_vmcb
        place = (self.core, self._asid)
        mine = last.get(place) == self.vmcb_at
        if not mine:
            self._page.write(_AT_TLB, bytes((TlbControl.THIS_ASID,)))
            self._page.write(_AT_CLEAN, b"\0\0\0\0")
        self.settle()
        done = self._core.execute(self.vmcb_at, self.context, blocks=blocks)
        if not mine:
            last[place] = self.vmcb_at
            self._page.write(_AT_TLB, bytes((TlbControl.NOTHING,)))
            self._page.write(_AT_CLEAN, _CLEAN_MAPS.to_bytes(4, "little"))
        interrupted = self._u64(_AT_INTERRUPTED)
        if interrupted & _EVENT_VALID:  # the exit came while an event was on its way: it must come again
            self._set_event(interrupted)
        return done

    def settle(self) -> None:
        """Write what was changed to the VMCB; what others write there is seen from now on."""
        for start in self._changed:
            self._page.write(start, bytes(self._fields[start]))
        self._changed.clear()
        self._fields.clear()

    # --- events

    def offer(self) -> bool:
        """Say whether an external interrupt may be injected now; if not, ask for an exit when it may be."""
        flags, shadow = self._u64(_AT_RFLAGS), self._u64(_AT_SHADOW)
        open_ = bool(flags & _IF) and not shadow & 1 and not self._u64(_AT_EVENT) & _EVENT_VALID
        if open_ is self._waits:
            self._ask_for_window(wanted=not open_)
        return open_

    def withdraw(self) -> None:
        """Hear that no interrupt waits any more: a device has lowered its line."""
        if self._waits:
            self._ask_for_window(wanted=False)

    def _ask_for_window(self, *, wanted: bool) -> None:
        """Put a virtual interrupt that exits before it is taken, or take it back."""
        self._waits = wanted
        intercepts = self._u64(_AT_INTERCEPTS)
        self._set_u64(_AT_INTERCEPTS, intercepts | _VINTR if wanted else intercepts & ~_VINTR)
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

    # --- registers

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

    def skip(self, length: int) -> None:
        """Step over the instruction that exited; an interrupt shadow ends with it."""
        self.go_on_at(self._u64(_AT_RIP) + length)

    def go_on_at(self, rip: int) -> None:
        """Go on at an address."""
        self._set_u64(_AT_RIP, rip & 0xFFFF_FFFF_FFFF_FFFF)
        if self._u64(_AT_SHADOW) & 1:
            self._set_u64(_AT_SHADOW, 0)

    def save_area(self) -> Vmsa:
        """The registers as the hypervisor can read them: with plain SEV, all of them."""
        self.settle()
        area = self._page.read(_AT_SAVE, _SAVE_SIZE)
        state = Vmsa.parse(area.ljust(Vmsa.SIZE, b"\0"), canonical=False)
        others = (name for name in _REGISTERS if name not in ("rax", "rsp"))
        numbers = {name: number for number, name in enumerate(_REGISTERS)}
        return state.replace(**{name: self.context.registers[numbers[name]] for name in others})

    def _u64(self, at: int) -> int:
        start, part = self._part(at)
        return int.from_bytes(part[at - start : at - start + 8], "little")

    def _set_u64(self, at: int, value: int) -> None:
        start, part = self._part(at)
        part[at - start : at - start + 8] = value.to_bytes(8, "little")
        self._changed.add(start)

    def _part(self, at: int) -> tuple[int, bytearray]:
        """Read the part of the VMCB that holds a field, once between two exits: each access costs."""
        start, length = _PART_OF[at]
        part = self._fields.get(start)
        if part is None:
            part = self._fields[start] = bytearray(self._page.read(start, length))
        return start, part

    def _set_event(self, value: int) -> None:
        self._set_u64(_AT_EVENT, value)


def permission_maps(vm: Vm) -> tuple[Spa, Spa]:
    """Build the I/O and MSR permission maps of a guest: every port and all but a few registers exit."""
    frames = vm.take_run(5 * PAGE)
    vm.host.write(Spa(frames.start), b"\xff" * (3 * PAGE))
    msrs = bytearray(b"\xff" * (2 * PAGE))
    for number in DIRECT:
        _permit(msrs, number)
    assert EFER not in DIRECT  # the guest's view of it lacks SVME
    vm.host.write(Spa(frames.start + 3 * PAGE), bytes(msrs))
    return Spa(frames.start), Spa(frames.start + 3 * PAGE)


_MSR_RANGES: Final[Mapping[int, int]] = {0x0: 0x0, 0xC000_0000: 0x800, 0xC001_0000: 0x1000}  # base -> offset


def _permit(msrs: bytearray, number: int) -> None:
    base = number & 0xFFFF_0000 if number >= 0xC000_0000 else 0
    bit = 2 * (number - base)
    msrs[_MSR_RANGES[base] + bit // 8] &= ~(3 << bit % 8) & 0xFF


def _save_area(start: Vmsa) -> bytes:
    whole = bytes(start.replace(efer=start.efer | Efer.SVME))
    return whole[:_SAVE_SIZE]
