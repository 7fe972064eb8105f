"""The memory of a program that waits for an answer, as the kernel's copy_from_user and copy_to_user see it.

Protections hold: what the caller may not write is not written.  Needs the right to trace the caller, which a
parent of the same user has, also under Yama's mode 1; a program that made itself undumpable withdraws it from
all but root.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Final, Protocol

from cbit.driver.caller_memory import write_each
from cbit.redirect.linux import libc

_SCRATCH: Final = 4096
_TOP: Final = 1 << 64
_MOST: Final = 0x7FFFF000  #: bytes that the kernel moves in one call
_STRING_STEP: Final = 256
PATH_MAX: Final = 4096
_TOGETHER: Final = 4  #: writes that go in one call of the kernel

Buffer = bytes | bytearray | memoryview
Write = tuple[int, bytes]


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Waiting(Protocol):
    """Knows whether a caller still waits for its answer; ``seccomp.Listener`` does."""

    def is_current(self, id_: int) -> bool:
        """Tell whether the call of this number is still to be answered."""
        ...


class Fault(OSError):
    """The caller's address is not mapped, or not for this."""

    def __init__(self, address: int) -> None:
        super().__init__(errno.EFAULT, f"the caller has no such memory at {address:#x}")


class Gone(OSError):
    """The caller died while it was served; nobody is left to answer."""

    def __init__(self) -> None:
        super().__init__(errno.ESRCH, "the caller is gone")


class ProcessMemory:
    """Moves bytes between this process and callers; one thread at a time."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._here, self._there = _Span(), _Span()
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._scratch_held = (ctypes.c_char * _SCRATCH).from_buffer(self._scratch)
        self._scratch_at = ctypes.addressof(self._scratch_held)
        here, there = ctypes.byref(self._here), ctypes.byref(self._there)
        self._places = (_Span * _TOGETHER)()
        zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
        self._zero, self._one, self._counts = zero, one, [ctypes.c_ulong(n) for n in range(_TOGETHER + 1)]
        self._arguments = (here, one, there, one, zero)
        self._readv, self._writev = libc().process_vm_readv, libc().process_vm_writev
        self._readv.restype = self._writev.restype = ctypes.c_ssize_t

    def of(self, *, id_: int, tid: int) -> ClientMemory:
        """Open the memory of the caller of one notification."""
        return ClientMemory(self, id_=id_, tid=tid)

    def small(self, tid: int, address: int, length: int) -> bytes:
        """Read up to 4096 bytes; fewer where the caller's memory ends."""
        done = self._move(self._readv, tid, address=address, here=self._scratch_at, length=length)
        return self._scratch[:done].tobytes()

    def into(self, tid: int, address: int, room: bytearray | memoryview) -> int:
        """Read into a buffer of any size and return how much there was."""
        holder = (ctypes.c_char * len(room)).from_buffer(room)
        at = ctypes.addressof(holder)
        return self._move(self._readv, tid, address=address, here=at, length=len(room))

    def out(self, tid: int, address: int, data: Buffer) -> int:
        """Write and return how much the caller's memory took."""
        if len(data) <= _SCRATCH:
            self._scratch[: len(data)] = bytes(data)
            return self._move(self._writev, tid, address=address, here=self._scratch_at, length=len(data))
        if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
            fixed = ctypes.c_char_p(bytes(data))  # of bytes no copy is made
            at = ctypes.cast(fixed, ctypes.c_void_p).value or 0
            return self._move(self._writev, tid, address=address, here=at, length=len(data))
        held = (ctypes.c_char * len(data)).from_buffer(data)
        at = ctypes.addressof(held)
        return self._move(self._writev, tid, address=address, here=at, length=len(data))

    def together(self, tid: int, writes: Sequence[Write]) -> bool:
        """Try to make a few small writes in one step; False if they are not, or not all of it was done."""
        if len(writes) > _TOGETHER:
            return False
        total = 0
        for place, (address, data) in zip(self._places, writes, strict=False):
            if address + len(data) > _TOP or total + len(data) > _SCRATCH:
                return False
            self._scratch[total : total + len(data)] = data
            place.base, place.length = address, len(data)
            total += len(data)
        self._here.base, self._here.length = self._scratch_at, total
        here, count = self._arguments[0], self._counts[len(writes)]
        done: int = self._writev(tid, here, self._one, self._places, count, self._zero)
        return done == total

    def check(self, id_: int) -> None:
        """Insist that the caller still waits; raises ``Gone``."""
        if not self._waiting.is_current(id_):
            raise Gone

    def _move(self, call: ctypes._NamedFuncPointer, tid: int, *, address: int, here: int, length: int) -> int:
        if address + length > _TOP:
            return 0
        done, ours, theirs = 0, self._here, self._there
        while done < length:
            ours.base, theirs.base = here + done, address + done
            ours.length = theirs.length = min(length - done, _MOST)
            moved: int = call(tid, *self._arguments)
            if moved > 0:
                done += moved
                continue
            code = ctypes.get_errno()
            if moved == 0 or code == errno.EFAULT:
                break
            if code == errno.ESRCH:
                raise Gone
            raise OSError(code, f"the caller's memory: {os.strerror(code)}")
        return done


class ClientMemory:
    """The memory of the caller of one command; of no use after the command.

    Every method raises ``Fault`` for memory that the caller does not have, ``Gone`` when the caller died, and
    ``OSError`` (EPERM) when the caller is closed to us.
    """

    __slots__ = ("_id", "_memory", "_tid")

    def __init__(self, memory: ProcessMemory, *, id_: int, tid: int) -> None:
        self._memory, self._id, self._tid = memory, id_, tid

    def read(self, address: int, length: int) -> bytes:
        """Read exactly ``length`` bytes.

        A length that the caller does not have is refused before room is made for it.
        """
        if length <= _SCRATCH:
            data = self._memory.small(self._tid, address, length)
            self._memory.check(self._id)
            if len(data) != length:
                raise Fault(address + len(data))
            return data
        if not self._memory.small(self._tid, address + length - 1, 1):
            raise Fault(address + length - 1)
        room = bytearray(length)
        self._fill(address, room)
        return bytes(room)

    def _fill(self, address: int, room: bytearray) -> None:
        done = self._memory.into(self._tid, address, room)
        self._memory.check(self._id)
        if done != len(room):
            raise Fault(address + done)

    def string(self, address: int) -> bytes:
        """Read up to a zero byte, which is not returned; at most 4096 bytes, the longest path.

        Raises:
            OSError: ENAMETOOLONG.
        """
        text = b""
        while len(text) < PATH_MAX:
            piece = self._memory.small(self._tid, address + len(text), _STRING_STEP)
            before, end, _ = piece.partition(b"\0")
            text += before
            if end:
                self._memory.check(self._id)
                return text
            if len(piece) < _STRING_STEP:
                self._memory.check(self._id)
                raise Fault(address + len(text))
        raise OSError(errno.ENAMETOOLONG, "the caller's path does not end")

    def write(self, address: int, data: Buffer) -> None:
        """Write all of ``data``; at a ``Fault`` what lies before it has been written, as the kernel does."""
        self._memory.check(self._id)
        done = self._memory.out(self._tid, address, data)
        if done != len(data):
            raise Fault(address + done)

    def write_all(self, writes: Sequence[Write]) -> None:
        """Make several writes; what a ``Fault`` keeps out of one place does not concern the others."""
        self._memory.check(self._id)
        if self._memory.together(self._tid, writes):
            return
        write_each(self.write, writes)
