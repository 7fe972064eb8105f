"""The owner's files, under the names that the ecosystem's tools use.

Paper: sev-crypto.md §7 (what is in them).
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from cbit.spec.errors import WireError

if TYPE_CHECKING:  # `measure` reads files by their names, and is in a hurry
    from pathlib import Path

GODH: Final = "godh.cert"
LAUNCH_BLOB: Final = "launch_blob.bin"
TRANSPORT_KEYS: Final = "tmp_tk.bin"  #: TEK then TIK: the secret of the launch
SESSION_RECORD: Final = "session.json"
SECRET_HEADER: Final = "packaged_secret_header.bin"
SECRET: Final = "packaged_secret.bin"

LARGEST: Final = 0x10000  #: bytes; no file of certificates, keys or reports is larger


def write_private(path: Path, data: bytes) -> None:
    """Write a file that holds a key: for its owner's eyes only, and never over another one.

    Raises:
        FileExistsError: something is there already; it may be the only copy of a key.
        OSError: the file cannot be written; nothing is left behind.
    """
    try:
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    except FileExistsError:
        raise FileExistsError(
            f"{path} is there already and holds keys: remove it, or choose another folder"
        ) from None
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def write_public(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None  # the draft's name says nothing


def write_twins(path: Path, data: bytes) -> list[Path]:
    """Write a file and its base64 twin (suffix ``.b64``), which QEMU and libvirt want."""
    twin = path.with_suffix(".b64")
    write_public(path, data)
    write_public(twin, base64.b64encode(data))
    return [path, twin]


def read_limited(path: str | os.PathLike[str], *, limit: int = LARGEST) -> bytes:
    """Read a file that must be small, whatever is behind its name.

    Raises:
        WireError: it is larger than ``limit`` bytes.
    """
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        # Only what may be endless is asked for a number of bytes: as many are allocated first.
        endless = not stat.S_ISREG(found.st_mode) or found.st_size > limit
        data = file.read(limit + 1 if endless else -1)
    if len(data) > limit:
        raise WireError(f"{os.path.basename(path)}: larger than the {limit} bytes that such a file can have")
    return data


def from_base64(text: bytes) -> bytes | None:
    """Read base64 in its one form, white space aside; None for anything else, and for nothing."""
    plain = text.translate(None, b" \t\r\n")
    try:
        raw = base64.b64decode(plain, validate=True)
    except ValueError:
        return None
    # One form only: the spare bits of the last character are zero.
    return raw if raw and base64.b64encode(raw) == plain else None
