"""The loop around VMRUN: time, interrupts, exits; one guest, or several in turn on one core.

      advance devices ── interrupt? inject ── VMRUN until exit or the next event ── handle ──┐
            ^───────────────────────────────────────────────────────────────────────────────┘

A guest that halts lets time pass until a device wants something; when all halt, time jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Protocol

from cbit.hypervisor.execution.clock import NS_PER_BLOCK, PORT_NS, BlockClock
from cbit.hypervisor.execution.exits import INTR, IOIO, Exits, Next, Ports, Stop
from cbit.hypervisor.execution.state import ProcessorState

SLICE: Final = 1_000_000  #: blocks (10 ms) after which another guest gets the core
_FOREVER_NS: Final = 1_000_000_000  # without any event in sight: look again after so long


class Interrupts(Protocol):
    """The interrupt controller as the processor sees it."""

    @property
    def pending(self) -> bool:
        """Whether INTR is asserted."""
        ...

    def acknowledge(self) -> int:
        """INTA: return the vector."""
        ...


class Devices(Ports, Protocol):
    """What surrounds a virtual CPU: `cbit.hypervisor.devices.chipset.Chipset`."""

    @property
    def interrupts(self) -> Interrupts:
        """The interrupt controller."""
        ...

    def advance(self) -> None:
        """Notice that time has passed."""
        ...

    def next_event_ns(self) -> int | None:
        """When a device will want something by itself; None: never."""
        ...

    @property
    def power_event(self) -> Enum | None:
        """Power-off or reset, once the guest asked for one."""
        ...


class Progress(Enum):
    """What one turn came to."""

    RAN = "ran"
    SLEEPS = "waits for an interrupt"
    ENDED = "ended"


class Monitor:
    """Runs one guest.

    Mutable.

    Attributes:
        stop: why it ended; None while it runs.
        halts: how often it waited for an interrupt.
    """

    def __init__(self, vcpu: ProcessorState, exits: Exits, devices: Devices, clock: BlockClock) -> None:
        self.vcpu = vcpu
        self.exits = exits
        self.devices = devices
        self.clock = clock
        self.halts = 0
        self.stop: Stop | Enum | None = None
        self._asleep = False

    @property
    def asleep(self) -> bool:
        """Whether it halts until an interrupt comes."""
        return self._asleep

    def turn(self, blocks: int | None = None) -> Progress:
        """Let the guest execute until it sleeps, ends, or has had its share of the core.

        A guest that cannot get on, as an instruction needs more pages than the cache holds, has had it too.

        Args:
            blocks: its share; None: until it sleeps or ends.
        """
        vcpu, devices, clock = self.vcpu, self.devices, self.clock
        interrupts = devices.interrupts
        end = None if blocks is None else clock.ns + blocks * NS_PER_BLOCK
        while self.stop is None:
            devices.advance()
            if interrupts.pending:
                self._asleep = False
                if vcpu.offer():
                    vcpu.inject(interrupts.acknowledge())
            elif vcpu.waits:
                vcpu.withdraw()
            if self._asleep:
                return Progress.SLEEPS
            now = clock.ns
            if end is not None and now >= end:
                return Progress.RAN
            event = devices.next_event_ns()
            until = now + _FOREVER_NS if event is None else event
            if end is not None and end < until:
                until = end
            until = max(until, now + 1)
            done = vcpu.enter(blocks=-((now - until) // NS_PER_BLOCK))
            if done.code == IOIO:
                clock.take(PORT_NS)
            then = self.exits.handle(done)
            if then is not Next.RUN or devices.power_event is not None:
                self._after(then)
            elif done.code == INTR and clock.ns < until:
                # It faults and faults, and its clock stands: whoever gave the turn has one that does not.
                return Progress.RAN
        return Progress.ENDED

    def _after(self, then: Next) -> None:
        if then is Next.HALTED:
            self.halts += 1
            if self.vcpu.interrupts_enabled:
                self._asleep = True
            else:
                self.stop = Stop(Next.HALTED, "HLT with interrupts disabled: nothing will wake it")
        elif then is not Next.RUN:
            self.stop = self.exits.stop
        if self.devices.power_event is not None:
            self.stop = self.devices.power_event


def run(monitors: Sequence[Monitor], *, until: Callable[[], bool] = lambda: False) -> None:
    """Run guests on one core in turn until all have ended, or somebody says that it is enough.

    Args:
        monitors: the guests; they share a clock.
        until: asked between turns.
    """
    alone = len(monitors) == 1
    while not until():
        running = [monitor for monitor in monitors if monitor.stop is None]
        if not running:
            return
        progress = [monitor.turn(SLICE if not alone else SLICE * 10) for monitor in running]
        if all(each is not Progress.RAN for each in progress):
            _sleep([m for m in running if m.stop is None])


def _sleep(monitors: list[Monitor]) -> None:
    """Let time pass until the first device of a sleeping guest wants something."""
    if not monitors:
        return
    clock = monitors[0].clock
    events = [event for monitor in monitors if (event := monitor.devices.next_event_ns()) is not None]
    clock.pass_until(min(events, default=clock.ns + _FOREVER_NS))
