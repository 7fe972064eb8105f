"""The SEV certificate (0x824 bytes) and the keys and signatures in it.

Paper: sev-crypto.md §2.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from cbit.spec.wire import MustBeZero, Wire, at

CERT_SIZE: Final = 0x824
BODY_SIZE: Final = 0x414  #: signed bytes: everything before SIG1_USAGE, for both signatures
CHAIN_SIZE: Final = 3 * CERT_SIZE  #: PEK, OCA, CEK as PDH_CERT_EXPORT gives them


class Usage(IntEnum):
    """What a key is for (sev-crypto.md §2.1)."""

    ARK = 0x0000
    ASK = 0x0013
    INVALID = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


class Algo(IntEnum):
    """Algorithm of a key or signature (sev-crypto.md §2.2)."""

    INVALID = 0x000
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103


RSA_ALGOS: Final = frozenset({Algo.RSA_SHA256, Algo.RSA_SHA384})
SHA384_ALGOS: Final = frozenset({Algo.RSA_SHA384, Algo.ECDSA_SHA384, Algo.ECDH_SHA384})

CURVE_P384: Final = 2  #: the only curve the firmware accepts in certificates (§2.3)


class EcPublicKey(Wire, size=0x404):
    """An elliptic-curve public key; coordinates are little-endian, zero padded to 72 bytes.

    Paper: sev-crypto.md §2.3.
    """

    curve: int = at(0x00, 4, default=CURVE_P384)
    qx: int = at(0x04, 72)
    qy: int = at(0x4C, 72)


class RsaPublicKey(Wire, size=0x404):
    """An RSA public key, little-endian.

    Paper: sev-crypto.md §2.3.
    """

    modulus_size: int = at(0x00, 4)  # bits
    pubexp: int = at(0x04, 512)
    modulus: int = at(0x204, 512)


class EcdsaSignature(Wire, size=512):
    """R and S, little-endian, zero padded to 72 bytes.

    Paper: sev-crypto.md §2.4.
    """

    r: int = at(0x00, 72)
    s: int = at(0x48, 72)


class SevCert(Wire, size=CERT_SIZE):
    """A SEV certificate with its two signature slots.

    Paper: sev-crypto.md §2.
    """

    version: int = at(0x000, 4, default=1)
    api_major: int = at(0x004, 1)
    api_minor: int = at(0x005, 1)
    reserved: MustBeZero = at(0x006, 2, default=MustBeZero.ZERO)
    pubkey_usage: Usage = at(0x008, 4)
    pubkey_algo: Algo = at(0x00C, 4)
    pubkey: bytes = at(0x010, 0x404)
    sig1_usage: Usage = at(0x414, 4, default=Usage.INVALID)
    sig1_algo: Algo = at(0x418, 4, default=Algo.INVALID)
    sig1: bytes = at(0x41C, 512, default=bytes(512))
    sig2_usage: Usage = at(0x61C, 4, default=Usage.INVALID)
    sig2_algo: Algo = at(0x620, 4, default=Algo.INVALID)
    sig2: bytes = at(0x624, 512, default=bytes(512))

    @property
    def body(self) -> bytes:
        """The signed bytes."""
        return bytes(self)[:BODY_SIZE]

    def slots(self) -> tuple[tuple[Usage, Algo, bytes], tuple[Usage, Algo, bytes]]:
        """Both signature slots as (usage of the signing key, algorithm, signature)."""
        return (self.sig1_usage, self.sig1_algo, self.sig1), (self.sig2_usage, self.sig2_algo, self.sig2)


UNUSED_SLOT: Final = (Usage.INVALID, Algo.INVALID, bytes(512))
