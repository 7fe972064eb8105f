"""The non-volatile store: the platform's keys and certificates, sealed for this chip.

    AES-128-CTR(state) ‖ HMAC-SHA256(ciphertext ‖ IV) (32) ‖ IV (16)          first 4 bytes ff ff ff ff: empty

Paper: sev-crypto.md §5.3; sev-api.md §5 INIT (what a failed integrity check does).
Not modelled: the legacy form without a MACed IV (counts as corrupt).
"""

from __future__ import annotations

import errno
import hmac
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.entropy import Entropy
from cbit.secure_processor.fuses import Fuses
from cbit.spec.address import MIB
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.errors import CbitError, WireError
from cbit.spec.wire import Wire, at

EMPTY: Final = b"\xff\xff\xff\xff"
VERSION: Final = 1
_MAC: Final = 32
_IV: Final = 16


class NvState(Wire, size=0x1930):
    """What survives power-off.  A zero scalar means "no private half here" (an organisation's OCA)."""

    version: int = at(0x0000, 4, default=VERSION)
    externally_owned: int = at(0x0004, 4)
    pdh_scalar: int = at(0x0010, 48)
    pek_scalar: int = at(0x0040, 48)
    oca_scalar: int = at(0x0070, 48)
    pdh_cert: bytes = at(0x00A0, CERT_SIZE)
    pek_cert: bytes = at(0x08D0, CERT_SIZE)
    oca_cert: bytes = at(0x1100, CERT_SIZE)

    def __repr__(self) -> str:
        return "NvState(…)"


LARGEST: Final = 16 * MIB  #: bytes of a file that belongs to a machine
SIZE: Final = NvState.SIZE + _MAC + _IV


class NvCorrupt(CbitError):
    """The store fails its integrity check: torn, altered, or written by another chip."""


class NvUnusable(CbitError):
    """The store cannot be read or written at all (permissions, full disk)."""


class NvStore:
    """The SPI flash area as one file, replaced as a whole: a reader sees the old state or the new one."""

    def __init__(self, path: Path, fuses: Fuses, entropy: Entropy) -> None:
        self._path = path
        self._encryption, self._integrity = fuses.nv_keys()
        self._entropy = entropy

    def load(self) -> NvState | None:
        """Read the state; None if the store is empty (a new chip, or after PLATFORM_RESET).

        Raises:
            NvCorrupt: the MAC does not match.
            NvUnusable: the file cannot be read.
        """
        blob = self._read()
        if blob[:4] == EMPTY:
            return None
        if len(blob) != SIZE:
            raise NvCorrupt(f"NV store: {len(blob)} bytes, must be {SIZE}: torn")
        ciphertext, mac, iv = blob[: -_MAC - _IV], blob[-_MAC - _IV : -_IV], blob[-_IV:]
        if not hmac.compare_digest(mac, self._mac(ciphertext, iv)):
            raise NvCorrupt("NV store: the MAC does not match: altered, or sealed by another chip")
        try:
            state = NvState.parse(aes_ctr(self._encryption, iv, ciphertext))
        except WireError as error:
            raise NvCorrupt(f"NV store: {error}") from None
        if state.version != VERSION:
            raise NvCorrupt(f"NV store: format version {state.version}, this firmware reads {VERSION}")
        return state

    def save(self, state: NvState) -> None:
        """Replace the state.

        Raises:
            NvUnusable: the file cannot be written; the old state is still there.
        """
        while True:
            iv = self._entropy.draw(_IV)
            ciphertext = aes_ctr(self._encryption, iv, bytes(state))
            # All ones at the start of the IV marks the legacy form, at the start of the file an empty store.
            if EMPTY not in (iv[:4], ciphertext[:4]):
                break
        self._replace(ciphertext + self._mac(ciphertext, iv) + iv)

    def erase(self) -> None:
        """Empty the store, as flash is empty.

        Raises:
            NvUnusable: the file cannot be written.
        """
        self._replace(EMPTY)

    def _mac(self, ciphertext: bytes, iv: bytes) -> bytes:
        return hmac.digest(self._integrity.material(), ciphertext + iv, "sha256")

    def _read(self) -> bytes:
        try:
            return read_file(self._path)
        except FileNotFoundError:
            return EMPTY
        except OSError as error:
            raise NvUnusable(f"NV store: {error.strerror}") from None

    def _replace(self, blob: bytes) -> None:
        try:
            replace_file(self._path, blob)
        except OSError as error:
            raise NvUnusable(f"NV store: {error.strerror}") from None


def read_file(path: Path) -> bytes:
    """Read a regular file that is no larger than what belongs to a machine can be (`LARGEST`).

    Raises:
        OSError: it cannot be read, or is of another kind or size; nothing was waited for.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > LARGEST:
            why = f"{found.st_size} bytes, and no file of a machine has more than {LARGEST}"
            raise OSError(errno.EFBIG, why, str(path))
        return file.read(found.st_size)


def replace_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace a file at once, for its owner's eyes only: write beside it, sync, rename, sync the folder.

    Args:
        path: the file.
        content: what it shall hold.
        sync: wait for the disk; without, a power cut may take the content, and readers see all or none still.

    Raises:
        OSError: the file is as it was.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if not sync:
        return
    # The new content is in force now, so nothing from here on is a failure: a file system that cannot sync a
    # folder only leaves open from when on the rename survives a power cut.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
