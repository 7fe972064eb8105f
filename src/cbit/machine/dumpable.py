"""A process that holds keys does not leave them in a core file.

Linux: not dumpable (prctl) and no core limit; elsewhere the limit alone.  What Python itself copied around
cannot be promised to be wiped (LIMITATIONS).
"""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_SUID_DUMP_DISABLE: Final = ctypes.c_ulong(0)


def forbid_dumps() -> None:
    """Make this process non-dumpable and set its core limit to zero, for as long as it lives.

    Both are needed: a core pattern that pipes into a program ignores the limit, and a debugger of the same
    user is kept out by the first alone.

    Raises:
        OSError: the kernel refuses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, _SUID_DUMP_DISABLE, *[ctypes.c_ulong(0)] * 3) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")
