"""The host's own page tables: all of physical memory twice, and pages that are mapped one by one.

    HVA 0 …            physical memory, C=0
    HVA 1 << 39 …      the same memory, C=1
    HVA 2 << 39 …      live pages: one 4 KiB leaf each, whose C-bit may change

That is how host software chooses: it marks a page by using an entry with the C-bit.  It cannot name a guest's
key.

Paper: memory-encryption.md §3 rule 2, §4.1, §6.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cbit.cpu.control import Efer
from cbit.cpu.core import Core
from cbit.cpu.in_place import Windows, change_encryption
from cbit.cpu.msr import Msr
from cbit.cpu.page_tables import PageTables
from cbit.cpu.paging import Pte
from cbit.cpu.window import Window
from cbit.hypervisor.frames import Frames
from cbit.spec.address import GIB, PAGE, Hva, Spa

ENCRYPTED_VIEW: Final = 1 << 39  #: what the second PML4 entry covers
LIVE_PAGES: Final = 2 << 39
_WINDOWS: Final = Windows(Hva(3 << 39), Hva((3 << 39) + PAGE))
_HOST_PAGE: Final = Pte.W | Pte.G  # the host's alone, and the same in every address space


class DirectMap:
    """Builds the tables with paging off, then puts every core into long mode on them."""

    def __init__(self, cores: Sequence[Core], frames: Frames, *, memory_size: int) -> None:
        self._core = boot = cores[0]
        self._tables = PageTables(
            boot.host_tables(), frames.take_page(), rules=boot.rules, new_table=frames.take_page
        )
        for view, c in ((0, False), (ENCRYPTED_VIEW, True)):
            for gib in range(0, memory_size, GIB):
                self._tables.map(view + gib, gib, size=GIB, flags=_HOST_PAGE, c=c)
        for core in cores:
            core.enter_long_mode(self._tables.root)
            core.wrmsr(Msr.EFER, core.rdmsr(Msr.EFER) | Efer.SVME)

    def read(self, spa: Spa, length: int, *, c: bool = False) -> bytes:
        """Read memory through one of the two views."""
        return self._core.read(_view(spa, c=c), length)

    def write(self, spa: Spa, data: bytes, *, c: bool = False) -> None:
        """Write memory through one of the two views."""
        self._core.write(_view(spa, c=c), data)

    def window(self, spa: Spa, *, c: bool = False) -> Window:
        """Hold a page of one of the two views, which never change."""
        return self._core.window(_view(spa, c=c))

    def map_page(self, spa: Spa, *, c: bool) -> Hva:
        """Give a page a linear address of its own, besides the two views."""
        page = Hva(LIVE_PAGES + spa)
        self._tables.map(page, spa, flags=_HOST_PAGE, c=c)
        self._core.invlpg(page)
        return page

    def change_encryption(self, page: Hva, *, private: bool) -> None:
        """Encrypt or decrypt a live page where it lies (errors as ``cbit.cpu.in_place``)."""
        change_encryption(self._core, self._tables, page, private=private, windows=_WINDOWS)


def _view(spa: Spa, *, c: bool) -> Hva:
    return Hva(spa + (ENCRYPTED_VIEW if c else 0))
