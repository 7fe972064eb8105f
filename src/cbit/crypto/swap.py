"""A page that leaves memory for the host's disk: AES-256-GCM under the guest's offline key.

Paper: sev-crypto.md §13.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cbit.crypto.key import Key
from cbit.spec.errors import BadMeasurement
from cbit.spec.swap import SwapMetadata

_TAG = 16


def seal_page(key: Key, page: bytes, metadata: SwapMetadata) -> tuple[SwapMetadata, bytes]:
    """Encrypt a page; return the metadata with its tag, and the ciphertext."""
    plain = metadata.replace(auth_tag=bytes(_TAG))
    sealed = AESGCM(key.material()).encrypt(_nonce(plain), page, bytes(plain))
    return plain.replace(auth_tag=sealed[-_TAG:]), sealed[:-_TAG]


def open_page(key: Key, ciphertext: bytes, raw: bytes) -> bytes:
    """Decrypt a page.

    Args:
        key: the guest's.
        ciphertext: the page.
        raw: the metadata entry as the host hands it back, reserved bytes and all.

    Raises:
        BadMeasurement: page or metadata are not what this key sealed.
    """
    metadata = SwapMetadata.parse(raw, canonical=False)
    authenticated = metadata.replace(auth_tag=bytes(_TAG)).patched(raw, "auth_tag")
    try:
        return AESGCM(key.material()).decrypt(_nonce(metadata), ciphertext + metadata.auth_tag, authenticated)
    except InvalidTag:
        raise BadMeasurement("the page or its metadata are not as this guest's SWAP_OUT left them") from None


def _nonce(metadata: SwapMetadata) -> bytes:
    """The counter, then four zero bytes."""
    return metadata.iv.to_bytes(8, "little") + bytes(4)
