"""The state folder: a chip, its flash and its certificates on disk, held by one process at a time.

    cbit.json            profile; says that this is not AMD's
    chip/fuses.bin       the chip's secrets
    spi/                 signed images, and sev.nv: the firmware's non-volatile store
    certs/               ark.cert ask.cert ask_ark.cert cek.cert; the platform's pdh.cert pek.cert oca.cert
    manufacturer/        the private keys of the emulated vendor

Every file is its owner's alone (0600).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cbit.machine.profiles import Profile, UnknownProfile, profile
from cbit.secure_processor.fuses import FuseError, Fuses
from cbit.secure_processor.nv_store import read_file, replace_file
from cbit.spec.errors import CbitError

FORMAT: Final = 1


class StateError(CbitError):
    """The state folder is missing, damaged, in use or not writable; the message says which and what to do."""


class StateFolder:
    """An opened state folder; the lock is held until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        try:
            self.profile = self._read_profile()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def nv_path(self) -> Path:
        """Where the firmware's NV store lives."""
        return self.path / "spi" / "sev.nv"

    @property
    def certs(self) -> Path:
        """Folder of the certificates that the vendor publishes."""
        return self.path / "certs"

    def fuses(self) -> Fuses:
        """Read the chip.

        Raises:
            StateError: no chip, or a damaged one.
        """
        try:
            return Fuses.parse(self.read("chip/fuses.bin"))
        except FuseError as error:
            raise StateError(f"{self.path / 'chip/fuses.bin'}: {error}") from None

    def read(self, name: str) -> bytes:
        """Read a file of the folder.

        Raises:
            StateError: it cannot be read.
        """
        try:
            return read_file(self.path / name)
        except OSError as error:
            raise StateError(
                f"{self.path / name}: {error.strerror}; make a new machine with 'cbit setup'"
            ) from None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the folder as a whole: another flash image, a certificate.

        Raises:
            StateError: it cannot be written, and is as it was.
        """
        try:
            replace_file(self.path / name, content)
        except OSError as error:
            raise StateError(f"{self.path / name}: {error.strerror}") from None

    def _read_profile(self) -> Profile:
        where = self.path / "cbit.json"
        try:
            description = json.loads(self.read("cbit.json"))
            if description["format"] != FORMAT:
                raise StateError(f"{where}: format {description['format']}, this cbit reads {FORMAT}")
            return profile(description["profile"])
        except UnknownProfile as error:
            raise StateError(f"{where}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StateError(f"{where}: damaged; make a new machine with 'cbit setup'") from None


def write_state(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a new state folder: all of them, or the folder is empty again.

    Raises:
        StateError: the folder exists and is not empty, is in use, or cannot be written.
    """
    lock = _new(path)
    try:
        try:
            for name, content in files.items():
                (path / name).parent.mkdir(exist_ok=True)
                replace_file(path / name, content)
        except BaseException:
            erase_state(path)
            raise
    except OSError as error:
        raise StateError(f"{error.filename or path}: {error.strerror}") from None
    finally:
        os.close(lock)


def insist_on_new(path: Path) -> None:
    """Try whether a machine can be made there, before seconds are spent on it; an empty folder is left.

    Raises:
        StateError: as of `write_state`.
    """
    os.close(_new(path))


def _new(path: Path) -> int:
    """Make and lock a new state folder, or an empty one that is there; return the lock."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from None
    lock = _lock(path)
    try:
        if any(path.iterdir()):
            raise StateError(f"{path} is not empty: a machine is manufactured into a new folder")
        if not os.access(path, os.W_OK | os.X_OK):
            raise StateError(f"{path}: {os.strerror(errno.EACCES)}")
    except OSError as error:
        os.close(lock)
        raise StateError(f"{path}: {error.strerror}") from None
    except StateError:
        os.close(lock)
        raise
    return lock


def erase_state(path: Path) -> None:
    """Take back a state folder that was made a moment ago: remove what is in it."""
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StateError(
            f"{path}: {error.strerror}; make a machine with 'cbit setup --state {shlex.quote(str(path))}'"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StateError(
            f"{path} is in use by another cbit process: stop it, or use another folder"
        ) from None
    return lock
