"""Turns until the end: the text is seen, the guest ends, the time is over, somebody wants it to.

Whether a run goes on is asked after every turn of so many blocks, so the same guests with the same seed take
the same turns; the clock of this computer is looked at for ``--timeout`` alone.  That time-out, a signal or a
key of a terminal may end a turn early (`watch`), and nothing else.  Several guests have one turn after the
other on one core, until each of them has ended.

    all asleep, nobody can type        time jumps to the next timer
    all asleep, somebody may type      time passes as it does outside, until a key or the next timer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from cbit.cli.run.console import GuestConsole
from cbit.cli.run.ending import GOOD, End, Ending, without_reader
from cbit.cli.run.keys import Keys
from cbit.cpu.core import Core
from cbit.cpu.engine.engine import Engine
from cbit.cpu.engine.errors import EngineFault
from cbit.cpu.faults import VmexitInvalid
from cbit.hypervisor.devices.power import Power
from cbit.hypervisor.devices.serial import Serial
from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.exits import Next, Stop
from cbit.hypervisor.execution.monitor import Monitor, Progress
from cbit.spec.errors import NotModelled

TURN: Final = 250_000  #: blocks
SLICE: Final = (
    1_000_000  #: blocks (10 ms) of one of several guests: each brings its pages into the cache anew
)
PANIC_NS: Final = 5_000_000_000  #: guest time that a kernel has to reset after it has panicked
_LONGEST_NS: Final = 50_000_000  # of sleep without a look at the keyboard
_SETTLES_NS: Final = 1_000_000  # guest time from a driver's first interrupt enabled to its receiver's FIFO
_SLEEPER: Final = {
    Next.SHUTDOWN: End.TRIPLE_FAULT,
    Next.NO_MEMORY: End.NO_MEMORY,
    Next.HALTED: End.HALTED,
    Next.REFUSED: End.REFUSED,
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


class Seat:
    """One guest with its console, and what it came to.

    Mutable.

    Attributes:
        monitor: runs it.
        console: its serial line.
        ending: how it ended; None while it runs.
        used: what its turns took: blocks, fills, evictions.
    """

    def __init__(self, monitor: Monitor, console: GuestConsole, *, serial: Serial) -> None:
        self.monitor = monitor
        self.console = console
        self._serial = serial
        self.ending: Ending | None = None
        self.used = Counter[str]()
        self._panicked_at: int | None = None
        self._hears_from: int | None = None

    def deaf(self) -> bool:
        """Whether it does not take what is typed yet: for a moment after its driver has begun to listen, too.

        Linux switches the receiver's FIFO on only then, and what has come by that time is lost.
        """
        now = self.monitor.clock.ns
        if not self._serial.listens:
            self._hears_from = None
            return True
        if self._hears_from is None:
            self._hears_from = now + _SETTLES_NS
        return now < self._hears_from

    def look(self) -> None:
        """See whether it has ended by itself, or by what it printed."""
        console, stop, now = self.console, self.monitor.stop, self.monitor.clock.ns
        if console.panicked and self._panicked_at is None:
            self._panicked_at = now
        # Whoever can power the machine off is healthy: the words were a program's.
        panicked = (
            self._panicked_at is not None
            and stop is not Power.OFF
            and (stop is not None or now > self._panicked_at + PANIC_NS)
        )
        if console.seen:
            self.ending = Ending(End.SEEN, "the text of --until has come")
        elif panicked:
            self.ending = Ending(End.PANIC, console.panic)
        elif stop is not None:
            self.ending = _guests_own(stop)
        if self.ending is not None and self.ending.end in GOOD and console.lost is not None:
            self.ending = without_reader(console.lost, ended=self.ending)


class Loop:
    """One run.

    Mutable.

    Args:
        seats: the guests; they share a core.
        clock: their clock.
        keys: who types.
        meter: counts what is charged to the guest that has its turn.
        seconds: since some moment, of the world outside.
        engine: executes them.
        timeout: in those seconds; None: for ever.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        clock: BlockClock,
        *,
        keys: Keys,
        meter: Callable[[], Counter[str]],
        seconds: Callable[[], float],
        engine: Engine,
        timeout: float | None = None,
    ) -> None:
        self._seats = seats
        self._clock = clock
        self._keys = keys
        self._meter = meter
        self._seconds = seconds
        self._engine = engine
        self._timeout = timeout
        self._signal = ""
        self._turn_blocks = TURN if len(seats) == 1 else SLICE

    def interrupt(self, name: str) -> None:
        """Hear that somebody outside wants the end."""
        self._signal = name
        self._engine.interrupt()

    def run(self) -> None:
        """Give the guests turns until each has ended, one way or another."""
        deadline = None if self._timeout is None else self._seconds() + self._timeout
        while running := [seat for seat in self._seats if seat.ending is None]:
            progress = [self._turn(seat) for seat in running]
            running = [seat for seat in running if seat.ending is None]
            self._engine.go_on()
            self._keys.look()
            common = self._asked_for()
            if common is None and deadline is not None and self._seconds() >= deadline:
                common = Ending(End.TIMEOUT, f"time-out: the guest still runs after {self._timeout:g} s")
            if common is None and running and all(each is not Progress.RAN for each in progress):
                common = self._sleep(running)
            if common is not None:
                for seat in running:
                    seat.ending = common

    def _turn(self, seat: Seat) -> Progress:
        before = self._meter()
        try:
            progress = seat.monitor.turn(self._turn_blocks)
        except (VmexitInvalid, NotModelled, EngineFault) as error:  # its neighbours go on
            seat.monitor.stop, progress = Stop(Next.REFUSED, str(error)), Progress.ENDED
        seat.used += self._meter() - before
        seat.console.flush()
        seat.look()
        return progress

    def _asked_for(self) -> Ending | None:
        """Say who wants the end of everything."""
        if self._signal:
            return Ending(End.INTERRUPTED, f"interrupted by {self._signal}")
        if self._keys.end_asked:
            return Ending(End.INTERRUPTED, self._keys.end_asked)
        lost = next((seat.console.lost for seat in self._seats if seat.console.lost), None)
        return None if lost is None else without_reader(lost)

    def _sleep(self, seats: Sequence[Seat]) -> Ending | None:
        """Let time pass until the next timer; while somebody may type, no faster than outside."""
        now = self._clock.ns
        events = [at for seat in seats if (at := seat.monitor.devices.next_event_ns()) is not None]
        if not events and not self._keys.is_open:
            why = "it waits for an interrupt, no timer is set, and nobody can type"
            return Ending(End.HALTED, f"the guest cannot go on: {why}")
        until = min(events, default=now + _LONGEST_NS)
        if self._keys.is_open and not all(seat.deaf() for seat in seats):
            until = min(until, now + _LONGEST_NS)
            self._keys.wait((until - now) / 1e9)
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
