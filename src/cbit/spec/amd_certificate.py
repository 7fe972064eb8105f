"""AMD's own root certificate format (ARK, ASK), whose size depends on its keys.

Paper: sev-crypto.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from cbit.spec.certificate import Usage
from cbit.spec.errors import WireError
from cbit.spec.wire import Wire, at

KEY_BITS: Final = (2048, 4096)


class AmdCertHeader(Wire, size=0x40):
    """The fixed part before the key.

    Paper: sev-crypto.md §3.
    """

    version: int = at(0x00, 4, default=1)
    key_id: bytes = at(0x04, 16)
    certifying_key_id: bytes = at(0x14, 16)
    key_usage: Usage = at(0x24, 4)
    pubexp_size: int = at(0x38, 4)  # bits
    modulus_size: int = at(0x3C, 4)  # bits


@dataclass(frozen=True, slots=True)
class AmdCert:
    """An ARK or ASK: header, little-endian exponent and modulus, signature.

    ``signature`` is empty in the early published Naples ARK: such a file parses and counts as unsigned.
    """

    header: AmdCertHeader
    pubexp: int
    modulus: int
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one certificate from exactly its bytes.

        Raises:
            WireError: wrong length, version, key size or usage, or non-zero reserved bytes.
        """
        header = cls._header(data)
        end = len(data) - 0x40 - header.pubexp_size // 8 - header.modulus_size // 8
        if end not in (0, header.modulus_size // 8):
            raise WireError(f"AMD certificate: {len(data)} bytes do not fit a {header.modulus_size}-bit key")
        exponent_end = 0x40 + header.pubexp_size // 8
        modulus_end = exponent_end + header.modulus_size // 8
        return cls(
            header,
            int.from_bytes(data[0x40:exponent_end], "little"),
            int.from_bytes(data[exponent_end:modulus_end], "little"),
            bytes(data[modulus_end:]),
        )

    @classmethod
    def size_at(cls, data: bytes) -> int:
        """Length of the signed certificate that starts ``data`` (for files that hold several)."""
        header = cls._header(data)
        return 0x40 + header.pubexp_size // 8 + 2 * (header.modulus_size // 8)

    @staticmethod
    def _header(data: bytes) -> AmdCertHeader:
        if len(data) < AmdCertHeader.SIZE:
            raise WireError(f"AMD certificate: {len(data)} bytes, the header alone has {AmdCertHeader.SIZE}")
        header = AmdCertHeader.parse(bytes(data[: AmdCertHeader.SIZE]))
        if header.version != 1:
            raise WireError(f"AMD certificate: version {header.version}, must be 1")
        if header.key_usage not in (Usage.ARK, Usage.ASK):
            raise WireError(f"AMD certificate: usage {header.key_usage!r} is neither ARK nor ASK")
        if header.modulus_size not in KEY_BITS or header.pubexp_size not in KEY_BITS:
            raise WireError(
                f"AMD certificate: {header.modulus_size}/{header.pubexp_size}-bit key, 2048 or 4096 wanted"
            )
        return header

    @property
    def signed_bytes(self) -> bytes:
        """Everything before the signature."""
        header = self.header
        return (
            bytes(header)
            + self.pubexp.to_bytes(header.pubexp_size // 8, "little")
            + self.modulus.to_bytes(header.modulus_size // 8, "little")
        )

    def __bytes__(self) -> bytes:
        return self.signed_bytes + self.signature
