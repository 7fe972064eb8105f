"""RSASSA-PSS with little-endian signatures, as AMD's roots sign.

Paper: sev-crypto.md §2.4: MGF1 with the same hash, salt as long as the hash, the signature is a
little-endian integer.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cbit.spec.errors import BadSignature, InvalidCertificate

PrivateKey = rsa.RSAPrivateKey
PublicKey = rsa.RSAPublicKey


def public_key(modulus: int, exponent: int) -> PublicKey:
    """Make a public key from its numbers.

    Raises:
        InvalidCertificate: the numbers are no RSA key.
    """
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise InvalidCertificate(f"not an RSA public key: {error}") from None


def _pss(digest: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)


def sign(key: PrivateKey, message: bytes, digest: hashes.HashAlgorithm) -> bytes:
    """Sign; as many little-endian bytes as the modulus has."""
    return key.sign(message, _pss(digest), digest)[::-1]


def verify(key: PublicKey, signature: bytes, message: bytes, digest: hashes.HashAlgorithm) -> None:
    """Check a little-endian signature of exactly the modulus's size.

    Raises:
        BadSignature: it does not hold.
    """
    try:
        key.verify(signature[::-1], message, _pss(digest), digest)
    except (InvalidSignature, ValueError):
        raise BadSignature("the RSA-PSS signature does not verify") from None
