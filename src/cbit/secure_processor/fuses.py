"""What is burnt into one chip: its unique secret, two keys' hashes, the rollback floor.

Paper: sev-crypto.md §3 (ARK), §5.1 (CUK and CEK), §5.2 (chip id), §5.3 (NV keys).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric import ec as curves

from cbit.crypto import ec
from cbit.crypto.entropy import Entropy
from cbit.crypto.kdf import CEK, kdf
from cbit.crypto.key import Key
from cbit.spec.errors import CbitError
from cbit.spec.wire import Wire, at

MAGIC: Final = b"CBITFUSE"
#: Order of the base point of GET_ID's curve (SEC 2, secp256k1).
SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

#: No root is fused: no hash is all zero, so such a chip trusts no other platform's chain.
NO_ROOT: Final = bytes(48)


def root_hash(ark: bytes) -> bytes:
    """SHA-384 over the signed bytes of a root certificate: what the fuses hold (§3)."""
    return hashlib.sha384(ark).digest()


class FuseError(CbitError):
    """The fuse bank cannot be read: no chip, or a damaged one."""


class _FuseBank(Wire, size=0x100):
    """The bank as the state folder keeps it (format private to cbit)."""

    magic: bytes = at(0x00, 8, default=MAGIC)
    rollback_floor: int = at(0x08, 4)
    cuk: bytes = at(0x10, 32)
    nv_key: bytes = at(0x30, 32)
    vendor_key_hash: bytes = at(0x50, 48)
    ark_hash: bytes = at(0x80, 48, default=NO_ROOT)
    checksum: bytes = at(0xE0, 32, default=bytes(32))

    def __repr__(self) -> str:
        return "_FuseBank(…)"


@dataclass(frozen=True, slots=True)
class Fuses:
    """One chip's fuses.

    Attributes:
        vendor_key_hash: SHA-384 of the 0x404-byte public key whose images the boot ROM runs.
        rollback_floor: lowest security version (SVN) of an image that the ROM still runs.
        ark_hash: SHA-384 of the signed bytes of the root certificate that this chip believes.
    """

    vendor_key_hash: bytes
    rollback_floor: int
    _cuk: Key = field(repr=False)
    _nv_key: Key = field(repr=False)
    ark_hash: bytes = NO_ROOT

    @classmethod
    def burn(
        cls, *, vendor_key_hash: bytes, rollback_floor: int, entropy: Entropy, ark_hash: bytes = NO_ROOT
    ) -> Self:
        """Make a new chip with its own secrets."""
        return cls(vendor_key_hash, rollback_floor, Key(entropy.draw(32)), Key(entropy.draw(32)), ark_hash)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a fuse bank.

        Raises:
            FuseError: wrong length, magic or checksum, or a chip secret outside its range.
        """
        if len(data) != _FuseBank.SIZE:
            raise FuseError(f"fuse bank: {len(data)} bytes, must be {_FuseBank.SIZE}")
        if data[:8] != MAGIC or hashlib.sha256(data[:0xE0]).digest() != data[0xE0:]:
            raise FuseError("fuse bank: damaged (magic or checksum does not match)")
        bank = _FuseBank.parse(data, canonical=False)
        if not 0 < int.from_bytes(bank.cuk, "big") < SECP256K1_ORDER:
            raise FuseError("fuse bank: the chip's secret is no scalar of GET_ID's curve")
        return cls(bank.vendor_key_hash, bank.rollback_floor, Key(bank.cuk), Key(bank.nv_key), bank.ark_hash)

    def __bytes__(self) -> bytes:
        bank = _FuseBank(
            rollback_floor=self.rollback_floor,
            cuk=self._cuk.material(),
            nv_key=self._nv_key.material(),
            vendor_key_hash=self.vendor_key_hash,
            ark_hash=self.ark_hash,
        )
        return bytes(bank.replace(checksum=hashlib.sha256(bytes(bank)[:0xE0]).digest()))

    def trusts(self, ark: bytes) -> bool:
        """Say whether these are the signed bytes of the root in the fuses."""
        return root_hash(ark) == self.ark_hash

    def cek(self) -> ec.PrivateKey:
        """Derive the chip endorsement key: FIPS 186-4 extra random bits over the KDF's 56 bytes."""
        seed = hashlib.sha256(self._cuk.material()).digest()
        rdata = int.from_bytes(kdf(56, seed, CEK), "little")
        return ec.private_key(rdata % (ec.ORDER - 1) + 1)

    def chip_id(self) -> bytes:
        """GET_ID's 64 bytes: X ‖ Y of CUK·G on secp256k1, big-endian."""
        scalar = int.from_bytes(self._cuk.material(), "big")
        point = curves.derive_private_key(scalar, curves.SECP256K1()).public_key().public_numbers()
        return point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")

    def nv_keys(self) -> tuple[Key, Key]:
        """Encryption and integrity key of the NV store; here the label's NUL is part of it (§5.3)."""
        fused, context = self._nv_key.material(), bytes(4)
        return (
            Key(kdf(16, fused, b"sev-persistent-encryption\x00", context)),
            Key(kdf(32, fused, b"sev-persistent-integrity\x00", context)),
        )
