"""The owner's canonical rules: a certificate is exactly what the format says, in every byte.

The firmware does not look at reserved bytes, padding or slots that name no parent (sev-crypto.md §2.5).  The
owner does: then no byte of an accepted chain can be changed without being noticed, whether a signature covers
it or not.

Paper: sev-crypto.md §2 (SEV certificates), §3 (AMD's format).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cbit.crypto import ec
from cbit.owner.verify.files import Piece
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import (
    CURVE_P384,
    UNUSED_SLOT,
    Algo,
    EcdsaSignature,
    EcPublicKey,
    SevCert,
    Usage,
)
from cbit.spec.errors import InvalidCertificate
from cbit.spec.wire import MustBeZero, Wire

#: The field prime of P-384 (FIPS 186-4, D.1.2.4).
PRIME: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1

EXPONENT: Final = 65537  #: in every real root (§3)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a certificate of one role must be: its key's algorithm, and which signers fill its slots."""

    algos: tuple[Algo, ...]
    signers: frozenset[Usage]


#: The format has both hashes (§2.2); every published platform uses the first.  Which of them a slot names is
#: the signer's to say: no slot counts that names another algorithm than its key (``sev_cert.verify``).
_ECDSA: Final = (Algo.ECDSA_SHA256, Algo.ECDSA_SHA384)
_ECDH: Final = (Algo.ECDH_SHA256, Algo.ECDH_SHA384)

RULES: Final[Mapping[Usage, Rule]] = MappingProxyType(
    {
        Usage.PDH: Rule(_ECDH, frozenset({Usage.PEK})),
        # An import by an external owner leaves the OCA's signature where the owner put it and moves the CEK's
        # into the free slot (sev-api.md PEK_CERT_IMPORT): each slot may hold either.
        Usage.PEK: Rule(_ECDSA, frozenset({Usage.OCA, Usage.CEK})),
        Usage.OCA: Rule(_ECDSA, frozenset({Usage.OCA})),
        Usage.CEK: Rule(_ECDSA, frozenset({Usage.ASK})),
    }
)


def sev_problems(piece: Piece, *, ask: AmdCert | None) -> Iterator[str]:
    """Name everything in a SEV certificate that is not as its role demands.

    Args:
        piece: the certificate and its role.
        ask: the ASK, whose size decides algorithm and length of the CEK's signature; None if there is no
            usable one.
    """
    cert, rule = piece.sev(), RULES[piece.role]
    if cert.version != 1:
        yield f"version {cert.version}, must be 1"
    if cert.pubkey_usage != piece.role:
        yield f"the key's usage is {_name(Usage, cert.pubkey_usage)}, here stands a {piece.role.name}"
    if cert.pubkey_algo not in rule.algos:
        yield f"the key's algorithm is {_name(Algo, cert.pubkey_algo)}, must be {_or(rule.algos)}"
    yield from _gaps(SevCert, piece.raw, "certificate")
    yield from _key_problems(cert.pubkey)
    yield from _slot_problems(cert, rule, ask)


def _gaps(kind: type[Wire], raw: bytes, what: str) -> Iterator[str]:
    named = ((field.offset, field.end) for field in kind.FIELDS.values() if field.kind is MustBeZero)
    for start, end in (*kind.gaps(), *named):
        if any(raw[start:end]):
            yield f"{what}: reserved bytes {start:#x}..{end - 1:#x} are not zero"


def _key_problems(raw: bytes) -> Iterator[str]:
    key = EcPublicKey.parse(raw, canonical=False)
    yield from _gaps(EcPublicKey, raw, "public key")
    if key.curve != CURVE_P384:
        yield f"public key: curve {key.curve}, must be {CURVE_P384} (P-384)"
    elif key.qx >= PRIME or key.qy >= PRIME:
        yield "public key: a coordinate is not below the prime of P-384"
    else:
        try:
            ec.decode_public(key)
        except InvalidCertificate as error:
            yield str(error)


def _slot_problems(cert: SevCert, rule: Rule, ask: AmdCert | None) -> Iterator[str]:
    expected = set(rule.signers)
    for number, (usage, algo, signature) in enumerate(cert.slots(), 1):
        slot = f"signature slot {number}"
        if usage in expected:
            expected.discard(usage)
            yield from _signature_problems(slot, usage, algo, signature, ask)
        elif (usage, algo, signature) != UNUSED_SLOT:
            if usage == Usage.INVALID:
                yield f"{slot} is unused, but its algorithm and bytes are not 0"
            else:
                yield f"{slot} names the key usage {_name(Usage, usage)}, which does not sign here"
    for usage in sorted(expected):
        yield f"carries no signature by the {usage.name}"


def _signature_problems(
    slot: str, usage: Usage, algo: Algo, signature: bytes, ask: AmdCert | None
) -> Iterator[str]:
    wanted: tuple[Algo, ...] = _ECDSA
    if usage is Usage.ASK:
        if ask is None:
            return
        size = ask.header.modulus_size // 8
        wanted = (Algo.RSA_SHA256 if size == 256 else Algo.RSA_SHA384,)
        if any(signature[size:]):
            yield f"{slot}: the bytes after the {size} of the RSA signature are not zero"
    else:
        yield from _gaps(EcdsaSignature, signature, slot)
        numbers = EcdsaSignature.parse(signature, canonical=False)
        if not (0 < numbers.r < ec.ORDER and 0 < numbers.s < ec.ORDER):
            yield f"{slot}: R or S is not between 0 and the order of P-384"
    if algo not in wanted:
        yield f"{slot}: the algorithm is {_name(Algo, algo)}, must be {_or(wanted)}"


def amd_problems(cert: AmdCert, *, role: Usage) -> Iterator[str]:
    """Name everything in an ARK or ASK that is not as its role demands (its signature apart)."""
    header = cert.header
    if header.key_usage is not role:
        yield f"the key's usage is {header.key_usage.name}, here stands an {role.name}"
    if header.pubexp_size != header.modulus_size:
        yield f"exponent and modulus have fields of {header.pubexp_size} and {header.modulus_size} bits"
    if cert.pubexp != EXPONENT:
        yield f"the RSA exponent is {cert.pubexp:#x}, must be {EXPONENT}"
    if cert.modulus.bit_length() != header.modulus_size or not cert.modulus & 1:
        yield f"the RSA modulus is not an odd number of {header.modulus_size} bits"


def _or(algos: tuple[Algo, ...]) -> str:
    return " or ".join(algo.name for algo in algos)


def _name(kind: type[Usage | Algo], number: int) -> str:
    try:
        return kind(number).name
    except ValueError:
        return f"{number:#x}"
