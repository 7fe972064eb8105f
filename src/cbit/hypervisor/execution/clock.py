"""Guest time: as far as guests executed, and as far as the hypervisor let time pass while they slept.

Nothing here looks at the clock of the computer that emulates, so two runs with one seed tell the same time.

MODEL CHOICE: a block of guest code takes 25 ns, whatever is in it: 64 ticks of a 2.56 GHz time-stamp counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from cbit.cpu.core import Core

NS_PER_BLOCK: Final = 25
TSC_KHZ: Final = 2_560_000  #: 64 ticks a block


class GuestClock(Protocol):
    """Time as the devices of a guest see it."""

    @property
    def ns(self) -> int:
        """Nanoseconds since power-on."""
        ...


class BlockClock:
    """Time by the blocks that a core has executed.

    Mutable: `pass_until` lets time pass while no guest executes.
    """

    def __init__(self, core: Core) -> None:
        engine = core.engine
        self._blocks: Final[Callable[[], int]] = lambda: engine.blocks
        self._advance: Final = engine.advance

    @property
    def ns(self) -> int:
        """Nanoseconds since power-on."""
        return self._blocks() * NS_PER_BLOCK

    def blocks_until(self, ns: int) -> int:
        """How many blocks of guest code there are until a time, one at least."""
        return max(1, -(-(ns - self.ns) // NS_PER_BLOCK))

    def pass_until(self, ns: int) -> None:
        """Let time pass."""
        if ns > self.ns:
            self._advance(self.blocks_until(ns))
