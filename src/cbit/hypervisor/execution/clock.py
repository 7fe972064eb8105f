"""Guest time: as far as guests executed, and as far as the hypervisor let time pass while they slept.

Nothing here looks at the clock of the computer that emulates, so two runs with one seed tell the same time.

MODEL CHOICE: a block of guest code takes 10 ns, whatever is in it: 32 ticks of a 3.2 GHz time-stamp counter;
an access to a port takes 8 us, as an exit to a device in user space does on a real host.
"""

from __future__ import annotations

from typing import Final, Protocol

from cbit.cpu.core import Core

NS_PER_BLOCK: Final = 10
PORT_NS: Final = 8_000  #: of one access to a port


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
        self._word: Final = core.engine.clock

    @property
    def ns(self) -> int:
        """Nanoseconds since power-on."""
        return self._word[0] * NS_PER_BLOCK

    def blocks_until(self, ns: int) -> int:
        """How many blocks of guest code there are until a time, one at least."""
        return max(1, -(-(ns - self.ns) // NS_PER_BLOCK))

    def take(self, ns: int) -> None:
        """Let something take time that the guest does not spend in code."""
        self._word[0] += ns // NS_PER_BLOCK

    def pass_until(self, ns: int) -> None:
        """Let time pass."""
        if ns > self.ns:
            self._word[0] += self.blocks_until(ns)
