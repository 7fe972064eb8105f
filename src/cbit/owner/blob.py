"""The bytes of a large file, hashed while something else is done.

A kernel and its initrd are hashed whole before anything else can be computed from them.  A ``Blob`` begins
with that in a thread of its own when it is made; whoever wants the hash waits for the rest of it.

Imports as little as it can: it is what a command in a hurry loads first.
"""

from __future__ import annotations

import hashlib
import threading

LARGEST = 1 << 32  #: bytes of a kernel or initrd
_WORTH_A_THREAD = 1 << 20  # bytes; less is hashed sooner than a thread begins


class Blob:
    """Bytes, and their SHA-256.

    Args:
        data: the bytes; of a mapped file, as a memoryview.
    """

    __slots__ = ("_data", "_sha256", "_thread")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._sha256 = b""
        self._thread: threading.Thread | None = None
        if len(data) >= _WORTH_A_THREAD:
            self._thread = threading.Thread(target=self._hash, daemon=True)
            self._thread.start()

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.sha256() == other.sha256()

    def __hash__(self) -> int:
        return hash(self.sha256())

    def sha256(self) -> bytes:
        """Return the SHA-256 of the bytes."""
        if self._thread is not None:
            self._thread.join()
        if not self._sha256:
            self._hash()
        return self._sha256

    def _hash(self) -> None:
        self._sha256 = hashlib.sha256(self._data).digest()
