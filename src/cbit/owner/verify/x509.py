"""X.509 certificates, as AMD issues them for SNP.

All signatures are RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt by 4096-bit keys; leaves
are keys on P-384.  Dates are read here and judged only against a time that somebody gives.

Paper: launch-inputs.md §9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from cbit.crypto import ec, rsa
from cbit.owner.verify import der
from cbit.owner.verify.der import Der
from cbit.spec.errors import InvalidCertificate, WireError

SIGNER_BITS: Final = 4096
EXPONENT: Final = 65537

_COMMON_NAME: Final = "2.5.4.3"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_KEY_USAGE: Final = "2.5.29.15"
_UNDERSTOOD: Final = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE})
_STRINGS: Final = (0x0C, 0x13, der.IA5_STRING)  # UTF8String, PrintableString, IA5String
_V3: Final = 2


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((tag, len(body))) + body  # shorter than 128 bytes each


def _pss(null: bytes, trailer: bytes) -> bytes:
    sha384 = _tlv(der.SEQUENCE, _tlv(der.OID, bytes.fromhex("608648016503040202")), null)
    mgf1 = _tlv(der.SEQUENCE, _tlv(der.OID, bytes.fromhex("2a864886f70d010108")), sha384)
    salt = _tlv(der.INTEGER, bytes((48,)))
    fields = (_tlv(0xA0, sha384), _tlv(0xA1, mgf1), _tlv(0xA2, salt), trailer)
    return _tlv(der.SEQUENCE, _tlv(der.OID, bytes.fromhex("2a864886f70d01010a")), _tlv(der.SEQUENCE, *fields))


#: The one algorithm, in the forms that issuers write: hash parameters NULL or absent, trailer field (always
#: 1) written out as AMD does, or left out.
PSS_SHA384: Final = frozenset(
    _pss(null, trailer) for null in (b"\x05\x00", b"") for trailer in (bytes.fromhex("a303020101"), b"")
)


@dataclass(frozen=True, slots=True)
class Extension:
    """The value of an extension, and whether whoever does not understand it must refuse."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """What certificates and revocation lists have in common: signed bytes, algorithm, signature."""

    body: bytes
    algorithm: bytes
    signature: bytes

    @classmethod
    def parse(cls, raw: bytes, *, what: str) -> Self:
        """Take the outer three parts apart."""
        outer = Der(raw, what=what)
        reader = outer.inside(der.SEQUENCE)
        outer.done()
        found = cls(reader.whole(der.SEQUENCE), reader.whole(der.SEQUENCE), reader.bits())
        reader.done()
        return found

    def check(self, signer: Certificate) -> None:
        """Check the signature.

        Raises:
            InvalidCertificate: another algorithm, or the signer's key is not one that signs here.
            BadSignature: it does not hold.
        """
        if self.algorithm not in PSS_SHA384:
            raise InvalidCertificate(
                "the signature's algorithm is not RSASSA-PSS with SHA-384, MGF1-SHA-384 and 48 bytes of salt"
            )
        rsa.verify(signer.rsa_key(), self.signature[::-1], self.body, hashes.SHA384())


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate, taken apart; nothing about it is checked yet but its form.

    Attributes:
        raw: all of it, DER.
        source: where it comes from, in words.
        outer: signed bytes, algorithm and signature.
        serial: number; AMD's leaves all have 0.
        issuer: name of who signed, DER.
        subject: name of whom it is about, DER.
        not_before: first moment of its validity.
        not_after: last moment.
        spki: the public key, DER.
        extensions: by dotted identifier.
    """

    raw: bytes
    source: str
    outer: Signed
    serial: int
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: Mapping[str, Extension]

    @classmethod
    def parse(cls, raw: bytes, *, source: str) -> Self:
        """Read exactly one DER certificate.

        Raises:
            WireError: it is not one of version 3 in strict DER.
        """
        outer = Signed.parse(raw, what=source)
        reader = Der(outer.body, what=source).inside(der.SEQUENCE)
        version = reader.inside(der.explicit(0))
        number = version.integer()
        version.done()
        if number != _V3:
            raise reader.wrong(f"certificate version {number + 1}, must be 3")
        serial = reader.integer()
        check_same_algorithm(reader, outer)
        issuer = reader.whole(der.SEQUENCE)
        validity = reader.inside(der.SEQUENCE)
        dates = validity.time(), validity.time()
        validity.done()
        subject, spki = reader.whole(der.SEQUENCE), reader.whole(der.SEQUENCE)
        extensions = extensions_of(reader, 3)
        reader.done()
        return cls(
            raw=raw,
            source=source,
            outer=outer,
            serial=serial,
            issuer=issuer,
            subject=subject,
            not_before=dates[0],
            not_after=dates[1],
            spki=spki,
            extensions=extensions,
        )

    @property
    def common_name(self) -> str:
        """The subject's CN; empty if there is none, or more than one."""
        return common_name(self.subject, what=self.source)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole certificate, in hex."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def is_ca(self) -> bool:
        """Whether it says that its key signs certificates."""
        found = self.extensions.get(_BASIC_CONSTRAINTS)
        if found is None:
            return False
        reader = Der(found.value, what=self.source).inside(der.SEQUENCE)
        return reader.next_is(der.BOOLEAN) and reader.boolean()

    def rsa_key(self) -> rsa.PublicKey:
        """Return the RSA key that signs other certificates.

        Raises:
            InvalidCertificate: another key than RSA-4096 with exponent 65537.
        """
        key = self._key()
        if not isinstance(key, rsa.PublicKey) or key.key_size != SIGNER_BITS:
            raise InvalidCertificate(f"{self.common_name}: the key is not RSA of {SIGNER_BITS} bits")
        if key.public_numbers().e != EXPONENT:
            raise InvalidCertificate(f"{self.common_name}: the RSA exponent is not {EXPONENT}")
        return key

    def ec_key(self) -> ec.PublicKey:
        """Return the P-384 key of a leaf.

        Raises:
            InvalidCertificate: another kind of key or curve.
        """
        key = self._key()
        if not isinstance(key, ec.PublicKey) or key.curve.name != "secp384r1":
            raise InvalidCertificate(f"{self.common_name}: the key is not one on P-384")
        return key

    def pin(self) -> str:
        """SHA-256 over the big-endian modulus: the same pin as in AMD's own format.

        Raises:
            InvalidCertificate: as ``rsa_key``.
        """
        return hashlib.sha256(self.rsa_key().public_numbers().n.to_bytes(SIGNER_BITS // 8, "big")).hexdigest()

    def problems(self, *, ca: bool) -> Iterator[str]:
        """Name what is not as the certificate's place demands: key, constraints, unknown critical parts."""
        try:
            if ca:
                self.rsa_key()
            else:
                self.ec_key()
        except InvalidCertificate as error:
            yield str(error)
        try:
            if self.is_ca is not ca:
                yield "is not marked as an authority" if ca else "is marked as an authority, a leaf is not"
            if ca and not self._may_sign():
                yield "its key usage does not allow to sign certificates"
        except WireError as error:
            yield str(error)
        yield from critical_problems(self.extensions)

    def date_problems(self, at: datetime) -> Iterator[str]:
        """Say whether the certificate is outside its dates at a moment."""
        if at < self.not_before:
            yield f"not valid before {self.not_before.isoformat()}"
        if at > self.not_after:
            yield f"expired at {self.not_after.isoformat()}"

    def _may_sign(self) -> bool:
        found = self.extensions.get(_KEY_USAGE)
        if found is None:
            return True
        bits = Der(found.value, what=self.source).take(der.BIT_STRING)
        return len(bits) >= 2 and bool(bits[1] & 0x04)  # keyCertSign is bit 5, counted from the left

    def _key(self) -> object:
        try:
            key = serialization.load_der_public_key(self.spki)
            form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            one_form = key.public_bytes(*form) == self.spki
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidCertificate(f"{self.common_name}: the public key cannot be read") from None
        if not one_form:
            raise InvalidCertificate(f"{self.common_name}: the public key is not in its usual form")
        return key


def common_name(name: bytes, *, what: str) -> str:
    """Return the CN of a name; empty if there is none, or more than one.

    Raises:
        WireError: the bytes are no name.
    """
    found = []
    for group in Der(name, what=what).inside(der.SEQUENCE).each(der.SET):
        for attribute in group.each(der.SEQUENCE):
            if attribute.oid() == _COMMON_NAME:
                found.append(attribute.take(*_STRINGS).decode("utf-8", "replace"))
    return found[0] if len(found) == 1 else ""


def critical_problems(extensions: Mapping[str, Extension]) -> Iterator[str]:
    """Name every critical extension that is not understood here: it must not be passed over."""
    for oid, extension in extensions.items():
        if extension.critical and oid not in _UNDERSTOOD:
            yield f"critical extension {oid} is not understood"


def check_same_algorithm(reader: Der, outer: Signed) -> None:
    """Read the signed copy of the algorithm; the outer one counts only if it is the same, byte for byte.

    Raises:
        WireError: it is another.
    """
    if reader.whole(der.SEQUENCE) != outer.algorithm:
        raise reader.wrong("the signature's algorithm is another inside than outside")


def extensions_of(reader: Der, number: int) -> Mapping[str, Extension]:
    """Read the extensions, if any are left to read, from their ``[number] EXPLICIT``.

    Raises:
        WireError: malformed, or one stands twice.
    """
    found: dict[str, Extension] = {}
    if reader.more:
        wrapper = reader.inside(der.explicit(number))
        extensions = wrapper.inside(der.SEQUENCE)
        wrapper.done()
        for one in extensions.each(der.SEQUENCE):
            oid = one.oid()
            critical = one.next_is(der.BOOLEAN) and one.boolean()
            if oid in found:
                raise reader.wrong(f"extension {oid} stands twice")
            found[oid] = Extension(critical, one.take(der.OCTET_STRING))
            one.done()
    return MappingProxyType(found)
