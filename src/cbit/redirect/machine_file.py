"""A served machine's /dev/sev for everybody on this computer: a file that the daemon serves through FUSE.

    cbit serve --device /dev/sev ── mount over the path ── every program that may open it, without a wrapper

The file is root's alone (0600), as the real one is; ``chmod`` and ``chown`` change that while it is there.
The daemon itself must never open, stat or write it: it would wait for its own answer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from cbit.driver.caller_memory import CallerMemory
from cbit.redirect.attached import Reasons
from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client
from cbit.redirect.errors import RedirectError
from cbit.redirect.files import SEV_ISSUE_CMD, DeviceFile
from cbit.redirect.fuse import DEVICE, KIND, SOURCE, FuseFile, mount_file, open_channel
from cbit.redirect.linux import require_linux, unmount
from cbit.redirect.mounts import device_of, seen_at
from cbit.trace import Event, Trace

MODE: Final = 0o600
#: Of the empty file under the mount, where there was none: nobody else makes one that nobody may open, so a
#: daemon also takes away what one that was killed has left.
_PLACEHOLDER: Final = 0

Log = Callable[[str], None]


class DeviceRefused(RedirectError):
    """The file cannot be put there; whatever was there stays as it was."""


class MachineFile:
    """The file, its mount, and what is done through it.

    Attributes:
        path: where it is.
        file: answers the kernel.
    """

    def __init__(self, path: Path, file: FuseFile, mounted: str) -> None:
        self.path, self.file = path, file
        self._mounted = mounted

    def status(self) -> dict[str, object]:
        """Say who uses it."""
        return {
            "path": str(self.path),
            "handles": self.file.open_handles,
            "commands": self.file.commands,
        }

    def is_at(self, path: Path) -> bool:
        """Tell whether a path, through whatever links and binds, leads to this file."""
        return device_of(path) == self._mounted

    def close(self) -> None:
        """Unmount and close; who has it open gets ENOTCONN from now on."""
        there = seen_at(self.path)
        if there is not None and there.device == self._mounted:
            with suppress(OSError):  # closed as it is, it is stale, and the next daemon takes it away
                unmount(str(self.path))
        self.file.close()
        _remove_placeholder(self.path)


@contextmanager
def on_the_machine(path: Path, device: AnyDevice, reasons: Reasons, log: Log) -> Iterator[MachineFile]:
    """Put the file there for the length of the block; whoever enters it has to serve it at once.

    Args:
        path: where; nothing is there, or an empty regular file, or what a killed daemon left.
        device: the machine's /dev/sev.
        reasons: where the machine's trace puts why a command is refused.
        log: writes one line.

    Raises:
        DeviceRefused: something else is there, or it cannot be mounted.
    """
    require_linux()
    where = Path(os.path.realpath(path.parent), path.name)
    _clear(where, log)
    _ensure_a_file(where)
    try:
        channel = _mounted_at(where)
    except BaseException:
        _remove_placeholder(where)
        raise
    mount = seen_at(where)
    if mount is None:
        os.close(channel)
        raise DeviceRefused(f"{where}: what was mounted there is not seen there")
    told = Trace()
    with told.watched_by(lambda event: _log_event(log, where, event), only="driver"):
        file = FuseFile(
            channel,
            DeviceFile(str(where), (SEV_ISSUE_CMD,)),
            _Logged(device, str(where), reasons, log),
            mode=MODE,
            failed=lambda error: log(f"{where}: fault of the emulator: {error!r}"),
            trace=told,
        )
        machine_file = MachineFile(where, file, mount.device)
        try:
            yield machine_file
        finally:
            machine_file.close()


def _clear(path: Path, log: Log) -> None:
    """Take away what dead daemons have left mounted there."""
    while (there := seen_at(path)) is not None:
        if (there.kind, there.source) != (KIND, SOURCE):
            raise DeviceRefused(f"{path}: a file system is mounted there ({there.kind}): name another path")
        try:
            os.statvfs(path)  # the kernel asks whoever serves it, every time
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise DeviceRefused(f"{path}: {error.strerror}") from None
        else:
            raise DeviceRefused(f"{path} is in use: another cbit serve --device serves it")
        _unmount_stale(path)
        log(f"{path}: the mount of a daemon that was killed is taken away")


def _unmount_stale(path: Path) -> None:
    try:
        unmount(str(path))
    except OSError as error:
        raise DeviceRefused(f"{path}: {_why(error)}: what a killed daemon left mounted stays") from None


def _ensure_a_file(path: Path) -> None:
    """Insist on an empty regular file, or make one."""
    with suppress(FileNotFoundError):
        there = os.lstat(path)
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            what = "a device" if stat.S_ISCHR(there.st_mode) else "no empty regular file"
            raise DeviceRefused(f"{path} exists and is {what}: it is left alone; name another path")
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PLACEHOLDER))
    except OSError as error:
        raise DeviceRefused(f"{path}: {error.strerror}") from None


def _remove_placeholder(path: Path) -> None:
    """Take away the file under the mount, if it is one of ours."""
    with suppress(OSError):
        there = os.lstat(path)
        if stat.S_ISREG(there.st_mode) and not there.st_size and not stat.S_IMODE(there.st_mode):
            path.unlink()


def _mounted_at(path: Path) -> int:
    try:
        channel = open_channel()
    except OSError as error:
        raise DeviceRefused(f"{path}: {DEVICE} cannot be opened: {_why(error)}") from None
    try:
        mount_file(channel, str(path), mode=MODE)
    except OSError as error:
        os.close(channel)
        raise DeviceRefused(f"{path} cannot be mounted: {_why(error)}") from None
    return channel


def _why(error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return f"{error.strerror} (this takes root, and a container that may mount)"
    return error.strerror or str(error)


def _log_event(log: Log, path: Path, event: Event) -> None:
    log(f"{path}: {event.why}")


class _Logged:
    """Tells the log why a command is refused, as it is told of those of launchers."""

    def __init__(self, device: AnyDevice, path: str, reasons: Reasons, log: Log) -> None:
        self._device, self._path, self._reasons, self._log = device, path, reasons, log

    def open(self, client: Client, *, writable: bool) -> tuple[Client, Any]:
        return client, self._device.open(client, writable=writable)

    def ioctl(self, handle: tuple[Client, Any], request: int, argument: int, memory: CallerMemory) -> Any:
        client, inner = handle
        self._reasons.clear()
        try:
            return self._device.ioctl(inner, request, argument, memory)
        finally:
            for what, why in self._reasons:
                self._log(f"{self._path}, process {client.pid}: {what}: {why}")

    def close(self, handle: tuple[Client, Any]) -> None:
        self._device.close(handle[1])
