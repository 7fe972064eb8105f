"""Mechanism A: a private mount namespace in which the files exist.

The program opens them like any others and at full speed; only the requests on them are notified.  Its /dev is
a picture of the real one at the start: a device that appears later is not in it.

Root enters a mount namespace; anybody else first a user namespace, in which only their own user and group
exist (set-user-id and setuid fail, other owners show as nobody).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cbit.redirect import fuse
from cbit.redirect.errors import NamespaceRefused
from cbit.redirect.files import DeviceFile, Files, TextFile, nearest
from cbit.redirect.linux import AT_FDCWD, PR_SET_DUMPABLE, Call, checked, libc, mount, prctl, syscall

_NEW_NAMESPACE: Final = 0x00020000
_NEW_USER: Final = 0x10000000

_NO_SUID: Final = 0x2
_BIND: Final = 0x1000
_RECURSIVE: Final = 0x4000
_SLAVE: Final = 0x80000

_CLONE: Final = 0x1
_CLONE_RECURSIVE: Final = 0x8000
_FROM_EMPTY_PATH: Final = 0x4

#: The device that makes pseudo-terminals looks for "pts" beside itself, so it cannot be bound alone.
_MAKER: Final = "ptmx"
_REAL: Final = ".real"  #: the directory as it was, for that device


def enter() -> None:
    """Move this process into a mount namespace of its own; what is mounted there is seen by nobody else.

    Raises:
        NamespaceRefused: with what was refused.
    """
    with _explained("a private mount namespace"):
        try:
            checked(libc().unshare(_NEW_NAMESPACE))
        except PermissionError:
            if (
                os.geteuid() == 0
            ):  # a container's root; a user namespace would take its powers over others away
                raise
            _enter_user_namespace()
    with _explained("making it private"):
        mount(None, "/", flags=_SLAVE | _RECURSIVE)


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    prctl(PR_SET_DUMPABLE, 1)  # or /proc/self belongs to root
    checked(libc().unshare(_NEW_NAMESPACE | _NEW_USER))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def place(files: Files) -> None:
    """Put the files into the namespace that this process has entered, each device played by its stand-in.

    Raises:
        NamespaceRefused: with what was refused.
    """
    with _explained("the device that plays another"):
        stand_ins = {device.path: os.open(device.stand_in, os.O_PATH) for device in files.devices}
    try:
        _place(files, lambda path: mount(f"/proc/self/fd/{stand_ins[path]}", path, flags=_BIND))
    finally:
        for descriptor in stand_ins.values():
            os.close(descriptor)


def place_served(files: Files, *, mode: int) -> list[int]:
    """Put the files into the namespace that this process has entered, each device served through FUSE.

    Args:
        files: what is to be found.
        mode: the permission bits of the devices.

    Returns:
        What each device is served through (``fuse.FuseFile``), in their order.

    Raises:
        NamespaceRefused: with what was refused.
    """
    channels: dict[str, int] = {}
    try:
        with _explained("serving files through FUSE"):
            for device in files.devices:
                channels[device.path] = fuse.open_channel()
        _place(files, lambda path: fuse.mount_file(channels[path], path, mode=mode))
    except BaseException:
        for channel in channels.values():
            os.close(channel)
        raise
    return list(channels.values())


def _place(files: Files, show: Callable[[str], None]) -> None:
    """Put every entry where it is to be found; ``show`` covers an empty file with a device.

    A directory that is to hold a new entry is covered by an empty one, into which everything that was there
    is bound.

    Raises:
        NamespaceRefused: with what was refused.
    """
    entries: tuple[DeviceFile | TextFile, ...] = (*files.devices, *files.texts)
    grouped: dict[str, list[DeviceFile | TextFile]] = {}
    for entry in entries:
        grouped.setdefault(nearest(entry.path), []).append(entry)
    # The deepest first: what covers a directory above takes it along.
    for directory in sorted(grouped, reverse=True):
        with _explained(f"covering {directory}"):
            _cover(directory, grouped[directory], show)


def _cover(directory: str, entries: Sequence[DeviceFile | TextFile], show: Callable[[str], None]) -> None:
    old = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    whole = -1
    try:
        if _is_maker(f"{directory}/{_MAKER}"):
            flags = _CLONE | _CLONE_RECURSIVE | os.O_CLOEXEC
            whole = syscall(Call.OPEN_TREE, AT_FDCWD, directory.encode(), flags)
        mode = os.fstat(old).st_mode & 0o777
        names = os.listdir(directory)
        # Not sticky: in such a directory the kernel refuses to open others' files with O_CREAT.
        mount("tmpfs", directory, kind="tmpfs", flags=_NO_SUID, options=f"mode={mode:o}")
        ours = {entry.path for entry in entries}
        for name in names:
            path = f"{directory}/{name}"
            if name == _MAKER and whole >= 0:
                os.mkdir(f"{directory}/{_REAL}")
                target = f"{directory}/{_REAL}".encode()
                syscall(Call.MOVE_MOUNT, whole, b"", AT_FDCWD, target, _FROM_EMPTY_PATH)
                os.symlink(f"{_REAL}/{name}", path)
            elif path not in ours:
                _carry_over(f"/proc/self/fd/{old}/{name}", path)
        for entry in entries:
            os.makedirs(os.path.dirname(entry.path), exist_ok=True)
            if isinstance(entry, TextFile):
                _create(entry.path, entry.content)
            else:
                _create(entry.path)
                show(entry.path)
    finally:
        os.close(old)
        if whole >= 0:
            os.close(whole)


def _is_maker(path: str) -> bool:
    """Tell the device itself from a symbolic link to the one inside "pts", which needs no care."""
    try:
        return stat.S_ISCHR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _carry_over(old: str, new: str) -> None:
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
        return
    if os.path.isdir(old):
        os.mkdir(new)
    else:
        _create(new)
    mount(old, new, flags=_BIND | _RECURSIVE)


def _create(path: str, content: bytes = b"") -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    try:
        os.write(descriptor, content)
        os.fchmod(descriptor, 0o444)  # whatever the umask says
    finally:
        os.close(descriptor)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        raise NamespaceRefused(f"{what} is refused: {name}{where}") from error
