"""Make and check ARK and ASK certificates.

Paper: sev-crypto.md §3.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes

from cbit.crypto import rsa
from cbit.spec.amd_certificate import AmdCert, AmdCertHeader
from cbit.spec.certificate import Usage
from cbit.spec.errors import BadSignature, InvalidCertificate


def digest_for(modulus_size: int) -> hashes.HashAlgorithm:
    """Return the hash a root signs with: SHA-256 for 2048-bit keys (Naples), SHA-384 for 4096-bit ones."""
    return hashes.SHA256() if modulus_size == 2048 else hashes.SHA384()


def public_key(cert: AmdCert) -> rsa.PublicKey:
    """Return the RSA key of an ARK or ASK."""
    return rsa.public_key(cert.modulus, cert.pubexp)


def pin(cert: AmdCert) -> str:
    """SHA-256 over the big-endian modulus in hex: one pin serves AMD's format and X.509."""
    return hashlib.sha256(cert.modulus.to_bytes(cert.header.modulus_size // 8, "big")).hexdigest()


def issue(
    *, key: rsa.PublicKey, usage: Usage, key_id: bytes, signer: rsa.PrivateKey, signer_key_id: bytes
) -> AmdCert:
    """Sign an ARK (with itself) or an ASK (with the ARK)."""
    header = AmdCertHeader(
        key_id=key_id,
        certifying_key_id=signer_key_id,
        key_usage=usage,
        pubexp_size=key.key_size,
        modulus_size=key.key_size,
    )
    numbers = key.public_numbers()
    unsigned = AmdCert(header, numbers.e, numbers.n, b"")
    return AmdCert(
        header, numbers.e, numbers.n, rsa.sign(signer, unsigned.signed_bytes, digest_for(signer.key_size))
    )


def verify(cert: AmdCert, signer: AmdCert) -> None:
    """Check that ``signer`` (an ARK) signed ``cert`` (itself or an ASK).

    Raises:
        InvalidCertificate: usage or key ids are wrong, or the certificate is unsigned.
        BadSignature: the mathematics does not hold.
    """
    name = cert.header.key_usage.name
    if signer.header.key_usage is not Usage.ARK:
        raise InvalidCertificate(
            f"{name}: signed by a key of usage {signer.header.key_usage.name}, must be ARK"
        )
    if cert.header.certifying_key_id != signer.header.key_id:
        raise InvalidCertificate(
            f"{name}: says it is certified by key {cert.header.certifying_key_id.hex()}, "
            f"this ARK is {signer.header.key_id.hex()}"
        )
    if cert.header.key_usage is Usage.ARK and cert.header.key_id != signer.header.key_id:
        raise InvalidCertificate(f"{name}: certified by another key, a root signs itself")
    if not cert.signature:
        raise InvalidCertificate(f"{name}: the certificate carries no signature")
    try:
        rsa.verify(
            public_key(signer), cert.signature, cert.signed_bytes, digest_for(signer.header.modulus_size)
        )
    except BadSignature as error:
        raise BadSignature(f"{name}: {error}") from None
