"""The key of an encrypted disk: sought in an image of memory, tried on the disk.

Paper: attacks.md A1 (steps 4 and 5).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from cbit.attacks.lab.key_search import AES_256, FRESH, aes_keys
from cbit.guest.linux import encrypted_disk
from cbit.spec.address import MIB, PAGE

_PIECE: Final = 8 * MIB
_SCHEDULE: Final = 240  # bytes


def expanded_keys(image: bytes) -> list[bytes]:
    """Find the keys of AES-256 whose schedules lie in an image of memory, nearly unfaded, at whole words."""
    packed, found = without_zeros(image), {}
    for at in range(0, len(packed), _PIECE):
        piece = packed[at : at + _PIECE + _SCHEDULE]
        for _, key in aes_keys(piece, AES_256, aligned=True, tolerance=FRESH):
            found[key] = at  # once, whichever copies there are
    return list(found)


def without_zeros(image: bytes) -> bytes:
    """Leave pages of zeros out: there is nothing in them, and they are most of a machine's memory."""
    whole = len(image) // PAGE * PAGE
    pages = np.frombuffer(image, np.uint64, whole // 8).reshape(-1, PAGE // 8)
    return pages[pages.any(axis=1)].tobytes() + image[whole:]


def opened_disks(disk: bytes, keys: list[bytes]) -> Iterator[bytes]:
    """Decrypt a disk with each two keys, and yield what looks like an archive."""
    for first, second in itertools.permutations(keys, 2):
        contents = encrypted_disk.decrypt(disk, first + second)
        if encrypted_disk.is_archive(contents):
            yield contents
