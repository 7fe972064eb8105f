"""Ring-buffer mode: commands from two queues in memory, statuses into two others, the registers' new meaning.

    CmdBufAddr_Hi = RBTail   x86 writes: 7:0 low queue's, 23:16 high queue's next free entry
    CmdBufAddr_Lo = RBHead   x86 reads: 7:0 and 23:16 next entry to be run, 28 … 31 what happened
    CmdResp       = RBCtl    31 and 30 set: 0, 1 interrupts, 8, 9 resume, 29 clear; else: leave the mode

A queue is a page of 256 entries that wraps; head = tail is empty.  A command runs to its end at the write
that makes it visible, so nothing is ever seen running (RBHead 11 and 27 read 0).

MODEL CHOICE: indices are 0 when the mode begins; a queue that is paused has passed the entry that failed;
"queue free" is said when as many entries wait as the threshold names, never for threshold 0; "all empty" when
the last entry is done and INT_ON_EMPTY or RBCtl ask for it; each of the four things that can happen raises
the completion interrupt.

Paper: sev-api.md §5, RING_BUFFER.
Not modelled: the error stack of a status entry, which reads 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cbit.memory.fabric import FabricPort
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId
from cbit.spec.ring_buffer import (
    ALL_EMPTY,
    CLEAR,
    COMMAND_DONE,
    CONTINUE,
    HI_EMPTY_INT,
    HI_SHIFT,
    INTERRUPT,
    LO_EMPTY_INT,
    PAUSED,
    QUEUE_FREE,
    RESUME_HI,
    RESUME_LO,
    CommandEntry,
    StatusEntry,
)
from cbit.spec.status import Status

INDEX: Final = 0xFF
Place = tuple[Spa, KeyId]


@dataclass(slots=True)
class Queue:
    """One queue: its two pages, and how far it is."""

    commands: Place
    statuses: Place
    threshold: int
    empty_int: int  #: the bit of RBCtl that asks for an interrupt
    resume: int  #: the bit of RBCtl that lets it go on
    head: int = 0
    tail: int = 0
    paused: bool = False

    @property
    def waiting(self) -> int:
        """Entries that are not done."""
        return self.tail - self.head & INDEX


class RingBuffers:
    """The mode, from RING_BUFFER until x86 leaves it or SHUTDOWN; changes with each command."""

    def __init__(
        self,
        fabric: FabricPort,
        low: tuple[Place, Place, int],
        high: tuple[Place, Place, int] | None,
        *,
        int_on_empty: bool,
    ) -> None:
        self._fabric = fabric
        self._low = Queue(*low, LO_EMPTY_INT, RESUME_LO)
        self._high = Queue(*high, HI_EMPTY_INT, RESUME_HI) if high else None
        self._int_on_empty = int_on_empty
        self._happened = 0
        self._control = 0
        self.active = True

    def pages(self) -> tuple[tuple[int, int], ...]:
        """The ranges that no command may name while the mode lasts."""
        starts = (place[0] for queue in self._queues() for place in (queue.commands, queue.statuses))
        return tuple((start, start + PAGE) for start in starts)

    @property
    def head(self) -> int:
        """RBHead."""
        high = self._high.head << HI_SHIFT if self._high else 0
        return self._happened | high | self._low.head

    def leave(self) -> None:
        """End the mode."""
        self.active = False

    def control(self, value: int, execute: Callable[[int, int], Status]) -> bool:
        """Take a write of RBCtl, go on where it says so; return whether something happened."""
        self._control = value
        if value & CLEAR:
            self._happened = 0
        for queue in self._queues():
            if value & queue.resume:
                queue.paused = False
        return self._serve(execute)

    def advance(self, tail: int, execute: Callable[[int, int], Status]) -> bool:
        """Take a write of RBTail and run what it made visible; return whether something happened."""
        self._low.tail = tail & INDEX
        if self._high:
            self._high.tail = tail >> HI_SHIFT & INDEX
        return self._serve(execute)

    def _queues(self) -> tuple[Queue, ...]:
        return (self._high, self._low) if self._high else (self._low,)

    def _serve(self, execute: Callable[[int, int], Status]) -> bool:
        happened, last = 0, None
        while self.active and (queue := self._next()) is not None:
            happened, last = happened | self._run(queue, execute), queue
        asked = last is not None and (self._int_on_empty or self._control & last.empty_int)
        if asked and not any(queue.waiting for queue in self._queues()):
            happened |= ALL_EMPTY
        self._happened |= happened
        return bool(happened)

    def _next(self) -> Queue | None:
        """The high queue goes first."""
        return next((queue for queue in self._queues() if queue.waiting and not queue.paused), None)

    def _run(self, queue: Queue, execute: Callable[[int, int], Status]) -> int:
        at = queue.head * CommandEntry.SIZE
        spa, key = queue.commands
        raw = self._fabric.read(Spa(spa + at), CommandEntry.SIZE, key)
        entry = CommandEntry.parse(raw, canonical=False)
        status = execute(entry.command, entry.paddr)
        spa, key = queue.statuses
        self._fabric.write(Spa(spa + at), bytes(StatusEntry(status=status)), key)
        queue.head = queue.head + 1 & INDEX
        happened = COMMAND_DONE if entry.flags & INTERRUPT else 0
        if status != Status.SUCCESS and not entry.flags & CONTINUE:
            queue.paused = True
            happened |= PAUSED
        if queue.threshold and queue.waiting == queue.threshold:
            happened |= QUEUE_FREE
        return happened
