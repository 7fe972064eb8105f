"""The kernel's own interface, as far as Python's library does not offer it.

Can be imported anywhere; everything else in this room needs Linux on x86-64, which ``require_linux`` says in
one sentence.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from enum import IntEnum
from typing import Final

from cbit.redirect.errors import Unsupported


class Call(IntEnum):
    """System call numbers of x86-64."""

    OPEN = 2
    STAT = 4
    LSTAT = 6
    IOCTL = 16
    ACCESS = 21
    READLINK = 89
    ARCH_PRCTL = 158
    GETXATTR = 191
    LGETXATTR = 192
    LISTXATTR = 194
    LLISTXATTR = 195
    OPENAT = 257
    NEWFSTATAT = 262
    READLINKAT = 267
    FACCESSAT = 269
    KCMP = 312
    SECCOMP = 317
    STATX = 332
    OPEN_TREE = 428
    MOVE_MOUNT = 429
    OPENAT2 = 437
    FACCESSAT2 = 439


#: The audit architecture of native x86-64 callers; 32-bit ones have another.
ARCHITECTURE: Final = 0xC000003E

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37
PR_SET_NO_NEW_PRIVS: Final = 38

_KCMP_FILE: Final = 0
_KCMP_VM: Final = 1

_MNT_DETACH: Final = 0x2
_UMOUNT_NOFOLLOW: Final = 0x8

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000


def require_linux() -> None:
    """Say in one sentence that this computer is not the right one.

    Raises:
        Unsupported: not Linux, or not x86-64.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{platform.system() or sys.platform} on {platform.machine() or 'an unknown processor'}"
        raise Unsupported(f"running a program against the machine needs Linux on x86-64; this is {here}")


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: object) -> int:
    """Call the kernel; integers go as 64-bit words, ctypes objects as they are.

    Raises:
        OSError: the kernel refuses.
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    function = libc().syscall
    function.restype = ctypes.c_long
    return checked(function(ctypes.c_long(number), *words))


def prctl(option: int, value: object = 0) -> int:
    """Set or ask an attribute of this process; raises ``OSError`` if the kernel refuses."""
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value, *[ctypes.c_ulong(0)] * 3]
    return checked(libc().prctl(option, *words))


def mount(source: str | None, target: str, *, flags: int, kind: str | None = None, options: str = "") -> None:
    """Mount; raises ``OSError`` if the kernel refuses."""
    words = [os.fsencode(word) if word else None for word in (source, target, kind)]
    checked(libc().mount(*words, ctypes.c_ulong(flags), options.encode() or None))


def unmount(target: str) -> None:
    """Unmount what is seen there, also while it is in use (it goes with its last user), and no link's target.

    Raises:
        OSError: the kernel refuses.
    """
    checked(libc().umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW))


def same_file(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two descriptors (process, number) are one open file: by dup, fork, or however it came over.

    False where the kernel does not say: without kcmp, or for a process that is closed to us.
    """
    return _same(_KCMP_FILE, one, other)


def same_memory(one: int, other: int) -> bool:
    """Whether two processes have one memory; False where the kernel does not say."""
    return _same(_KCMP_VM, (one, 0), (other, 0))


def _same(what: int, one: tuple[int, int], other: tuple[int, int]) -> bool:
    try:
        return syscall(Call.KCMP, one[0], other[0], what, one[1], other[1]) == 0
    except OSError:
        return False


def checked(result: int) -> int:
    """Turn -1 and errno into ``OSError``."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
