"""A disk image that dm-crypt opens: aes-xts-plain64, no header; and what is on it, an archive.

An archive and no file system: which file systems a kernel brings differs between distributions, and tar is in
every busybox.  Every sector of 512 bytes is one data unit of XTS, and its tweak is the sector's number.

Source: Linux, Documentation/admin-guide/device-mapper/dm-crypt.rst; IEEE 1619.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

SECTOR: Final = 512  #: bytes
KEY_SIZES: Final = (32, 64)  #: bytes: two keys of AES-128, or of AES-256
_MAGIC: Final = slice(257, 262), b"ustar"


def archive(files: Mapping[str, bytes]) -> bytes:
    """Put files into a tar archive; the same files give the same bytes.

    Raises:
        ValueError: a name that is empty, too long, not ASCII, or holds a slash or a NUL.
    """
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            if not name or not name.isascii() or "/" in name or "\x00" in name or name in {".", ".."}:
                raise ValueError(f"{name!r} cannot be the name of a file here")
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return made.getvalue()


def is_archive(contents: bytes) -> bool:
    """Whether a disk's contents begin like an archive that holds a file."""
    place, magic = _MAGIC
    return contents[place] == magic


def encrypt(plain: bytes, key: bytes) -> bytes:
    """Encrypt a disk's contents; they are padded with zeros to whole sectors.

    Raises:
        ValueError: a key of another size, or one whose halves are equal.
    """
    plain += bytes(-len(plain) % SECTOR)
    return _sectors(plain, key, seal=True)


def decrypt(image: bytes, key: bytes) -> bytes:
    """Decrypt an image.

    Raises:
        ValueError: a key as above, or an image that is not made of whole sectors.
    """
    if len(image) % SECTOR:
        raise ValueError(f"a disk image of {len(image)} bytes is not made of sectors of {SECTOR}")
    return _sectors(image, key, seal=False)


def _sectors(data: bytes, key: bytes, *, seal: bool) -> bytes:
    if len(key) not in KEY_SIZES:
        raise ValueError(f"a key of {len(key)} bytes: aes-xts takes {KEY_SIZES[0]} or {KEY_SIZES[1]}")
    out = []
    for at in range(0, len(data), SECTOR):
        cipher = Cipher(AES(key), XTS((at // SECTOR).to_bytes(16, "little")))
        context = cipher.encryptor() if seal else cipher.decryptor()
        out.append(context.update(data[at : at + SECTOR]) + context.finalize())
    return b"".join(out)
