"""Turns until the end: the text is seen, the guest ends, the time is over, somebody wants it to.

Whether a run goes on is asked after every turn of `TURN` blocks, so the same guest with the same seed takes
the same turns; the clock of this computer is looked at for ``--timeout`` alone.

    asleep, nobody can type        time jumps to the next timer
    asleep, somebody may type      time passes as it does outside, until a key or the next timer
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from cbit.cli.run.console import GuestConsole
from cbit.cli.run.ending import End, Ending
from cbit.cli.run.terminal import Keyboard
from cbit.cpu.core import Core
from cbit.hypervisor.devices.power import Power
from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.exits import Next, Stop
from cbit.hypervisor.execution.monitor import Monitor, Progress

TURN: Final = 250_000  #: blocks
PANIC_NS: Final = 5_000_000_000  #: guest time that a kernel has to reset after it has panicked
_LONGEST_NS: Final = 50_000_000  # of sleep without a look at the keyboard
_SLEEPER: Final = {
    Next.SHUTDOWN: End.TRIPLE_FAULT,
    Next.NO_MEMORY: End.NO_MEMORY,
    Next.HALTED: End.HALTED,
}


class CountingClock(BlockClock):
    """A guest's clock that knows how much of its time nobody executed.

    Mutable.

    Attributes:
        passed: blocks' worth of time that passed without blocks.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._begun = self._word[0]
        self.passed = 0

    @property
    def executed(self) -> int:
        """Blocks of guest code that were executed."""
        return self._word[0] - self._begun - self.passed

    def take(self, ns: int) -> None:
        """Let something take time."""
        before = self._word[0]
        super().take(ns)
        self.passed += self._word[0] - before

    def pass_until(self, ns: int) -> None:
        """Let time pass."""
        before = self._word[0]
        super().pass_until(ns)
        self.passed += self._word[0] - before


class Loop:
    """One run.

    Mutable.

    Args:
        monitor: runs the guest.
        clock: its clock.
        console: its serial line.
        keyboard: who types.
        listens: whether the guest takes what is typed.
        seconds: since some moment, of the world outside.
        timeout: in those seconds; None: for ever.
    """

    def __init__(
        self,
        monitor: Monitor,
        clock: BlockClock,
        *,
        console: GuestConsole,
        keyboard: Keyboard,
        listens: Callable[[], bool],
        seconds: Callable[[], float],
        timeout: float | None = None,
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._console = console
        self._keyboard = keyboard
        self._listens = listens
        self._seconds = seconds
        self._timeout = timeout
        self._panicked_at: int | None = None
        self._signal = ""

    def interrupt(self, name: str) -> None:
        """Hear that somebody outside wants the end."""
        self._signal = name

    def run(self) -> Ending:
        """Give the guest turns until it ends, one way or another."""
        deadline = None if self._timeout is None else self._seconds() + self._timeout
        while True:
            progress = self._monitor.turn(TURN)
            self._console.flush()
            if (ending := self._ending()) is not None:
                return ending
            if deadline is not None and self._seconds() >= deadline:
                return Ending(End.TIMEOUT, f"time-out: the guest still runs after {self._timeout:g} s")
            if progress is Progress.SLEEPS and (ending := self._sleep()) is not None:
                return ending

    def _ending(self) -> Ending | None:
        console, stop = self._console, self._monitor.stop
        if console.seen:
            return Ending(End.SEEN, "the text of --until has come")
        if console.panicked and self._panicked_at is None:
            self._panicked_at = self._clock.ns
        panicked = self._panicked_at is not None and (
            stop is not None or self._clock.ns > self._panicked_at + PANIC_NS
        )
        if panicked:
            return Ending(End.PANIC, console.panic)
        if stop is not None:
            return _guests_own(stop)
        if self._signal:
            return Ending(End.INTERRUPTED, f"interrupted by {self._signal}")
        if console.end_asked:
            return Ending(End.INTERRUPTED, console.end_asked)
        return None

    def _sleep(self) -> Ending | None:
        """Let time pass until the next timer; while somebody may type, no faster than outside."""
        now = self._clock.ns
        event = self._monitor.devices.next_event_ns()
        if event is None and not self._keyboard.is_open:
            why = "it waits for an interrupt, no timer is set, and nobody can type"
            return Ending(End.HALTED, f"the guest cannot go on: {why}")
        until = now + _LONGEST_NS if event is None else event
        if self._keyboard.is_open and self._listens():
            until = min(until, now + _LONGEST_NS)
            self._keyboard.wait((until - now) / 1e9)
        self._clock.pass_until(until)
        return None


def _guests_own(stop: Stop | Enum) -> Ending:
    """Say how a guest ended by itself."""
    if stop is Power.OFF:
        return Ending(End.POWER_OFF, "the guest powered itself off")
    if stop is Power.RESET:
        return Ending(End.REBOOT, "the guest asked for a reset, which ends the run")
    assert isinstance(stop, Stop)
    return Ending(_SLEEPER.get(stop.next, End.UNKNOWN_EXIT), f"the guest cannot go on: {stop.why}")
