"""Encrypt or decrypt a live page where it lies: software's sequence, on one core.

      live mapping, C=old  --CLFLUSH-->  DRAM holds what the mapping saw
      window 1, C=old, read-only  -->  a buffer  -->  window 2, C=new
      leaf of the live mapping: C=new;  flush caches and TLB

Without the flushes it goes wrong: two tags of one page know nothing of each other, and a TLB keeps the C-bit.

Paper: memory-encryption.md §6.6, §6.2 (why the flush), §6.3 (what happens without).
MODEL CHOICE: the source is read-only by its W bit; memory type write-protect has no effect in the model.
"""

from __future__ import annotations

from typing import NamedTuple

from cbit.cpu.core import Core
from cbit.cpu.page_tables import PageTables
from cbit.cpu.paging import Pte
from cbit.spec.address import LINE, PAGE, Hva


class Windows(NamedTuple):
    """Two pages of linear addresses that the sequence may map as it likes."""

    source: Hva
    destination: Hva


def change_encryption(core: Core, tables: PageTables, page: Hva, *, private: bool, windows: Windows) -> None:
    """Change the C-bit of a page in use, and its contents in DRAM with it.

    The page must not be the one that holds these tables, and nobody else may use it meanwhile.  A page
    that already is as asked stays untouched.

    Args:
        core: executes the sequence, in host mode, on ``tables``.
        tables: the tables in CR3.
        page: linear address of the live mapping, a 4 KiB page.
        private: the C-bit afterwards.
        windows: scratch addresses.

    Raises:
        PageFault: the page is not mapped.
        ValueError: it is mapped by a larger leaf, or ``tables`` are not the ones in CR3.

    Paper: memory-encryption.md §6.6.
    """
    live = core.walk(page)
    leaf = tables.leaf(page)  # after the walk, which marks it accessed
    if leaf is None or live.leaf.size != PAGE:
        raise ValueError(f"{page:#x} is not mapped by a 4 KiB leaf")
    if live.leaf.c == private:
        return
    # 1. What caches hold under the old tag goes to DRAM, in the old form.
    _clflush_page(core, page)
    # 2. (a), (b): two mappings of the same physical page, old and new; the old one cannot be written through.
    tables.map(windows.source, live.page, flags=Pte.P, c=not private)
    tables.map(windows.destination, live.page, flags=Pte.P | Pte.W, c=private)
    _flush_windows(core, windows)
    # 3. (d): all of the page is read before any of it is written.
    core.write(windows.destination, core.read(windows.source, PAGE))
    # 4. Neither the new copy's dirty lines nor the old copy's stale ones may outlive the windows.
    _clflush_page(core, windows.source)
    _clflush_page(core, windows.destination)
    # 5. The live mapping changes its C-bit; only now may anybody use it again.
    tables.set_leaf(leaf, leaf.value ^ 1 << core.features.c_bit)
    core.invlpg(page)
    # 6. (e): the windows go.
    tables.unmap(windows.source)
    tables.unmap(windows.destination)
    _flush_windows(core, windows)


def _clflush_page(core: Core, page: Hva) -> None:
    for line in range(page, page + PAGE, LINE):
        core.clflush(Hva(line))


def _flush_windows(core: Core, windows: Windows) -> None:
    for window in windows:
        core.invlpg(window)
