"""VMRUN … #VMEXIT: what a hypervisor sees of the execution engine.

      hypervisor        VMCB and nested tables in the machine's memory
         | run(vmcb)                     ^ exit code, save area
      engine            copy of the VMCB, private tables, one instance of unicorn
         | fault, fill, dirty            v
      cache             the only place with plaintext

Every exit that the hypervisor asked for, and every nested fault that its own tables cause, is a real #VMEXIT
with a real code in the real VMCB.  Faults by which the engine fetches pages stay between it and the cache.

MODEL CHOICE: one run is VMLOAD, VMRUN, VMSAVE, as hypervisors do it.  A deadline is a physical interrupt that
the guest cannot mask.  QEMU's TLB is emptied where another ASID is entered, or the same with another CR0, CR4
or EFER; with another CR3 it is not, for hardware leaves that flush to the hypervisor.  The translations of
`Shadow` stay.
Paper: memory-encryption.md §4.2, §6, §7, §8, §10.1.
Not modelled: SEV-ES, guests that are hypervisors, decode assists, the guest's interrupt shadow across VMRUN.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from cbit.cpu.control import AddressRules
from cbit.cpu.encryption_rules import HostSituation, host_key
from cbit.cpu.engine.block_loan import BlockLoan, HeldBlock
from cbit.cpu.engine.checks import C_BIT, Checks, HostSide
from cbit.cpu.engine.control_block import (
    OF_HYPERVISORS,
    OURS,
    UD_INTERCEPT,
    At,
    BareRegisters,
    ControlBlock,
    Exit,
    Intercept,
)
from cbit.cpu.engine.control_registers import CR3_RESERVED, cr4_reserved
from cbit.cpu.engine.native import RANDOM_WORDS, Answer
from cbit.cpu.engine.own_exits import OwnExits
from cbit.cpu.engine.processor import Context, Processor, address_of
from cbit.cpu.engine.shadow import Counters, Shadow, Space
from cbit.cpu.engine.translations import BareMemory
from cbit.cpu.engine.turn import Turn
from cbit.cpu.host_tables import HostTranslator
from cbit.cpu.tlb import LastRuns, TlbControl, VmMode
from cbit.crypto.entropy import Entropy
from cbit.memory.lending import SlotLender
from cbit.spec.address import PAGE, Spa
from cbit.trace import SILENT, Trace

_SPARE_TABLES: Final = 64
_LOOKED_AT: Final = int(OF_HYPERVISORS | Intercept.WBINVD | Intercept.MSR)
_INTERCEPTED: Final = int(OURS)
_NEVER: Final = (1 << 64) - 1
_EXIT: Final = struct.Struct("<3Q")


class Engine:
    """Executes guests on one core.

    Mutable.  One thread at a time; several engines may share the machine's memory.

    Attributes:
        exits: how often each exit code went to a hypervisor.
        clock: one word, `blocks`: looked at so often that a call would be dear.
    """

    def __init__(
        self, lender: SlotLender, *, entropy: Entropy, spaces: int = 64, trace: Trace = SILENT
    ) -> None:
        """Make an engine over a cache.

        Args:
            lender: the cache.
            entropy: what RDRAND hands out.
            spaces: how many ASIDs may have translations at once.
            trace: who hears of VMRUN and #VMEXIT.

        Raises:
            NoEngine: this computer cannot execute guests; the message says what is missing.
        """
        pages = spaces * 4 + min(len(lender.window) // PAGE, 1 << 14) + _SPARE_TABLES
        self._processor = Processor(lender.window, table_pages=pages)
        self._shadow = Shadow(self._processor, lender, spaces=spaces, entropy=entropy)
        self._entropy = entropy
        self._trace = trace
        self._maps: dict[int, bytes] = {}
        self._turn: Turn | None = None
        self._checks = Checks(trace)
        self._last: Turn | None = None
        self._runs = LastRuns()
        self._loan = BlockLoan(self._processor, lender)
        self._window = lender.window
        self._interrupted = False
        self.exits: dict[int, int] = {}
        self.clock: Final = self._processor.clock
        self._processor.state.cr3_reserved = CR3_RESERVED
        self._processor.state.cr4_reserved = cr4_reserved(self._processor.cpuid)
        own = OwnExits(self._processor, self._shadow)
        self._processor.answer(
            lambda code: self._answer(lambda turn: own.answer(turn, code)),
            lambda: self._answer(own.invalid),
            self._refill,
        )

    @property
    def counters(self) -> Counters:
        """What the private tables did."""
        return self._shadow.counters

    @property
    def held_block(self) -> HeldBlock:
        """The VMCB that ran last, where it lies."""
        return self._loan.held

    @property
    def blocks(self) -> int:
        """The clock: blocks of guest code executed since power-on."""
        return int(self.clock[0])

    @property
    def aborted(self) -> int:
        """How often unicorn gave up on a guest, which was shut down for it."""
        return int(self._processor.state.aborted)

    @property
    def turns_at_once(self) -> int:
        """How many of the blocks were turns of string instructions that were done in one go."""
        return int(self._processor.state.again.turns)

    def interrupt(self) -> None:
        """Let a physical interrupt come at the next block, and in each run at its first one, until `go_on`.

        Any thread may ask for it.
        """
        self._interrupted = True
        self._processor.state.deadline = 0

    def go_on(self) -> None:
        """Hear that whoever interrupted has been heard."""
        self._interrupted = False

    def advance(self, blocks: int) -> None:
        """Let time pass while no guest executes."""
        self.clock[0] += blocks

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Execute CPUID outside guest mode: EAX, EBX, ECX, EDX of the processor that executes guests."""
        return self._processor.cpuid(leaf, subleaf)

    def flush(self, control: TlbControl, *, asid: int = 0) -> None:
        """Forget translations, as an instruction of the host or a reset asks for."""
        self._shadow.flush(control, asid=asid)

    def used_pages(self, asid: int) -> dict[int, bool]:
        """Say which guest physical pages an ASID used, and whether with a key when last made accessible."""
        return self._shadow.used(asid)

    def forget_use(self, asid: int) -> None:
        """Forget which pages an ASID used."""
        self._shadow.forget_use(asid)

    def new_context(self) -> Context:
        """Make the registers of a virtual CPU that are not in its VMCB."""
        return self._processor.new_context()

    @property
    def processor(self) -> Processor:
        """What has the registers that VMRUN does not load."""
        return self._processor

    def run(self, vmcb_at: Spa, context: Context, host: HostSide, *, blocks: int | None = None) -> Exit:
        """VMRUN until #VMEXIT.

        Args:
            vmcb_at: rAX: physical address of the VMCB; its C-bit chooses the host's key.
            context: the virtual CPU's other registers.
            host: the core.
            blocks: a physical interrupt comes after so many blocks of guest code.

        Raises:
            VmexitInvalid: the VMCB was refused, which its EXITCODE says too.
            NotModelled: what this engine cannot run.
            EngineFault: the engine failed.
        """
        turn = self._last
        if (
            turn is None
            or turn.vmcb_at != vmcb_at
            or turn.host is not host
            or turn.flushes
            or (turn.mode is VmMode.SEV and not host.state.asid_usable(turn.space.asid))
            or not self._take_turn(turn, context, blocks, turn.good)
        ):
            self._last = None
            turn = self._last = self._enter(vmcb_at, host)
            self._take_turn(turn, context, blocks)
        slot = self._loan.slot
        if slot is None:
            done = turn.block.save(self._processor.vmcb)
        else:
            done = Exit._make(_EXIT.unpack_from(self._window, slot + At.EXIT_CODE))
        return self._count(turn, done)

    def run_bare(
        self,
        registers: memoryview,
        msrpm: bytes,
        context: Context,
        host: HostSide,
        *,
        memory_size: int,
        elsewhere: Mapping[Spa, Spa],
        blocks: int | None = None,
    ) -> Exit:
        """Execute software on the bare machine until it needs the board: there is no hypervisor and no guest.

        Its physical addresses are the machine's own; its page tables' C-bit, at position `C_BIT`, chooses the
        host's key for data, fetches and walks alike.

        Args:
            registers: a page of this process in the form of a VMCB: what a core keeps on the chip.
            msrpm: an MSR permission map: which registers the core keeps itself.
            context: the other registers.
            host: the core.
            memory_size: bytes of DRAM.
            elsewhere: pages behind DRAM that can be read, and the frame of DRAM that each shows.
            blocks: come back after so many blocks.

        Raises:
            EngineFault: the engine failed.

        Paper: memory-encryption.md §4.1.
        """
        turn = self._last
        if turn is None or turn.registers is not registers or turn.host is not host:
            self._last = None
            memory = (memory_size, elsewhere)
            turn = self._last = self._enter_bare(registers, msrpm, host, memory)
        self._processor.state.block = address_of(registers)
        try:
            self._take_turn(turn, context, blocks)
        finally:
            self._processor.state.block = None
        return self._count(turn, Exit._make(_EXIT.unpack_from(registers, At.EXIT_CODE)))

    def _take_turn(self, turn: Turn, context: Context, blocks: int | None, good: bytes | None = None) -> bool:
        """Run; False if the VMCB must be looked at first, because it has not these fields any more."""
        state = self._processor.state
        state.deadline = _NEVER if blocks is None else self.clock[0] + blocks
        if self._interrupted:  # looked at last: `interrupt` writes both in the other order
            state.deadline = 0
        self._turn = turn
        try:
            ran = self._processor.run(context, id(turn.space), good)
        finally:
            self._turn = None
        if turn.error is not None:
            error, turn.error = turn.error, None
            raise error
        return ran

    def _count(self, turn: Turn, done: Exit) -> Exit:
        self.exits[done.code] = self.exits.get(done.code, 0) + 1
        self._trace.emit("cpu.engine", "#VMEXIT", code=done.code, asid=turn.space.asid)
        return done

    # --- VMRUN

    def _enter(self, vmcb_at: Spa, host: HostSide) -> Turn:
        at, c = host.state.rules.split(vmcb_at)
        spa = Spa(at)
        key = host_key(HostSituation.WITH_PAE if host.state.encryption_on else HostSituation.OFF, c=c)
        block = ControlBlock(host.port, spa, key)
        checked = self._checks.accept(block, host)
        control = checked.tlb_control
        if host.state.mitigations.flushes_for_another_vcpu:
            control = self._runs.flush_for(checked.asid, spa, control)
        self._shadow.flush(control, asid=checked.asid)
        space = self._shadow.space(
            checked.asid,
            checked.mode,
            nested=checked.nested,
            vte=checked.vte,
            encryption_on=host.state.encryption_on,
        )
        self._load_maps(block, host)
        self._prepare(space, block)
        self._loan.take(spa, key)
        self._trace.emit("cpu.engine", "VMRUN", asid=checked.asid, mode=checked.mode.value)
        flushes = checked.tlb_control is not TlbControl.NOTHING
        return Turn(host, vmcb_at, block, space, checked.mode, flushes, block.control_fields)

    def _enter_bare(
        self, registers: memoryview, msrpm: bytes, host: HostSide, memory: tuple[int, Mapping[Spa, Spa]]
    ) -> Turn:
        on = host.state.encryption_on
        rules = AddressRules(C_BIT, C_BIT) if on else AddressRules(C_BIT + 1, None)
        bare = BareMemory(HostTranslator(host.port, rules), *memory)
        block = BareRegisters(registers, msrpm)
        space = self._shadow.bare_space(bare, encryption_on=on)
        self._shadow.forget(space)
        self._load_maps(block, host)
        self._prepare(space, block)
        self._loan.give_back()
        mode = VmMode.PLAIN
        return Turn(host, Spa(-1), block, space, mode, False, block.control_fields, registers=registers)

    def _prepare(self, space: Space, block: ControlBlock) -> None:
        state = self._processor.state
        state.root, state.root_without_c_bit = space.roots.root, space.roots.root_without_c_bit
        state.c_bit = 1 << C_BIT if space.sev else 0
        state.ours, state.intercepts = _LOOKED_AT, _INTERCEPTED
        state.ud_is_ours = block.exceptions & UD_INTERCEPT

    def _load_maps(self, block: ControlBlock, host: HostSide) -> None:
        maps = block.permission_maps((1 << host.state.rules.width) - 1)
        for at, contents in maps.items():
            if self._maps.get(at) != contents:
                self._processor.permission_maps[at][:] = contents
        self._maps = maps

    # --- exits that are, or may be, the engine's own

    def _answer(self, act: Callable[[Turn], Answer]) -> int:
        """Nothing may be raised through unicorn: an error ends the turn, and `run` raises it."""
        turn = self._turn
        if turn is None:
            return Answer.LEAVE
        try:
            return act(turn)
        except BaseException as error:  # also KeyboardInterrupt: it is raised by `run`
            turn.error = error
            return Answer.LEAVE

    def _refill(self) -> int:
        """Draw randomness for RDRAND."""
        state = self._processor.state
        state.random[:] = struct.unpack(f"<{RANDOM_WORDS}Q", self._entropy.draw(8 * RANDOM_WORDS))
        state.random_left = RANDOM_WORDS
        return 1
