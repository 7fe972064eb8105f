"""AES-128-CTR as sessions, packets and the NV store use it.

Paper: sev-crypto.md §7.1: the 16-byte IV is the initial counter block, incremented as a 128-bit
big-endian integer.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.crypto.key import Key


def aes_ctr(key: Key, iv: bytes, data: bytes) -> bytes:
    """Encrypt, which is also decrypt."""
    context = Cipher(algorithms.AES(key.material()), modes.CTR(iv)).encryptor()
    return context.update(data) + context.finalize()
