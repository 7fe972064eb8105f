"""Where things are in system-physical address space.

DRAM starts at 0.  MODEL CHOICE: the mailbox's BAR stands right below the 1 TiB mark, above all DRAM.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.address import GIB, MIB, Spa

MAX_DRAM: Final = 64 * GIB
MAILBOX_BAR: Final = Spa(1024 * GIB - MIB)
MAILBOX_BAR_SIZE: Final = MIB
#: Video, SMM and ROM below 1 MiB: hosts allocate nothing there.
LEGACY_WINDOW: Final = range(0xA0000, 0x100000)
