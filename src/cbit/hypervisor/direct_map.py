"""The host's own page tables: all of physical memory twice, once with C=0 and once with C=1.

    HVA 0 …            physical memory, C=0
    HVA 1 << 39 …      the same memory, C=1

That is how host software chooses: it marks a page by using an entry with the C-bit.  It cannot name a guest's key.

Paper: memory-encryption.md §3 rule 2, §4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cbit.cpu.core import Core
from cbit.cpu.msr import Msr
from cbit.cpu.control import Efer
from cbit.hypervisor.frames import Frames
from cbit.spec.address import GIB, PAGE, Hva, Spa

ENCRYPTED_VIEW: Final = 1 << 39  #: what the second PML4 entry covers
_TABLE: Final = 0b000_0000_0011  # present, writable
_LEAF: Final = 0b1_1000_0011  # present, writable, large page, global


class DirectMap:
    """Builds the tables with paging off, then puts every core into long mode on them."""

    def __init__(self, cores: Sequence[Core], frames: Frames, *, memory_size: int) -> None:
        boot = cores[0]
        top = frames.take_page()
        c_bit = boot.rules.c_bit
        for slot, c in enumerate((0, 0 if c_bit is None else 1 << c_bit)):
            directory = frames.take_page()
            leaves = [gib * GIB | c | _LEAF for gib in range(-(-memory_size // GIB))]
            boot.write(Hva(directory), _table(leaves))
            boot.write(Hva(top + 8 * slot), (directory | _TABLE).to_bytes(8, "little"))
        for core in cores:
            core.enter_long_mode(top)
            core.wrmsr(Msr.EFER, core.rdmsr(Msr.EFER) | Efer.SVME)
        self._core = boot

    def read(self, spa: Spa, length: int, *, c: bool = False) -> bytes:
        """Read memory through one of the two views."""
        return self._core.read(_view(spa, c=c), length)

    def write(self, spa: Spa, data: bytes, *, c: bool = False) -> None:
        """Write memory through one of the two views."""
        self._core.write(_view(spa, c=c), data)


def _view(spa: Spa, *, c: bool) -> Hva:
    return Hva(spa + (ENCRYPTED_VIEW if c else 0))


def _table(entries: list[int]) -> bytes:
    return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(PAGE, b"\x00")
