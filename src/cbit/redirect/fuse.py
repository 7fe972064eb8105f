"""A device as a file that this process serves: the third way in which a program reaches it.

    program ── open, ioctl, close ── kernel ── /dev/fuse ── FuseFile ── Device

The root of the mount is the file itself, so there is no directory and no name to look up.  No system call of
the program is watched: what does not concern the file costs what it always cost, and the program may be
set-user-id, have filters of its own, be started by anybody.

The kernel asks once and waits until it is answered, signals or not; a command runs exactly once.  It copies
what an ioctl's argument points at by itself; the rest of the caller's memory is reached as ever, and the
caller cannot be gone while it is.

What the kernel's driver would not do is refused as the kernel does it for a driver that has no such call:
read, write EINVAL; a 32-bit program's ioctl ENOTTY.  What differs: stat says regular file, and some requests
that the kernel answers for regular files (FIONREAD) do not end with ENOTTY.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from cbit.redirect import fuse_wire as wire
from cbit.redirect.argument_memory import ArgumentMemory
from cbit.redirect.clients import AnyDevice, process_of
from cbit.redirect.device import Client
from cbit.redirect.files import DeviceFile
from cbit.redirect.fuse_wire import IoctlFlags, Malformed, Opcode, Request, SetAttr
from cbit.redirect.linux import mount
from cbit.redirect.process_memory import ProcessMemory
from cbit.trace import SILENT, Trace

DEVICE: Final = "/dev/fuse"
KIND: Final = "fuse.cbit"  #: what mountinfo calls the file system
SOURCE: Final = "cbit"  #: and where it comes from
PART: Final = "redirect"
_DRIVER: Final = "driver"  #: the part of the trace that tells programs' users why

_NO_SUID: Final = 0x2
_NO_DEVICES: Final = 0x4
_NO_EXEC: Final = 0x8
#: Attributes change through us alone, so the kernel may keep them.
_VALID_S: Final = 3600
_OPEN_FLAGS: Final = wire.FOPEN_DIRECT_IO | wire.FOPEN_NONSEEKABLE
_FOREIGN_ABI: Final = IoctlFlags.COMPAT | IoctlFlags.ABI_32BIT | IoctlFlags.COMPAT_X32
#: Requests that are answered in a row, before anybody else is heard.
_TOGETHER: Final = 16
#: The mount is gone; the second, when it went while a request was being taken.
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
#: Of a caller that a signal ended before we read its request; the next one is as good.
_NEVER_MIND: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOENT})


def open_channel() -> int:
    """Open what a FUSE mount is served through; it never waits.

    Raises:
        OSError: ENOENT if the kernel has no FUSE, EACCES or EPERM if it is not for us.
    """
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def mount_file(channel: int, path: str, *, mode: int) -> None:
    """Cover a file with the one that is served through ``channel``; it belongs to this process's user.

    Whoever serves it answers INIT only after this; until then every other request waits.

    Args:
        channel: from ``open_channel``, in this user namespace.
        path: a file.
        mode: its permission bits, which the kernel enforces.

    Raises:
        OSError: it cannot be mounted.
    """
    options = (
        f"fd={channel},rootmode={stat.S_IFREG | mode:o},user_id={os.geteuid()},group_id={os.getegid()}"
        ",allow_other,default_permissions"
    )
    mount(SOURCE, path, kind=KIND, flags=_NO_SUID | _NO_DEVICES | _NO_EXEC, options=options)


class _StillWaiting:
    """Who asks through FUSE waits until there is an answer, even killed."""

    def is_current(self, id_: int) -> bool:
        """Tell that the caller still waits."""
        return True


class FuseFile:
    """Answers what the kernel asks about one file; owns its channel.

    There is one handle of the device for each ``open``, as behind a driver: shared by those who inherit the
    descriptor, and closed with the last of them.

    Attributes:
        commands: how many ioctls reached the device.
    """

    def __init__(
        self,
        channel: int,
        file: DeviceFile,
        device: AnyDevice,
        *,
        mode: int,
        failed: Callable[[BaseException], None],
        trace: Trace = SILENT,
    ) -> None:
        """Take over a channel.

        Args:
            channel: what is read and answered.
            file: its path, which the log calls it by, and the requests that it answers.
            device: what is behind it.
            mode: its permission bits.
            failed: told of faults of ours.
            trace: told of every command, and why what is no command is refused.
        """
        self._channel, self._path, self._device = channel, file.path, device
        self._requests = frozenset(file.requests)
        self._mode, self._uid, self._gid = mode, os.geteuid(), os.getegid()
        self._failed, self._trace = failed, trace
        self._memory = ProcessMemory(_StillWaiting())
        self._buffer = bytearray(wire.BUFFER)
        self._view = memoryview(self._buffer)
        self._handles: dict[int, Any] = {}
        self._opened = 0
        self.commands = 0

    @property
    def open_handles(self) -> int:
        """How many have it open."""
        return len(self._handles)

    def fileno(self) -> int:
        """Return the channel: readable when there is a request, in error when the mount is gone."""
        return self._channel

    def close(self) -> None:
        """Close every handle, the latest first; from now on every call on the file ends with ENOTCONN."""
        for number in reversed(list(self._handles)):
            self._close(self._handles.pop(number))
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1

    def serve(self) -> bool:
        """Answer the next request, if there is one, and a few that follow closely.

        Returns:
            False when there will be no more: the mount is gone.
        """
        for _ in range(_TOGETHER):
            length = self._next()
            if length is None:
                return False
            if not length:
                break
            answer = self.answer(self._view[:length])
            if answer is not None:
                self._send(answer)
        return True

    def _next(self) -> int | None:
        """Take a request and return its bytes; 0 if there is none now, None if there will be none."""
        try:
            return os.readv(self._channel, (self._buffer,))
        except OSError as error:
            if error.errno in _GONE:
                return None
            if error.errno in _NEVER_MIND:
                return 0
            raise

    def answer(self, data: memoryview) -> bytes | None:
        """Return the answer to a request, None if it wants none; whatever it is, and whatever fails."""
        try:
            request = wire.parse(data)
        except Malformed as error:  # nothing says whom to answer
            self._trace.emit(_DRIVER, self._path, str(error))
            return None
        try:
            return _ANSWERS.get(request.opcode, FuseFile._not_offered)(self, request)
        except Malformed as error:
            self._trace.emit(_DRIVER, self._path, str(error), errno="EINVAL")
            return None if request.opcode in wire.SILENT else wire.failure(request.unique, errno.EINVAL)
        except OSError as error:
            return wire.failure(request.unique, error.errno or errno.EIO)
        except Exception as error:  # a fault of ours is one client's EIO, not everybody's end
            self._failed(error)
            return wire.failure(request.unique, errno.EIO)

    def _send(self, answer: bytes) -> None:
        try:
            os.write(self._channel, answer)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENODEV}:  # nobody waits any more
                return
            # The kernel does not take it, and whoever asked would wait for ever.
            self._failed(error)
            _, _, unique = wire.OUT_HEADER.unpack_from(answer)
            with suppress(OSError):
                os.write(self._channel, wire.failure(unique, errno.EIO))

    # ---- the command ----

    def _ioctl(self, request: Request) -> bytes:
        asked = wire.parse_ioctl(request.body)
        handle = self._handle(asked.handle)
        if asked.request not in self._requests:
            return wire.ioctl_reply(request.unique, -errno.ENOTTY, b"")
        why = self._why_not(request, asked)
        if why:
            self._trace.emit(_DRIVER, self._path, why[1], errno=errno.errorcode[why[0]])
            return wire.ioctl_reply(request.unique, -why[0], b"")
        memory = ArgumentMemory(
            self._memory.of(id_=0, tid=request.pid), asked.argument, asked.data, out_size=asked.out_size
        )
        self.commands += 1
        told = ""
        try:
            result = self._device.ioctl(handle, asked.request, asked.argument, memory)
            assert isinstance(result, int), "no descriptor can be handed out through FUSE"
        except OSError as error:
            result, told = -(error.errno or errno.EIO), error.strerror or ""
        except Exception as error:  # what it had written is written, as under the other mechanisms
            self._failed(error)
            result = -errno.EIO
        if self._trace.watched(PART):
            client, number = request.pid, asked.request
            self._trace.emit(
                PART, "ioctl", told, file=self._path, request=number, client=client, result=result
            )
        return wire.ioctl_reply(request.unique, result, memory.out)

    def _why_not(self, request: Request, asked: wire.Ioctl) -> tuple[int, str] | None:
        """Say what keeps an ioctl from the device: errno and reason."""
        if asked.flags & _FOREIGN_ABI:
            return errno.ENOTTY, "a 32-bit program asks, for which the kernel's driver has no entry"
        if request.pid == 0:
            return (
                errno.EPERM,
                "the caller is in a PID namespace that cannot be seen from here: nor its memory",
            )
        return None

    # ---- the file ----

    def _init(self, request: Request) -> bytes:
        major, minor, readahead, _ = wire.fields(wire.INIT_IN, request.body)
        if major < wire.FUSE_KERNEL_VERSION or (
            major == wire.FUSE_KERNEL_VERSION and minor < wire.OLDEST_MINOR
        ):
            why = (
                f"the kernel speaks FUSE {major}.{minor}, and 7.{wire.OLDEST_MINOR} is the oldest understood"
            )
            self._trace.emit(_DRIVER, self._path, why, errno="EPROTO")
            return wire.failure(request.unique, errno.EPROTO)
        # A newer major is answered with ours: the kernel asks again in our words.
        return wire.init_reply(request.unique, minor=minor, readahead=readahead)

    def _get_attributes(self, request: Request) -> bytes:
        wire.fields(wire.GETATTR_IN, request.body)
        return self._attributes(request)

    def _set_attributes(self, request: Request) -> bytes:
        # Its permission bits and owner; of the rest (a length, as O_TRUNC sets it; times) nothing is kept.
        valid, *_, mode, _, uid, gid, _ = wire.fields(wire.SETATTR_IN, request.body)
        if valid & SetAttr.MODE:
            self._mode = stat.S_IMODE(mode) & 0o777
        if valid & SetAttr.UID:
            self._uid = uid
        if valid & SetAttr.GID:
            self._gid = gid
        return self._attributes(request)

    def _attributes(self, request: Request) -> bytes:
        mode = stat.S_IFREG | self._mode
        return wire.attributes_reply(
            request.unique, mode=mode, uid=self._uid, gid=self._gid, valid_s=_VALID_S
        )

    def _open(self, request: Request) -> bytes:
        flags, _ = wire.fields(wire.OPEN_IN, request.body)
        writable = flags & os.O_ACCMODE in {os.O_WRONLY, os.O_RDWR}
        client = Client(process_of(request.pid) if request.pid else 0, _no_descriptor)
        handle = self._device.open(client, writable=writable)
        self._opened += 1
        self._handles[self._opened] = handle
        return wire.reply(request.unique, wire.OPEN_OUT.pack(self._opened, _OPEN_FLAGS, 0))

    def _release(self, request: Request) -> bytes:
        number, *_ = wire.fields(wire.RELEASE_IN, request.body)
        handle = self._handle(number)
        del self._handles[number]
        self._close(handle)
        return wire.reply(request.unique)

    def _statfs(self, request: Request) -> bytes:
        return wire.statfs_reply(request.unique)

    def _not_offered(self, request: Request) -> bytes:
        return wire.failure(request.unique, errno.ENOSYS)

    def _invalid(self, request: Request) -> bytes:
        return wire.failure(request.unique, errno.EINVAL)

    def _granted(self, request: Request) -> bytes:
        return wire.reply(request.unique)

    def _let_be(self, request: Request) -> None:
        """Answer nothing: the command that a signal wants to end runs once, to its end."""

    def _handle(self, number: int) -> Any:
        try:
            return self._handles[number]
        except KeyError:
            raise Malformed(f"handle {number} is not open") from None

    def _close(self, handle: Any) -> None:
        try:
            self._device.close(handle)
        except Exception as error:  # the other handles are to be closed all the same
            self._failed(error)


def _no_descriptor(number: int) -> str | None:
    """Say what a number in a command stands for: under FUSE no command has one, for those are KVM's."""
    raise OSError(errno.EBADF, f"descriptor {number}: those of a program cannot be looked at through FUSE")


_ANSWERS: Final[Mapping[int, Callable[[FuseFile, Request], bytes | None]]] = {
    Opcode.IOCTL: FuseFile._ioctl,
    Opcode.FORGET: FuseFile._let_be,
    Opcode.BATCH_FORGET: FuseFile._let_be,
    Opcode.INTERRUPT: FuseFile._let_be,
    Opcode.INIT: FuseFile._init,
    Opcode.GETATTR: FuseFile._get_attributes,
    Opcode.SETATTR: FuseFile._set_attributes,
    Opcode.OPEN: FuseFile._open,
    Opcode.RELEASE: FuseFile._release,
    Opcode.STATFS: FuseFile._statfs,
    Opcode.READ: FuseFile._invalid,  # a driver without read: the kernel says EINVAL for it
    Opcode.WRITE: FuseFile._invalid,
    Opcode.ACCESS: FuseFile._granted,  # the kernel has looked at the permission bits
    Opcode.DESTROY: FuseFile._granted,
    # FLUSH and POLL are not here: after one ENOSYS the kernel does not ask again, and does as for a driver
    # that has neither.
}
