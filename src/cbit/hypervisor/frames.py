"""System-physical page frames of one host: taken, given back, counted."""

from __future__ import annotations

from cbit.machine.address_map import LEGACY_WINDOW
from cbit.spec.address import PAGE, Spa
from cbit.spec.errors import CbitError


class OutOfMemory(CbitError):
    """The host has not enough free memory; the message says how much was asked for and how much is left."""


class Frames:
    """Free memory as runs of contiguous frames, lowest first.

    Mutable.
    """

    def __init__(self, size: int) -> None:
        # Page 0 stays unused: address 0 means "none" in command buffers.
        self._free: list[range] = [range(PAGE, LEGACY_WINDOW.start, PAGE)]
        if size > LEGACY_WINDOW.stop:
            self._free.append(range(LEGACY_WINDOW.stop, size // PAGE * PAGE, PAGE))

    @property
    def free_bytes(self) -> int:
        """How much is left."""
        return PAGE * sum(map(len, self._free))

    def take(self, length: int, *, align: int = PAGE) -> range:
        """Take contiguous frames for ``length`` bytes.

        Returns:
            The addresses of the frames.

        Raises:
            OutOfMemory: no free run is long enough.
            ValueError: nothing is asked for.
        """
        if length <= 0:
            raise ValueError(f"frames for {length} bytes: ask for one byte at least")
        pages = -(-length // PAGE)
        for i, run in enumerate(self._free):
            start = -(-run.start // align) * align
            end = start + pages * PAGE
            if end <= run.stop:
                rest = (range(run.start, start, PAGE), range(end, run.stop, PAGE))
                self._free[i : i + 1] = [piece for piece in rest if piece]
                return range(start, end, PAGE)
        raise OutOfMemory(f"{length:#x} contiguous bytes wanted, {self.free_bytes:#x} bytes are free")

    def take_page(self) -> Spa:
        """Take one frame (errors as ``take``)."""
        return Spa(self.take(PAGE).start)

    def give_back(self, frames: range) -> None:
        """Return frames taken before.

        Raises:
            ValueError: one of them was not taken.
        """
        runs = sorted([*self._free, frames], key=lambda run: run.start)
        merged = runs[:1]
        for run in runs[1:]:
            if run.start < merged[-1].stop:
                raise ValueError(f"frame {run.start:#x} is returned but was not taken")
            if run.start == merged[-1].stop:
                merged[-1] = range(merged[-1].start, run.stop, PAGE)
            else:
                merged.append(run)
        self._free = merged
