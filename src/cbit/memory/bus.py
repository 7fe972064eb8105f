"""The DRAM bus: 64-byte lines between the chip's edge and the modules, and the probe clipped onto it.

Paper: memory-encryption.md §1 rule 3 (DRAM traffic is in 64-byte units).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from cbit.memory.dram import Dram
from cbit.memory.errors import AddressError
from cbit.memory.physical import Data
from cbit.spec.address import LINE, Spa


class BusOp(StrEnum):
    """Direction of a transfer, as the memory controller sees it."""

    READ = "read"
    WRITE = "write"


Tap = Callable[[BusOp, Spa, bytes], None]


class Bus:
    """Carries whole lines; what passes is what the modules store."""

    def __init__(self, dram: Dram) -> None:
        self._dram = dram
        self._taps: list[Tap] = []
        self.size: Final = dram.size  #: bytes of DRAM at the other end

    def check(self, spa: int, length: int) -> None:
        """Refuse a range that is not entirely DRAM (`AddressError`)."""
        self._dram.check(spa, length)

    def lines(self, spa: Spa, length: int) -> memoryview:
        """Read consecutive lines without a copy: a read-only window onto the wire, to be used at once.

        Raises:
            AddressError: outside DRAM, or not whole lines.
        """
        window = self._whole_lines(spa, length).toreadonly()
        if self._taps:
            self._tell(BusOp.READ, spa, window)
        return window

    def read(self, spa: Spa, length: int) -> bytes:
        """Read consecutive lines (errors as `lines`)."""
        return bytes(self.lines(spa, length))

    def write(self, spa: Spa, data: Data) -> None:
        """Write consecutive lines (errors as `lines`)."""
        self._whole_lines(spa, len(data))[:] = data
        if self._taps:
            self._tell(BusOp.WRITE, spa, data)

    def write_parts(self, spa: Spa, data: memoryview, parts: Sequence[tuple[int, int]]) -> None:
        """Write parts of a range, (start, stop) in it, each a burst of its own (errors as `lines`)."""
        cells = self._whole_lines(spa, len(data))
        if any((start | stop) % LINE for start, stop in parts):
            raise AddressError(spa, f"parts of the {len(data)} bytes from here are not whole lines")
        for start, stop in parts:
            cells[start:stop] = data[start:stop]
        if self._taps:
            for start, stop in parts:
                self._tell(BusOp.WRITE, Spa(spa + start), data[start:stop])

    def write_by(self, spa: Spa, length: int, engine: Callable[[memoryview], object]) -> None:
        """Write consecutive lines that ``engine`` itself puts onto the wire, uncopied (errors as `lines`).

        What it puts there arrives in the cells at once, so no byte of it may ever be plaintext of an
        encrypted page.
        """
        wire = self._whole_lines(spa, length)
        engine(wire)
        if self._taps:
            self._tell(BusOp.WRITE, spa, wire)

    @contextmanager
    def tap(self, tap: Tap) -> Iterator[None]:
        """Clip a bus probe onto the wires for the block: it sees each burst of lines as it passes."""
        self._taps.append(tap)
        try:
            yield
        finally:
            self._taps.remove(tap)

    def _whole_lines(self, spa: Spa, length: int) -> memoryview:
        if spa % LINE or length % LINE:
            raise AddressError(spa, f"{length} bytes from here are not whole lines of {LINE} bytes")
        return self._dram.cells(spa, length)

    def _tell(self, op: BusOp, spa: Spa, data: Data) -> None:
        for tap in tuple(self._taps):
            tap(op, spa, bytes(data))
