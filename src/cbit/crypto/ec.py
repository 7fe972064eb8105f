"""P-384 keys, ECDH and ECDSA in the certificate's little-endian form.

Paper: sev-crypto.md §2.3 (keys), §2.4 (signatures), §5.1 (derived and random keys), §6 (Z).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from cbit.crypto.entropy import Entropy
from cbit.spec.certificate import CURVE_P384, EcdsaSignature, EcPublicKey
from cbit.spec.errors import BadSignature, InvalidCertificate

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

#: Prime of the P-384 field (FIPS 186-4, D.1.2.4).
PRIME: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1
#: Order of the P-384 base point (FIPS 186-4, D.1.2.4).
ORDER: Final = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)


def random_key(entropy: Entropy) -> PrivateKey:
    """Draw a P-384 key: 48 random bytes, redrawn when out of range (§5.1)."""
    while True:
        candidate = int.from_bytes(entropy.draw(48), "little")
        if 0 < candidate < ORDER:
            return private_key(candidate)


def private_key(scalar: int) -> PrivateKey:
    """Make the key of a known scalar."""
    return ec.derive_private_key(scalar, ec.SECP384R1())


def scalar_of(key: PrivateKey) -> int:
    """Return the private scalar, for the NV store."""
    return key.private_numbers().private_value


def encode_public(key: PublicKey) -> EcPublicKey:
    """Write a public key as certificates carry it."""
    numbers = key.public_numbers()
    return EcPublicKey(qx=numbers.x, qy=numbers.y)


def decode_public(key: EcPublicKey) -> PublicKey:
    """Read a public key from a certificate.

    Raises:
        InvalidCertificate: another curve than P-384, a coordinate outside its field, or a point that is
            not on it.
    """
    if key.curve != CURVE_P384:
        raise InvalidCertificate(f"curve {key.curve} in a certificate, only {CURVE_P384} (P-384) is accepted")
    # OpenSSL would reduce the coordinates, and one key would have several encodings.
    if max(key.qx, key.qy) >= PRIME:
        raise InvalidCertificate("the public key has a coordinate outside the field of P-384")
    try:
        return ec.EllipticCurvePublicNumbers(key.qx, key.qy, ec.SECP384R1()).public_key()
    except ValueError:
        raise InvalidCertificate("the public key is not a point on P-384") from None


def shared_secret(own: PrivateKey, peer: PublicKey) -> bytes:
    """Z: the X coordinate of the shared point, big-endian, 48 bytes, not hashed."""
    return own.exchange(ec.ECDH(), peer)


def sign(key: PrivateKey, message: bytes, digest: hashes.HashAlgorithm) -> EcdsaSignature:
    """Sign; the nonce is RFC 6979's, so that the same seed gives the same machine."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest, deterministic_signing=True)))
    return EcdsaSignature(r=r, s=s)


def verify(key: PublicKey, signature: EcdsaSignature, message: bytes, digest: hashes.HashAlgorithm) -> None:
    """Check a signature.

    Raises:
        BadSignature: it does not hold.
    """
    try:
        key.verify(encode_dss_signature(signature.r, signature.s), message, ec.ECDSA(digest))
    except InvalidSignature:
        raise BadSignature("the ECDSA signature does not verify") from None
