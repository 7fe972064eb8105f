"""What the kernel and whoever serves a FUSE file say to each other: structures, and nothing that acts.

    fuse_in_header  | arguments | data        one read of /dev/fuse is one request
    fuse_out_header | arguments | data        one write is its answer

Every number is little-endian, as the only processor that this room knows has it.  Names are the header's own.
Source: linux/fuse.h (protocol 7.45; what is used here is the same since 7.23, Linux 3.15).
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from cbit.redirect.errors import RedirectError

FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 31  #: the newest whose rules this server keeps
OLDEST_MINOR: Final = 23  #: before it the answer to INIT is shorter, and so on: no kernel that we run on
FUSE_ROOT_ID: Final = 1
#: More than the longest request: an ioctl of 16383 bytes.  The kernel insists on 8192 at least.
BUFFER: Final = 32768
MAX_WRITE: Final = 4096


class Opcode(IntEnum):
    """What is asked; what is not here is answered ENOSYS, which the kernel takes for "not offered"."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42


#: The kernel waits for no answer to these, and takes one for an error.
SILENT: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})


class SetAttr(IntFlag):
    """Which attributes are to be set (FATTR_*); the others are left as they are."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2


class IoctlFlags(IntFlag):
    """Who calls, and how (FUSE_IOCTL_*)."""

    COMPAT = 1 << 0
    UNRESTRICTED = 1 << 1
    ABI_32BIT = 1 << 3
    COMPAT_X32 = 1 << 5


FOPEN_DIRECT_IO: Final = 1 << 0  #: read and write reach us: they are refused, and nothing is cached
FOPEN_NONSEEKABLE: Final = 1 << 2

IN_HEADER: Final = struct.Struct("<IIQQIIIHxx")  #: length, opcode, unique, node, uid, gid, pid, extensions
OUT_HEADER: Final = struct.Struct("<IiQ")  #: length, 0 or -errno, unique
INIT_IN: Final = struct.Struct("<IIII")  #: major, minor, read-ahead, flags; newer kernels say more
INIT_OUT: Final = struct.Struct(
    "<IIIIHHIIHHI28x"
)  #: of them: …, background, congestion, max_write, time_gran
GETATTR_IN: Final = struct.Struct("<IIQ")  #: flags, -, handle
ATTR_OUT: Final = struct.Struct("<QI4x")  #: how long it holds, seconds and nanoseconds; the attributes follow
ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
SETATTR_IN: Final = struct.Struct("<I4xQQQQQQIIIIIIII")  #: valid, handle, size, …, mode, -, uid, gid, -
OPEN_IN: Final = struct.Struct("<II")  #: flags of open(2), -
OPEN_OUT: Final = struct.Struct("<QIi")  #: handle, FOPEN_*, -
RELEASE_IN: Final = struct.Struct("<QIIQ")  #: handle, flags, release flags, lock owner
IOCTL_IN: Final = struct.Struct("<QIIQII")  #: handle, flags, request, argument, bytes in, bytes out
IOCTL_OUT: Final = struct.Struct("<iIII")  #: result, flags, iovecs in, iovecs out; then the bytes out
STATFS_OUT: Final = struct.Struct("<5Q4I24x")  #: blocks, free, …, block size, name length, fragment size, -


class Malformed(RedirectError):
    """A request that is none: too short for what it says it is, or longer than it says."""


class Request(NamedTuple):
    """One request.

    Attributes:
        opcode: what is asked; any number.
        unique: which request: the answer carries it.
        pid: the thread that asks, as the one who mounted sees it; 0 if that one cannot see it.
        body: what follows the header.
    """

    opcode: int
    unique: int
    pid: int
    body: memoryview


class Ioctl(NamedTuple):
    """An ioctl on the file.

    Attributes:
        handle: what OPEN answered.
        flags: ``IoctlFlags``.
        request: the request number, low 32 bits.
        argument: the third argument, 64 bits.
        out_size: bytes that may be copied over what the argument points at.
        data: what the argument points at, as the kernel copied it.
    """

    handle: int
    flags: int
    request: int
    argument: int
    out_size: int
    data: memoryview


def parse(data: memoryview) -> Request:
    """Take the header off a request.

    Raises:
        Malformed: it has none, or is not as long as it says.
    """
    if len(data) < IN_HEADER.size:
        raise Malformed(f"a request of {len(data)} bytes, and its header alone has {IN_HEADER.size}")
    length, opcode, unique, _, _, _, pid, extensions = IN_HEADER.unpack_from(data)
    end = length - 8 * extensions  # extensions come last, and none that we know is asked for
    if length != len(data) or end < IN_HEADER.size:
        raise Malformed(f"a request of {len(data)} bytes that says it has {length}")
    return Request(opcode, unique, pid, data[IN_HEADER.size : end])


def fields(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    """Take the arguments of a request apart; what a newer kernel says after them is left.

    Raises:
        Malformed: there are fewer.
    """
    if len(body) < layout.size:
        raise Malformed(f"{len(body)} bytes of arguments where {layout.size} are due")
    return layout.unpack_from(body)


def parse_ioctl(body: memoryview) -> Ioctl:
    """Take an ioctl apart; raises as ``fields``."""
    handle, flags, request, argument, in_size, out_size = fields(IOCTL_IN, body)
    data = body[IOCTL_IN.size :]
    if len(data) != in_size:
        raise Malformed(f"an ioctl with {len(data)} bytes of data that says it has {in_size}")
    return Ioctl(handle, flags, request, argument, out_size, data)


def reply(unique: int, body: bytes = b"") -> bytes:
    """Answer a request."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def failure(unique: int, error: int) -> bytes:
    """Refuse a request, for a positive errno."""
    return OUT_HEADER.pack(OUT_HEADER.size, -error, unique)


def ioctl_reply(unique: int, result: int, data: bytes) -> bytes:
    """Answer an ioctl; the bytes are copied to the caller whether the result is an error or not."""
    return reply(unique, IOCTL_OUT.pack(result, 0, 0, 0) + data)


def init_reply(unique: int, *, minor: int, readahead: int) -> bytes:
    """Agree on a protocol and on nothing that is optional."""
    minor = min(minor, FUSE_KERNEL_MINOR_VERSION)
    return reply(unique, INIT_OUT.pack(FUSE_KERNEL_VERSION, minor, readahead, 0, 0, 0, MAX_WRITE, 1, 0, 0, 0))


def attributes_reply(unique: int, *, mode: int, uid: int, gid: int, valid_s: int) -> bytes:
    """Say what the file is: empty, whatever anybody writes, so that no page of it is ever asked for."""
    attributes = ATTR.pack(FUSE_ROOT_ID, *[0] * 8, mode, 1, uid, gid, 0, 4096, 0)
    return reply(unique, ATTR_OUT.pack(valid_s, 0) + attributes)


def statfs_reply(unique: int) -> bytes:
    """Say how large the file system is: not at all."""
    return reply(unique, STATFS_OUT.pack(0, 0, 0, 1, 0, 4096, 255, 4096, 0))
