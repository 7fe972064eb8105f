"""Mechanism B: calls that name a path are notified, and answered when the path is one of ours.

Needs nothing but notifications, so it works in a default container.  Costs about 15 us for every open and
stat of the program, and is a convenience, not a wall: the kernel reads a path again after we let a call pass,
so a program that rewrites it meanwhile gets the error that it would have got without us.

Not answered: directory listings, chdir, inotify, fchmod and their like, extended attributes that are set,
symbolic links *to* our paths, io_uring.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cbit.redirect.bpf import Rule
from cbit.redirect.descriptor_limit import Spare
from cbit.redirect.files import Files
from cbit.redirect.linux import AT_EMPTY_PATH, AT_FDCWD, Call, syscall
from cbit.redirect.process_memory import ClientMemory
from cbit.redirect.seccomp import Listener, Notification

_STAT_SIZE: Final = 144  #: struct stat of x86-64
_STATX_SIZE: Final = 256
_HOW: Final = struct.Struct("<QQQ")  #: struct open_how: flags, mode, resolve
_RESOLVE_ELSEWHERE: Final = 0x08 | 0x10  #: RESOLVE_BENEATH, RESOLVE_IN_ROOT: "/" is not the root then
#: What of an open's flags goes on to the stand-in.
_KEPT: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DSYNC


@dataclass(frozen=True, slots=True)
class Found:
    """One of our paths.

    Attributes:
        shown: a path of this process whose file is what the program sees.
        kind: "device", "text" or "directory".
    """

    shown: str
    kind: str


Answer = Callable[["OpenAnswers", Notification, Found, ClientMemory], None]


@dataclass(frozen=True, slots=True)
class PathCall:
    """A system call that names a path: in which argument, relative to which directory, and its answer."""

    path: int
    directory: int | None
    answer: Answer
    flags: int | None = None


class OpenAnswers:
    """Answers the calls of ``CALLS``; owns a descriptor for each text file."""

    def __init__(self, files: Files, listener: Listener) -> None:
        self._listener = listener
        self._spare = Spare()
        self._texts = {text.path: _readable(text.path, text.content) for text in files.texts}
        self._found = {
            **{device.path: Found(device.stand_in, "device") for device in files.devices},
            **{path: Found(f"/proc/self/fd/{number}", "text") for path, number in self._texts.items()},
            **{path: Found(there, "directory") for path, there in files.missing_directories().items()},
        }
        self._names = {os.path.basename(path).encode() for path in self._found}

    def close(self) -> None:
        """Give the descriptors back."""
        for number in self._texts.values():
            os.close(number)
        self._texts.clear()
        self._spare.close()

    def serve(self, call: Notification, memory: ClientMemory) -> None:
        """Answer one call, or let it pass."""
        row = CALLS[call.number]
        found = self._find(call, row, memory)
        if found is None:
            self._listener.let_pass(call.id)
        else:
            row.answer(self, call, found, memory)

    def _find(self, call: Notification, row: PathCall, memory: ClientMemory) -> Found | None:
        try:
            path = memory.string(call.arguments[row.path])
        except OSError:
            return None  # the kernel finds the same fault, and has the right error for it
        name = path.rpartition(b"/")[2]
        if name not in self._names:
            return None
        try:
            directory = os.path.join(self._base(call, row, path), path[: len(path) - len(name)])
            whole = os.path.join(os.path.realpath(directory), name)
        except OSError:
            return None
        return self._found.get(os.fsdecode(whole))

    @staticmethod
    def _base(call: Notification, row: PathCall, path: bytes) -> bytes:
        """Return what the path is relative to, which for an absolute one does not matter, in our own root."""
        if os.readlink(f"/proc/{call.tid}/root") != "/":
            raise OSError(errno.ENOENT, "the caller has another root directory")
        if path.startswith(b"/"):
            return b"/"
        number = AT_FDCWD if row.directory is None else _signed(call.arguments[row.directory])
        link = "cwd" if number == AT_FDCWD else f"fd/{number}"
        return os.fsencode(os.readlink(f"/proc/{call.tid}/{link}"))

    def open(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """Give a new descriptor, as open, openat and openat2 do."""
        flags = call.arguments[1 if call.number == Call.OPEN else 2] & 0xFFFFFFFF
        if call.number == Call.OPENAT2:
            if call.arguments[3] < _HOW.size:
                self._listener.let_pass(call.id)
                return
            flags, _, resolve = _HOW.unpack(memory.read(call.arguments[2], _HOW.size))
            if resolve & _RESOLVE_ELSEWHERE:
                self._listener.let_pass(call.id)
                return
        refused = _refusal(flags, found)
        if refused:
            self._listener.answer(call.id, -refused)
            return
        # A descriptor that is only a place in the tree (O_PATH) cannot be given: a readable one replaces it.
        kept = flags & _KEPT if not flags & os.O_PATH else os.O_RDONLY

        def give() -> None:
            descriptor = os.open(found.shown, kept | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                self._listener.give(call.id, descriptor, close_on_exec=bool(flags & os.O_CLOEXEC))
            finally:
                os.close(descriptor)

        self._spare.look(give)

    def stat(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """Write the kernel's own description of what stands for the file."""
        room = ctypes.create_string_buffer(_STAT_SIZE)
        syscall(Call.STAT, os.fsencode(found.shown), room)
        memory.write(call.arguments[2 if call.number == Call.NEWFSTATAT else 1], room.raw)
        self._listener.answer(call.id, 0)

    def statx(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """As ``stat``, in the newer structure; the mask is the caller's."""
        room = ctypes.create_string_buffer(_STATX_SIZE)
        mask = call.arguments[3] & 0xFFFFFFFF
        syscall(Call.STATX, AT_FDCWD, os.fsencode(found.shown), 0, mask, room)
        memory.write(call.arguments[4], room.raw)
        self._listener.answer(call.id, 0)

    def access(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """Check the wanted rights against what everybody has."""
        mode = call.arguments[1 if call.number == Call.ACCESS else 2] & 0xFFFFFFFF
        if mode & ~7:
            self._listener.answer(call.id, -errno.EINVAL)
            return
        everybody = {"device": 6, "text": 4, "directory": 5}[found.kind]
        self._listener.answer(call.id, -errno.EACCES if mode & ~everybody else 0)

    def read_link(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """Say that it is no symbolic link, which is how a path is resolved to itself."""
        self._listener.answer(call.id, -errno.EINVAL)

    def attribute(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """Say that it has no such extended attribute: there is none beside its rights."""
        self._listener.answer(call.id, -errno.ENODATA)

    def attributes(self, call: Notification, found: Found, memory: ClientMemory) -> None:
        """List its extended attributes: none."""
        self._listener.answer(call.id, 0)


def _refusal(flags: int, found: Found) -> int:
    if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
        return errno.EEXIST
    if found.kind == "directory":
        return errno.ENOENT  # what a program would list is not there
    if flags & os.O_DIRECTORY:
        return errno.ENOTDIR
    if found.kind == "text" and flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
        return errno.EACCES
    return 0


def _readable(path: str, content: bytes) -> int:
    descriptor = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    os.fchmod(descriptor, 0o444)
    # Each program gets a read-only open of its own through /proc, and even root cannot write through it.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _signed(word: int) -> int:
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


# fmt: off
CALLS: Final[Mapping[int, PathCall]] = {
    # system call               path  directory  answered by             flags
    Call.OPENAT:     PathCall(  1,    0,         OpenAnswers.open),
    Call.OPEN:       PathCall(  0,    None,      OpenAnswers.open),
    Call.OPENAT2:    PathCall(  1,    0,         OpenAnswers.open),
    Call.NEWFSTATAT: PathCall(  1,    0,         OpenAnswers.stat,       3),
    Call.STATX:      PathCall(  1,    0,         OpenAnswers.statx,      2),
    Call.STAT:       PathCall(  0,    None,      OpenAnswers.stat),
    Call.LSTAT:      PathCall(  0,    None,      OpenAnswers.stat),
    Call.ACCESS:     PathCall(  0,    None,      OpenAnswers.access),
    Call.FACCESSAT:  PathCall(  1,    0,         OpenAnswers.access),
    Call.FACCESSAT2: PathCall(  1,    0,         OpenAnswers.access),
    Call.READLINK:   PathCall(  0,    None,      OpenAnswers.read_link),
    Call.READLINKAT: PathCall(  1,    0,         OpenAnswers.read_link),
    Call.GETXATTR:   PathCall(  0,    None,      OpenAnswers.attribute),
    Call.LGETXATTR:  PathCall(  0,    None,      OpenAnswers.attribute),
    Call.LISTXATTR:  PathCall(  0,    None,      OpenAnswers.attributes),
    Call.LLISTXATTR: PathCall(  0,    None,      OpenAnswers.attributes),
}
# fmt: on

#: With AT_EMPTY_PATH they are the fstat of a descriptor: C libraries call them so, and they name no path.
RULES: Final = tuple(
    Rule(number) if row.flags is None else Rule(number, argument=row.flags, unless=AT_EMPTY_PATH)
    for number, row in CALLS.items()
)
