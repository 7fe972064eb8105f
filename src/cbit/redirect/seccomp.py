"""The kernel's notifications about system calls: asking for them, receiving them, answering them.

A caller waits inside its system call until it is answered, and without a listener every notified call returns
ENOSYS for ever.  Numbers and structures: linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from cbit.redirect.linux import PR_SET_NO_NEW_PRIVS, Call, prctl, syscall

SET_MODE_FILTER: Final = 1
GET_ACTION_AVAIL: Final = 2
GET_NOTIF_SIZES: Final = 3

SPEC_ALLOW: Final = 4
NEW_LISTENER: Final = 8
WAIT_KILLABLE_RECV: Final = 32

#: Speculation stays as it was: older kernels slow every filtered process down, and this filter is no sandbox.
#: And a caller whose call was received waits on for anything but its death: without this a handled signal
#: aborts the wait, the kernel restarts the call, and the command runs twice.
FLAGS: Final = NEW_LISTENER | WAIT_KILLABLE_RECV | SPEC_ALLOW

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADD_FD: Final = 0x40182103
_SET_FLAGS: Final = 0x40082104

_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1
_ADD_FD_SEND: Final = 2

_NOTIFICATION: Final = struct.Struct("<QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("<QqiI")
_DESCRIPTOR: Final = struct.Struct("<QIIII")
_ID: Final = struct.Struct("<Q")
SIZES: Final = (_NOTIFICATION.size, _RESPONSE.size, 64)  #: notification, response, the filter's record

_NOBODY: Final = bytes(_NOTIFICATION.size)


class Notification(NamedTuple):
    """One system call that waits for an answer."""

    id: int
    tid: int
    number: int
    arguments: tuple[int, ...]


def install(program: bytes, flags: int = FLAGS) -> int:
    """Put this process, and all that it will start, under a filter; return the listener's descriptor.

    There is no way back.  It also gives up what set-user-id programs could gain (no_new_privs), which is the
    price of doing this without privileges.

    Raises:
        OSError: EBUSY if something listens to this process already; EINVAL if the kernel lacks a flag.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    return syscall(Call.SECCOMP, SET_MODE_FILTER, flags, ctypes.create_string_buffer(header, len(header)))


class Listener:
    """The answering side; owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray(_NOTIFICATION.size)

    def fileno(self) -> int:
        """Return the descriptor: readable when a call waits, hung up when no filtered process is left."""
        return self._descriptor

    def close(self) -> None:
        """Give up: from now on every notified call returns ENOSYS."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def wake_synchronously(self) -> bool:
        """Let caller and answerer hand one processor to each other; about four times as fast.

        Returns:
            False if the kernel does not know how (it came with Linux 6.6).
        """
        try:
            fcntl.ioctl(self._descriptor, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            return False
        return True

    def can_give(self) -> bool:
        """Ask whether a descriptor can be given and the call answered in one step (Linux 5.14)."""
        try:
            fcntl.ioctl(self._descriptor, _ADD_FD, _DESCRIPTOR.pack(0, _ADD_FD_SEND, self._descriptor, 0, 0))
        except OSError as error:
            return error.errno == errno.ENOENT  # everything else was right: there is no call number 0
        return True

    def receive(self) -> Notification | None:
        """Take the next waiting call; None if its caller died in between."""
        buffer = self._buffer
        buffer[:] = _NOBODY  # the kernel insists
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:
                return None
            raise
        fields = _NOTIFICATION.unpack(buffer)
        return Notification(fields[0], fields[1], fields[3], fields[6:])

    def is_current(self, id_: int) -> bool:
        """Tell whether the caller still waits.

        What was read from a caller's memory counts only if this holds *afterwards*: its number may by then
        be another process's.
        """
        try:
            fcntl.ioctl(self._descriptor, _ID_VALID, _ID.pack(id_))
        except OSError:
            return False
        return True

    def answer(self, id_: int, result: int) -> bool:
        """End the call with a result, or with -errno; False if the caller died meanwhile."""
        value, error = (result, 0) if result >= 0 else (0, result)
        return self._send(_RESPONSE.pack(id_, value, error, 0))

    def let_pass(self, id_: int) -> bool:
        """Let the kernel run the call; False if the caller died meanwhile.

        The kernel reads the caller's memory anew, and another thread may have changed it since we looked.
        """
        return self._send(_RESPONSE.pack(id_, 0, 0, _CONTINUE))

    def give(self, id_: int, descriptor: int, *, close_on_exec: bool) -> bool:
        """End the call with a new descriptor of the caller's, a duplicate of ours; False if the caller died.

        One step: a caller that is killed has not got it, so nothing leaks.
        """
        flags = os.O_CLOEXEC if close_on_exec else 0
        try:
            fcntl.ioctl(self._descriptor, _ADD_FD, _DESCRIPTOR.pack(id_, _ADD_FD_SEND, descriptor, 0, flags))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            return self.answer(id_, -(error.errno or errno.EMFILE))  # the caller's own limit, most likely
        return True

    def _send(self, response: bytes) -> bool:
        try:
            fcntl.ioctl(self._descriptor, _SEND, response)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True
