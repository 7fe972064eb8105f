"""A guest with the least around it: a serial port, a device that copies memory, a box of requests.

    turn     VMRUN until the guest halts, its time is over, or it cannot go on
    ask      put a request into the box, and give the guest turns until it is answered

A guest that halts has nothing to do; it is run again when somebody wants something of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

from cbit.hypervisor.devices.copier import Copier
from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import Ports
from cbit.hypervisor.devices.requests import Asked, RequestBox
from cbit.hypervisor.devices.serial import Serial
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.exits import EXIT_NAMES, Exits, Next, Stop
from cbit.hypervisor.execution.vcpu import ExecutingVcpu
from cbit.hypervisor.guest_dma import GuestDma
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import Vm
from cbit.memory.dma import DmaPort
from cbit.spec.errors import CbitError
from cbit.spec.vmsa import Vmsa

if TYPE_CHECKING:
    from cbit.cpu.engine.control_block import Exit

PATIENCE: Final = 20_000_000  #: blocks of guest code for one request
RAX, RSP = 0, 4  #: places in `SmallGuest.registers`


class NoAnswer(CbitError):
    """The guest did not do what it was asked for; the message says whether it ended, and by which exit."""


class Turn(Enum):
    """How a turn ended."""

    HALTED = "it has nothing to do"
    INTERRUPTED = "its time was over"
    ENDED = "it cannot go on"


class Transcript:
    """What a guest wrote on its serial line.

    Mutable.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.bytes = bytearray()

    def write(self, byte: int) -> None:
        """Take a byte."""
        self.bytes.append(byte)

    def read(self) -> bytes:
        """Nobody types."""
        return b""

    @property
    def lines(self) -> list[str]:
        """The text, line by line, without empty lines."""
        return [line for line in self.bytes.decode("ascii", "replace").splitlines() if line]


class SmallGuest:
    """The guest.

    Mutable.

    Attributes:
        vm: its memory.
        vcpu: its virtual CPU.
        console: what it wrote.
        copier: the device.
        requests: the box.
        stop: why it cannot go on; None while it can.
        last: its last exit; None before the first.
        turns: how many it had.
    """

    def __init__(
        self,
        vm: Vm,
        start: Vmsa,
        *,
        core: int = 0,
        asid: int | None = None,
        dma: DmaPort | None = None,
    ) -> None:
        """Put a guest into its start state (other arguments and errors as `ExecutingVcpu`).

        Args:
            vm: its memory.
            start: its registers.
            core: which core executes it.
            asid: another ASID than its own.
            dma: the port that its device uses; by default one that drives all address bits.
        """
        machine = vm.host.machine
        self.vm = vm
        self.vcpu = ExecutingVcpu(vm, start, core=core, asid=asid)
        self._engine: Final = machine.cores[core].engine
        ports = Ports(machine.trace)
        self.console = Transcript()
        Serial(self.console, Interrupts()).attach(ports)
        self.copier = Copier(GuestDma(vm, dma or machine.dma_port()), ports)
        self.requests = RequestBox(ports)
        cpuid = GuestCpuid(machine.cores[core], sev=vm.protection is Protection.SEV)
        self._exits = Exits(self.vcpu, cpuid=cpuid, ports=ports)
        self.stop: Stop | None = None
        self.last: Exit | None = None
        self.turns = 0

    @property
    def exits(self) -> dict[str, int]:
        """How often it left guest mode, by the name of the exit."""
        return {EXIT_NAMES.get(code, hex(code)): count for code, count in self._exits.counts.items()}

    @property
    def registers(self) -> bytes:
        """The general registers in the order of their encoding: plain SEV leaves them to the hypervisor."""
        kept = bytearray(self.vcpu.context.registers)
        kept[8 * RAX : 8 * RAX + 8] = self.vcpu.rax.to_bytes(8, "little")  # in the VMCB, not beside it
        kept[8 * RSP : 8 * RSP + 8] = self.vcpu.rsp.to_bytes(8, "little")
        return bytes(kept)

    def turn(self, blocks: int = PATIENCE) -> Turn:
        """Let it execute until it halts, ends, or has had its time.

        Args:
            blocks: its time.

        Raises:
            VmexitInvalid, NotModelled, EngineFault: VMRUN refuses, or the engine fails.
        """
        self.turns += 1
        end = self._engine.blocks + blocks
        while self.stop is None:
            left = end - self._engine.blocks
            if left <= 0:
                return Turn.INTERRUPTED
            self.last = self.vcpu.enter(blocks=left)
            then = self.emulate(self.last)
            if then is Next.HALTED:
                return Turn.HALTED
            if then is not Next.RUN:
                self.stop = self._exits.stop
        return Turn.ENDED

    def emulate(self, done: Exit) -> Next:
        """Do what an exit asks of the devices and of the processor's answers, as `turn` does at each."""
        return self._exits.handle(done)

    def ask(self, number: int, *arguments: int, blocks: int = PATIENCE) -> Asked:
        """Ask for something and wait for the end of it, done or not done.

        Raises:
            NoAnswer: the guest ended, or took too long; other errors as `turn`.
        """
        asked = self.requests.ask(number, *arguments)
        self.finish([asked], blocks=blocks)
        return asked

    def finish(self, asked: Iterable[Asked], *, blocks: int = PATIENCE) -> None:
        """Give it time until some requests have ended (errors as `ask`)."""
        end = self._engine.blocks + blocks
        for each in asked:
            halts = 0
            while each.status is None:
                left = end - self._engine.blocks
                if left <= 0:
                    raise NoAnswer(f"the guest did not answer request {each.number} within {blocks} blocks")
                turn = self.turn(left)
                if turn is Turn.ENDED:
                    raise NoAnswer(f"the guest ended: {self.stopped}")
                # Once may be: it had looked for a request just before there was one.
                halts += turn is Turn.HALTED
                if each.status is None and halts > 1:
                    raise NoAnswer(f"the guest halts and does not answer request {each.number}")

    def leave(self) -> None:
        """Run no more: it has moved to another machine."""
        self.stop = Stop(Next.MOVED, "it runs on another machine")

    @property
    def stopped(self) -> str:
        """Why it cannot go on, with the exit that came."""
        if self.stop is None or self.last is None:
            return "it runs"
        return f"#VMEXIT {EXIT_NAMES.get(self.last.code, hex(self.last.code))}: {self.stop.why}"
