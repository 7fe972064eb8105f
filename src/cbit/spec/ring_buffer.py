"""Entries of the ring buffers, and the bits of the registers while they are in use.

Paper: sev-api.md §5, RING_BUFFER.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.wire import Wire, at

HI_SHIFT: Final = 16  #: RBTail and RBHead: the high queue's index

ALL_EMPTY: Final = 1 << 28  #: RBHead
COMMAND_DONE: Final = 1 << 29
PAUSED: Final = 1 << 30
QUEUE_FREE: Final = 1 << 31

LO_EMPTY_INT: Final = 1 << 0  #: RBCtl
HI_EMPTY_INT: Final = 1 << 1
RESUME_LO: Final = 1 << 8
RESUME_HI: Final = 1 << 9
CLEAR: Final = 1 << 29
ACTIVE: Final = 1 << 30
X86_CONTROL: Final = 1 << 31

INTERRUPT: Final = 1 << 0  #: CommandEntry.flags: say when it is done
CONTINUE: Final = 1 << 1  #: go on if it is refused


class CommandEntry(Wire, size=0x10):
    """One command in a ring buffer.

    Paper: sev-api.md §5, RING_BUFFER.
    """

    command: int = at(0x00, 2)
    flags: int = at(0x02, 2, default=0)
    software_data: int = at(0x04, 4, default=0)
    paddr: int = at(0x08, 8, default=0)


class StatusEntry(Wire, size=0x10):
    """What became of the command at the same index.

    Paper: sev-api.md §5, RING_BUFFER.
    """

    status: int = at(0x00, 2)
    error_stack: int = at(0x08, 8, default=0)
