"""Secret key material as a type that does not print itself."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Key:
    """Symmetric key bytes: never shown, compared in constant time, neither pickled nor copied.

    ``material()`` is for the crypto and memory rooms, which hand it to OpenSSL.
    """

    __slots__ = ("__material",)

    def __init__(self, material: bytes | bytearray | memoryview) -> None:
        if not isinstance(material, bytes | bytearray | memoryview):  # bytes(16) would be a key of zeros
            raise TypeError(f"key material must be bytes, not {type(material).__name__}")
        self.__material = bytes(material)

    def __len__(self) -> int:
        return len(self.__material)

    def __repr__(self) -> str:
        return f"Key({8 * len(self)} bits, fingerprint {self.fingerprint()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self.__material, other.__material)

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is neither pickled nor copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a key is neither pickled nor copied")

    def fingerprint(self) -> str:
        """Eight hex digits that tell keys apart and say nothing else about them."""
        return hashlib.sha256(b"cbit key fingerprint" + self.__material).hexdigest()[:8]

    def material(self) -> bytes:
        """The key bytes, for the primitive that uses them."""
        return self.__material
