"""Sealed messages: what an owner writes for the one guest that has the key, through anybody's hands.

    length of the text (32 bits) | nonce (12 bytes) | ciphertext | tag (16 bytes)          AES-GCM

Source: NIST SP 800-38D.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.guest.builtin.interface import LONGEST

KEY_BYTES: Final = 16
LONG_KEY_BYTES: Final = 32
_NONCE: Final = 12


def seal(key: Key, text: bytes, *, entropy: Entropy) -> bytes:
    """Seal a message.

    Raises:
        ValueError: a text that the guest has no room for, or a key of another size.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a message of {len(text)} bytes: {LONGEST} at most")
    if len(key.material()) not in (KEY_BYTES, LONG_KEY_BYTES):
        raise ValueError(f"a message key has {KEY_BYTES} bytes, or {LONG_KEY_BYTES}")
    nonce = entropy.draw(_NONCE)
    return len(text).to_bytes(4, "little") + nonce + AESGCM(key.material()).encrypt(nonce, text, None)
