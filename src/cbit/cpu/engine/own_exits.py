"""Exits that are, or may be, the engine's own affair: nested faults, and what QEMU does not do right.

Paper: memory-encryption.md §2.2 (SEV_STATUS), §6.2, §6.5 (flushes).
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.cpu.control import Controls
from cbit.cpu.encryption_rules import Use
from cbit.cpu.engine.control_block import SEV_STATUS, At
from cbit.cpu.engine.instructions import MAX_LENGTH, Instruction, Machine, Op, decode
from cbit.cpu.engine.native import Answer
from cbit.cpu.engine.processor import RAX, RCX, RDX, Processor
from cbit.cpu.engine.shadow import Shadow
from cbit.cpu.engine.turn import Turn
from cbit.cpu.faults import ExitCode, GeneralProtection, NestedPageFault, PageFault, PageFaultCode
from cbit.cpu.msr import SevStatus
from cbit.cpu.paging import Access, Kind
from cbit.cpu.tlb import VmMode
from cbit.spec.address import PAGE
from cbit.spec.errors import NotModelled

_WBINVD, _INVD, _MSR, _UD, _EXCEPTION = 0x89, 0x76, 0x7C, 0x46, 0x40
_USER_CPL: Final = 3
_LONG_CODE: Final = 1 << 15  # in the hidden flags
_GP, _PF, _UD_VECTOR = 13, 14, 6


class OwnExits:
    """Answers them.  It keeps nothing."""

    def __init__(self, processor: Processor, shadow: Shadow) -> None:
        self._processor = processor
        self._shadow = shadow

    def answer(self, turn: Turn, code: int) -> Answer:
        """Answer an exit that QEMU made."""
        if code == ExitCode.NPF:
            return self._nested_fault(turn)
        if code == _WBINVD:
            return self._cache_instruction(turn)
        if code == _MSR and self._processor.register(RCX).value & 0xFFFF_FFFF == SEV_STATUS:
            return self._sev_status(turn)
        if code == _UD:
            return self.invalid(turn)
        if code != _MSR and not turn.block.intercepts_exit(code):
            # MODEL CHOICE: a guest is no hypervisor; its SVM instructions do not exist.
            return self._raise(turn, _UD_VECTOR)
        return Answer.LEAVE

    def _nested_fault(self, turn: Turn) -> Answer:
        state = self._processor.state
        try:
            self._shadow.fault(
                turn.space, state.exit_info_2, state.exit_info_1, has_c_bit=bool(state.has_c_bit)
            )
        except NestedPageFault as fault:
            return self._leave_with(fault)
        return Answer.RESTART

    def _cache_instruction(self, turn: Turn) -> Answer:
        found = self._instruction(turn)
        invd = found is not None and found.op is Op.INVD
        code = _INVD if invd else _WBINVD
        if found is None or turn.block.intercepts_exit(code):
            self._processor.state.exit_code = code
            return Answer.LEAVE
        memory = turn.host.port.memory
        if invd and not turn.host.invd_is_wbinvd:
            memory.invd()
        else:
            memory.wbinvd()
            turn.host.wbinvd_done()
        return self._skip(found)

    def _sev_status(self, turn: Turn) -> Answer:
        found = self._instruction(turn)
        write = self._processor.state.exit_info_1 & 1
        if found is None or write:
            return self._raise(turn, _GP)
        value = int(SevStatus.SEV) if turn.mode is VmMode.SEV else 0
        self._processor.register(RAX).value = value
        self._processor.register(RDX).value = 0
        return self._skip(found)

    def invalid(self, turn: Turn) -> Answer:
        """Do a cache-line flush, for which QEMU has no effect; everything else is invalid indeed."""
        found = self._same_flush() or self._instruction(turn)
        if found is None or found.op is not Op.FLUSH_LINE:
            return self._raise(turn, _UD_VECTOR)
        walker, controls = turn.space.nested.walker, self._controls()
        try:
            where = walker.translate(found.address, self._access(Kind.READ), controls)
        except PageFault as fault:
            return self._raise(turn, _PF, int(fault.code), address=fault.address)
        except GeneralProtection:
            return self._raise(turn, _GP)
        except NestedPageFault as fault:
            return self._leave_with(fault)
        key = walker.key(Use.DATA, where, controls)
        turn.host.port.memory.clflush(where.spa(found.address), key)
        if found.base is not None:
            self._may_repeat(found)
        return self._skip(found)

    def _same_flush(self) -> Instruction | None:
        """The flush that was the last to be done, with another page before it; None if it is not the same."""
        processor, flushed = self._processor, self._processor.state.flushed
        if not flushed.length or flushed.rip != processor.rip.value:
            return None
        address = (processor.register(flushed.base).value + flushed.distance) & (1 << 64) - 1
        return Instruction(Op.FLUSH_LINE, flushed.length, address, flushed.base)

    def _may_repeat(self, done: Instruction) -> None:
        """Let the native side skip the same flush of other lines of the page: its copy has left."""
        processor, flushed = self._processor, self._processor.state.flushed
        assert done.base is not None  # the caller looked
        flushed.rip, flushed.length = processor.rip.value, done.length
        flushed.page, flushed.base = done.address & -PAGE, done.base
        flushed.distance = (done.address - processor.register(done.base).value) & (1 << 64) - 1

    def _leave_with(self, fault: NestedPageFault) -> Answer:
        state = self._processor.state
        state.exit_code, state.exit_info_1 = int(ExitCode.NPF), fault.exit_info_1
        address = fault.exit_info_2
        if fault.exit_info_1 & PageFaultCode.TABLE and address & -PAGE == state.cr3 & -PAGE | state.c_bit:
            address &= ~state.c_bit | state.cr3  # the engine's C-bit, unless the guest had set it too
        struct.pack_into("<Q", self._processor.vmcb, At.EXIT_INFO_2, address)
        return Answer.LEAVE

    # --- the running guest

    def _raise(self, turn: Turn, vector: int, error_code: int = 0, *, address: int | None = None) -> Answer:
        """Raise an exception, which the hypervisor may intercept; with it the address of a page fault."""
        processor, state = self._processor, self._processor.state
        if turn.block.exceptions >> vector & 1:
            state.exit_code, state.exit_info_1 = _EXCEPTION + vector, error_code
            if address is not None:
                struct.pack_into("<Q", processor.vmcb, At.EXIT_INFO_2, address)
            return Answer.LEAVE
        if address is not None:
            processor.set_cr2(address)
        processor.raise_in_guest(vector, error_code)
        return Answer.DELIVER

    def _skip(self, done: Instruction) -> Answer:
        self._processor.rip.value += done.length
        return Answer.RESUME

    def _controls(self) -> Controls:
        processor = self._processor
        # AC is not looked at: a flush through a user page is allowed to a supervisor under SMAP here.
        return Controls(
            cr0=processor.control(0),
            cr3=processor.control(3),
            cr4=processor.control(4),
            efer=processor.efer,
            ac=True,
        )

    def _access(self, kind: Kind) -> Access:
        return Access(kind, user=self._processor.flags & 3 == _USER_CPL)

    def _instruction(self, turn: Turn) -> Instruction | None:
        """Decode what the guest is about to execute; None if it is nothing that the engine knows."""
        processor = self._processor
        long = bool(processor.flags & _LONG_CODE)
        machine = Machine(
            rip=processor.rip.value,
            long=long,
            register=lambda number: processor.register(number).value,
            base=processor.segment_base,
        )
        linear = machine.rip + (0 if long else processor.segment_base(1))
        return decode(self._fetch(turn, linear, MAX_LENGTH), machine)

    def _fetch(self, turn: Turn, linear: int, length: int) -> bytes:
        """Read instruction bytes as the guest would fetch them, as far as its tables allow."""
        walker, controls, code = turn.space.nested.walker, self._controls(), b""
        while len(code) < length:
            at = linear + len(code)
            count = min(length - len(code), PAGE - at % PAGE)
            try:
                where = walker.translate(at, self._access(Kind.FETCH), controls)
            except (PageFault, GeneralProtection, NestedPageFault, NotModelled, ValueError):
                break
            key = walker.key(Use.FETCH, where, controls)
            code += turn.host.port.read(where.spa(at), count, key)
        return code
