"""Put the pieces of a platform's certificate chain together.

    ARK ─ signs itself ─> ASK ──> CEK ──> PEK ──> PDH      PEK is signed twice: by the CEK (it runs in this
    chip)
                                  OCA ──> PEK              and by the OCA (this organisation owns it)

Paper: sev-crypto.md §4, §5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cbit.owner.errors import Missing, Untrusted
from cbit.owner.verify.files import Piece, pieces_of, read
from cbit.spec.certificate import BODY_SIZE, UNUSED_SLOT, Usage

#: What to do about a certificate that is not there.
WHERE_FROM: Final[Mapping[Usage, str]] = MappingProxyType(
    {
        Usage.PDH: "the host exports it (pdh.cert of PDH_CERT_EXPORT)",
        Usage.PEK: "the host exports it (pek.cert, or the first third of cert_chain.cert)",
        Usage.OCA: "the host exports it (oca.cert, or the second third of cert_chain.cert)",
        Usage.CEK: "AMD's key server signs it for this chip (cek.cert, asked for with the id of GET_ID)",
        Usage.ASK: "AMD publishes it for each product (ask_ark.cert): give it with --ca",
        Usage.ARK: "AMD publishes it for each product (ask_ark.cert): give it with --ca",
    }
)


@dataclass(frozen=True, slots=True)
class Chain:
    """The six certificates of one platform, as bytes with their origin; nothing is verified yet."""

    pdh: Piece
    pek: Piece
    oca: Piece
    cek: Piece
    ask: Piece
    ark: Piece

    def pieces(self) -> tuple[Piece, ...]:
        """All of them, the root first."""
        return (self.ark, self.ask, self.cek, self.oca, self.pek, self.pdh)


@dataclass(frozen=True, slots=True)
class Parts:
    """What was found of a platform's certificates, whole or not; nothing is verified yet."""

    pieces: Mapping[Usage, Piece]

    @property
    def missing(self) -> tuple[Usage, ...]:
        """The roles that have no certificate."""
        return tuple(role for role in WHERE_FROM if role not in self.pieces)

    @property
    def authority_only(self) -> bool:
        """Whether this is AMD's pair alone, and no platform."""
        return set(self.pieces) == {Usage.ASK, Usage.ARK}

    def why(self) -> str:
        """Say what is missing, and where it comes from."""
        return "the chain is not complete: " + "; ".join(
            f"{role.name} is missing, {WHERE_FROM[role]}" for role in self.missing
        )


def read_parts(paths: Iterable[Path], *, ca: Iterable[Path] = (), roots: Iterable[Piece] = ()) -> Parts:
    """Read what is there of a chain; else as ``read_chain``."""
    return find_parts([*read(paths), *read(ca)], roots=roots)


def read_chain(paths: Iterable[Path], *, ca: Iterable[Path] = (), roots: Iterable[Piece] = ()) -> Chain:
    """Read a chain from folders and files.

    Args:
        paths: folders with the usual names, single certificates, or blobs.
        ca: more files, for ASK and ARK; they add certificates, never trust.
        roots: ARKs that the owner trusts; one stands in when the files bring no ARK.

    Raises:
        Missing: a certificate is not there; says which and what to do.
        WireError: a file is not one of certificates.
        Untrusted: two files contradict each other.
        OSError: a file cannot be read.
    """
    return assemble([*read(paths), *read(ca)], roots=roots)


def chain_of(data: bytes, *, source: str, ca: Iterable[Path] = (), roots: Iterable[Piece] = ()) -> Chain:
    """Read a chain from one blob, such as the one in a launch receipt; else as ``read_chain``."""
    return assemble([*pieces_of(data, source=source), *read(ca)], roots=roots)


def assemble(pieces: Iterable[Piece], *, roots: Iterable[Piece] = ()) -> Chain:
    """Give each role its one certificate.

    Raises:
        Missing: a role has none.
        Untrusted: a role has two that differ.
    """
    return whole(find_parts(pieces, roots=roots))


def find_parts(pieces: Iterable[Piece], *, roots: Iterable[Piece] = ()) -> Parts:
    """Give each role its one certificate, as far as there are any.

    Raises:
        Untrusted: a role has two that differ.
    """
    found: dict[Usage, Piece] = {}
    for piece in pieces:
        found[piece.role] = _join(found[piece.role], piece) if piece.role in found else piece
    roots = tuple(roots)
    if Usage.ARK not in found and len(roots) == 1:
        found[Usage.ARK] = roots[0]
    return Parts(MappingProxyType(found))


def whole(parts: Parts) -> Chain:
    """Insist on all six certificates.

    Raises:
        Missing: a role has none.
    """
    if parts.missing:
        raise Missing(parts.why())
    roles = (Usage.PDH, Usage.PEK, Usage.OCA, Usage.CEK, Usage.ASK, Usage.ARK)
    return Chain(*(parts.pieces[role] for role in roles))


def _join(one: Piece, other: Piece) -> Piece:
    if one.raw == other.raw:
        return one
    if one.role is Usage.CEK:
        unsigned = [piece for piece in (one, other) if _is_unsigned(piece)]
        if len(unsigned) == 1:
            return _splice(other if unsigned[0] is one else one, unsigned[0])
    raise Untrusted([f"two {one.role.name} certificates that differ: {one.source} and {other.source}"])


def _splice(signed: Piece, exported: Piece) -> Piece:
    """Take the CEK that AMD signed in place of the exported one, which is unsigned by design (§4).

    Both must be the same key.  The two bytes of the API version may differ: the firmware writes its own
    version into every certificate that it makes, and the key server writes 0.14 (§2).  Only the signed one is
    verified and used.
    """
    if _without_api(signed) != _without_api(exported):
        raise Untrusted([f"CEK: {signed.source} is of another chip than the one in {exported.source}"])
    return signed


def _without_api(piece: Piece) -> bytes:
    return piece.raw[:0x004] + piece.raw[0x006:BODY_SIZE]


def _is_unsigned(piece: Piece) -> bool:
    return piece.sev().slots() == (UNUSED_SLOT, UNUSED_SLOT)
