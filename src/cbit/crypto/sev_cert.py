"""Make and check SEV certificates, in the firmware's own order of checks.

Paper: sev-crypto.md §2.5.  The owner's canonical rules (padding, unused slots) stand on top of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec, rsa
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import (
    RSA_ALGOS,
    SHA384_ALGOS,
    UNUSED_SLOT,
    Algo,
    EcdsaSignature,
    EcPublicKey,
    RsaPublicKey,
    SevCert,
    Usage,
)
from cbit.spec.errors import BadSignature, InvalidCertificate, WireError
from cbit.spec.policy import ApiVersion

#: Who may sign whom (§2.5 step 4).
PARENTS: Final[Mapping[Usage, frozenset[Usage]]] = {
    Usage.PDH: frozenset({Usage.PEK}),
    Usage.PEK: frozenset({Usage.OCA, Usage.CEK}),
    Usage.OCA: frozenset({Usage.OCA}),
    Usage.CEK: frozenset({Usage.ASK}),
}


def digest_of(algo: Algo) -> hashes.HashAlgorithm:
    """Return the hash an algorithm number names."""
    return hashes.SHA384() if algo in SHA384_ALGOS else hashes.SHA256()


def build(*, usage: Usage, algo: Algo, key: ec.PublicKey, api: ApiVersion) -> SevCert:
    """Make an unsigned certificate for a P-384 key."""
    return SevCert(
        api_major=api.major,
        api_minor=api.minor,
        pubkey_usage=usage,
        pubkey_algo=algo,
        pubkey=bytes(ec.encode_public(key)),
    )


def sign(cert: SevCert, *, slot: int, signer: ec.PrivateKey, usage: Usage) -> SevCert:
    """Put an ECDSA-SHA256 signature of a key of ``usage`` into slot 1 or 2."""
    signature = bytes(ec.sign(signer, cert.body, hashes.SHA256()))
    return with_slot(cert, slot, (usage, Algo.ECDSA_SHA256, signature))


def sign_by_ask(cert: SevCert, *, signer: rsa.PrivateKey) -> SevCert:
    """Put the ASK's RSA-PSS signature into slot 1 (only the CEK certificate has one)."""
    algo = Algo.RSA_SHA256 if signer.key_size == 2048 else Algo.RSA_SHA384
    signature = rsa.sign(signer, cert.body, digest_of(algo))
    return with_slot(cert, 1, (Usage.ASK, algo, signature.ljust(512, b"\x00")))


def with_slot(cert: SevCert, slot: int, content: tuple[Usage, Algo, bytes]) -> SevCert:
    """Return the certificate with one signature slot replaced."""
    usage, algo, signature = content
    names = (f"sig{slot}_usage", f"sig{slot}_algo", f"sig{slot}")
    return cert.replace(**dict(zip(names, (usage, algo, signature), strict=True)))


def without_signatures(cert: SevCert) -> SevCert:
    """Return the certificate with both slots unused, as PDH_CERT_EXPORT gives the CEK."""
    return with_slot(with_slot(cert, 1, UNUSED_SLOT), 2, UNUSED_SLOT)


def public_key(cert: SevCert) -> ec.PublicKey:
    """Return the P-384 key of a certificate.

    Raises:
        InvalidCertificate: the key is not well formed.
    """
    return ec.decode_public(EcPublicKey.parse(cert.pubkey, canonical=False))


def check_key_form(cert: SevCert) -> ec.PublicKey | None:
    """Insist on a well-formed own key: P-384 and on the curve, or RSA of at most 4096 bits.

    Returns:
        The P-384 key; None if it is RSA.

    Raises:
        InvalidCertificate: unknown usage or algorithm, or the key is not well formed.
    """
    try:
        usage, algo = Usage(cert.pubkey_usage), Algo(cert.pubkey_algo)
    except ValueError as error:
        raise InvalidCertificate(f"certificate: {error}") from None
    if Usage.INVALID is usage or Algo.INVALID is algo:
        raise InvalidCertificate("certificate: key usage or algorithm is INVALID")
    if algo not in RSA_ALGOS:
        return public_key(cert)
    if (bits := RsaPublicKey.parse(cert.pubkey, canonical=False).modulus_size) > 4096:
        raise InvalidCertificate(f"certificate: RSA key of {bits} bits, 4096 at most")
    return None


def check_body(cert: SevCert) -> ec.PublicKey | None:
    """Step 3: version 1 and a well-formed own key, which is returned as ``check_key_form`` does."""
    if cert.version != 1:
        raise InvalidCertificate(f"certificate: version {cert.version}, must be 1")
    return check_key_form(cert)


def check_sanity(cert: SevCert, *, usage: Usage, algo: Algo) -> ec.PublicKey | None:
    """Check a peer's Diffie-Hellman certificate: body, usage and algorithm; *no signature*.

    Returns:
        Its P-384 key; None if it is RSA.

    Raises:
        InvalidCertificate: one of them is wrong.
    """
    key = check_body(cert)
    if cert.pubkey_usage != usage or cert.pubkey_algo != algo:
        raise InvalidCertificate(
            f"certificate: usage {cert.pubkey_usage:#x} algorithm {cert.pubkey_algo:#x}, "
            f"must be {usage.name} {algo.name}"
        )
    return key


def verify(cert: SevCert, parent: SevCert | AmdCert) -> None:
    """Validate one certificate against one parent key, as the firmware does.

    Raises:
        BadSignature: a slot is malformed, or the last slot that names the parent does not verify.
        InvalidCertificate: the parent's key is not well formed, no slot names it, the body is wrong, or
            the parent may not sign this usage.
    """
    if isinstance(parent, SevCert):  # step 1
        check_key_form(parent)
        usage, algo = Usage(parent.pubkey_usage), Algo(parent.pubkey_algo)
    else:
        usage = parent.header.key_usage
        algo = Algo.RSA_SHA256 if parent.header.modulus_size == 2048 else Algo.RSA_SHA384
    verdict: BadSignature | None = None  # step 2: the last matching slot decides
    matched = False
    for number, (slot_usage, slot_algo, signature) in enumerate(cert.slots(), 1):
        if (slot_usage == Usage.INVALID) != (slot_algo == Algo.INVALID):
            raise BadSignature(
                f"signature slot {number} is malformed: usage {slot_usage:#x}, algorithm {slot_algo:#x}"
            )
        if (slot_usage, slot_algo) != (usage, algo):
            continue
        matched, verdict = True, None
        try:
            _verify_slot(cert.body, signature, parent, algo)
        except BadSignature as error:
            verdict = BadSignature(f"signature slot {number} ({usage.name}): {error}")
    if verdict is not None:
        raise verdict
    if not matched:
        raise InvalidCertificate(
            f"no signature slot names a key of usage {usage.name} and algorithm {algo.name}"
        )
    check_body(cert)  # step 3
    if usage not in PARENTS.get(cert.pubkey_usage, ()):  # step 4
        raise InvalidCertificate(
            f"a key of usage {usage.name} may not sign one of usage {cert.pubkey_usage:#x}"
        )


def _verify_slot(body: bytes, signature: bytes, parent: SevCert | AmdCert, algo: Algo) -> None:
    if isinstance(parent, AmdCert):
        key, size = rsa.public_key(parent.modulus, parent.pubexp), parent.header.modulus_size // 8
        rsa.verify(key, signature[:size], body, digest_of(algo))
    elif algo in RSA_ALGOS:
        numbers = RsaPublicKey.parse(parent.pubkey, canonical=False)
        key = rsa.public_key(numbers.modulus, numbers.pubexp)
        rsa.verify(key, signature[: numbers.modulus_size // 8], body, digest_of(algo))
    else:
        try:
            parsed = EcdsaSignature.parse(signature, canonical=False)
        except WireError as error:
            raise BadSignature(str(error)) from None
        ec.verify(public_key(parent), parsed, body, digest_of(algo))
