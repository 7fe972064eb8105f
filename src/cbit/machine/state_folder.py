"""The state folder: a chip, its flash and its certificates on disk, held by one process at a time.

    cbit.json            profile; says that this is not AMD's
    chip/fuses.bin       the chip's secrets (0600)
    spi/                 signed images, and sev.nv: the firmware's non-volatile store
    certs/               ark.cert ask.cert ask_ark.cert cek.cert
    manufacturer/        the private keys of the emulated vendor (0600)
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cbit.machine.profiles import Profile, profile
from cbit.secure_processor.fuses import FuseError, Fuses
from cbit.secure_processor.nv_store import replace_file
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
            return (self.path / name).read_bytes()
        except OSError as error:
            raise StateError(f"{self.path / name}: {error.strerror}; make a new machine with 'cbit setup'") from None

    def _read_profile(self) -> Profile:
        try:
            description = json.loads(self.read("cbit.json"))
            if description["format"] != FORMAT:
                raise StateError(f"{self.path}: format {description['format']}, this cbit reads {FORMAT}")
            return profile(description["profile"])
        except (ValueError, KeyError, TypeError):
            raise StateError(f"{self.path / 'cbit.json'}: damaged; make a new machine with 'cbit setup'") from None


def write_state(path: Path, files: dict[str, bytes]) -> None:
    """Write the files of a new state folder; names that hold secrets are private anyway (0600).

    Raises:
        StateError: the folder exists and is not empty, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise StateError(f"{path} is not empty: a machine is manufactured into a new folder")
        for name, content in files.items():
            file = path / name
            file.parent.mkdir(exist_ok=True)
            replace_file(file, content)
    except OSError as error:
        raise StateError(f"{error.filename or path}: {error.strerror}") from None


def _lock(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; make a machine with 'cbit setup --state {path}'") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StateError(f"{path} is in use by another cbit process: stop it, or use another folder") from None
    return lock
