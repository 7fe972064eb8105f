"""What a program's CPUID says: this computer's own answers, but for the leaf of memory encryption.

Paper: memory-encryption.md §2.1.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Final

from cbit.cpu.cpuid import ENCRYPTION, EncryptionFeatures, Registers, cpuid

_LARGEST_EXTENDED: Final = 0x8000_0000

#: push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; mov [r8 + 4], ebx;
#: mov [r8 + 8], ecx; mov [r8 + 12], edx; pop rbx; ret
_CODE: Final = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")


class Native:
    """Executes CPUID on the processor that we run on."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_CODE)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
        self._call = kind(ctypes.addressof(ctypes.c_char.from_buffer(self._page)))

    def __call__(self, leaf: int, subleaf: int) -> Registers:
        """Return the four registers."""
        room = (ctypes.c_uint32 * 4)()
        self._call(leaf, subleaf, ctypes.addressof(room))
        return Registers(*room)


def answers(
    features: EncryptionFeatures, native: Callable[[int, int], Registers]
) -> Callable[[int, int], Registers]:
    """Return what answers CPUID: the machine's leaf 8000_001F, all others from ``native``.

    The number of the largest extended leaf is raised to it where it is less.
    """

    def answer(leaf: int, subleaf: int) -> Registers:
        if leaf == ENCRYPTION:
            return cpuid(features, leaf)
        found = native(leaf, subleaf)
        if leaf == _LARGEST_EXTENDED and found.eax < ENCRYPTION:
            return found._replace(eax=ENCRYPTION)
        return found

    return answer
