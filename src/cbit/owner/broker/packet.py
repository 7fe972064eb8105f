"""A secret for the guest's own key (SNP): whoever carries the answer cannot read it.

An SNP launch has no transport keys.  The guest makes a key on P-384 and binds it to its report:

    REPORT_DATA = SHA-512( nonce of the broker (32) ‖ the guest's public key, DER SubjectPublicKeyInfo )

    Z   = X of the point that the broker's fresh key and the guest's key agree on
    key = HKDF-SHA256( Z, salt = SHA-256(report), info = "cbit owner broker 1", 32 bytes )
    ciphertext ‖ tag = AES-256-GCM( key, iv, secret, AAD = the report )

Not AMD's format: SNP leaves to the guest and its owner how they talk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cbit.crypto import ec
from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.spec.errors import BadMeasurement, WireError

NONCE_SIZE: Final = 32
_IV_SIZE: Final = 12
_INFO: Final = b"cbit owner broker 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPacket:
    """A sealed secret: the broker's fresh public key (DER), IV, and ciphertext with its tag."""

    public_key: bytes
    iv: bytes
    data: bytes


def read_public_key(raw: bytes) -> ec.PublicKey:
    """Read a guest's public key.

    Raises:
        WireError: not one on P-384 as SubjectPublicKeyInfo, in its usual form.
    """
    try:
        key = serialization.load_der_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise WireError("the guest's public key is no SubjectPublicKeyInfo in DER") from None
    if not isinstance(key, ec.PublicKey) or key.curve.name != "secp384r1" or public_bytes(key) != raw:
        raise WireError("the guest's public key is not one on P-384 (secp384r1), in its usual form")
    return key


def public_bytes(key: ec.PublicKey) -> bytes:
    """Write a public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def report_data(nonce: bytes, public_key: bytes) -> bytes:
    """Compute the REPORT_DATA that binds a guest's key to a challenge, 64 bytes.

    Args:
        nonce: the broker's, 32 bytes.
        public_key: DER.

    Raises:
        WireError: a nonce of another size.
    """
    if len(nonce) != NONCE_SIZE:
        raise WireError(f"the challenge has {len(nonce)} bytes, must have {NONCE_SIZE}")
    return hashlib.sha512(nonce + public_key).digest()


def seal(secret: Key, *, guest: ec.PublicKey, report: bytes, entropy: Entropy) -> GuestPacket:
    """Seal a secret for the guest whose key a report covers."""
    own = ec.random_key(entropy)
    iv = entropy.draw(_IV_SIZE)
    data = AESGCM(_key(own, guest, report)).encrypt(iv, secret.material(), report)
    return GuestPacket(public_key=public_bytes(own.public_key()), iv=iv, data=data)


def unseal(packet: GuestPacket, *, own: ec.PrivateKey, report: bytes) -> Key:
    """Open a packet in the guest.

    Raises:
        BadMeasurement: another key, another report, or a changed packet.
        WireError: the broker's key cannot be read.
    """
    try:
        key = _key(own, read_public_key(packet.public_key), report)
        return Key(AESGCM(key).decrypt(packet.iv, packet.data, report))
    except (InvalidTag, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise BadMeasurement("the packet is not for this key and this report, or was changed") from None


def _key(own: ec.PrivateKey, other: ec.PublicKey, report: bytes) -> bytes:
    salt = hashlib.sha256(report).digest()
    return HKDF(hashes.SHA256(), 32, salt, _INFO).derive(ec.shared_secret(own, other))
