"""Verify every signature of a chain, name each with its result, and give one verdict.

Trust comes from a pinned AMD root or from a root that the owner names, and from nothing else.

Paper: sev-crypto.md §2.5, §3; the canonical rules on top are in ``canonical``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from cbit.crypto import amd_cert, sev_cert
from cbit.owner.errors import Untrusted
from cbit.owner.verify import canonical
from cbit.owner.verify.chain import Chain, Parts
from cbit.owner.verify.files import Piece
from cbit.owner.verify.roots import amd_root, claimed_root, is_trusted
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.errors import BadSignature, InvalidCertificate

#: The seven signatures, from the root down: who is signed by whom.
SIGNATURES: Final = (
    (Usage.ARK, Usage.ARK),
    (Usage.ASK, Usage.ARK),
    (Usage.CEK, Usage.ASK),
    (Usage.OCA, Usage.OCA),
    (Usage.PEK, Usage.CEK),
    (Usage.PEK, Usage.OCA),
    (Usage.PDH, Usage.PEK),
)

#: What no chain of this format can prove.
ROLLBACK_CAVEAT: Final = (
    "the CEK is the same under every firmware version: the chain proves the chip, not recent firmware"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of the chain and what became of it; ``reason`` is empty when it is good.

    ``checked`` is False where the signer's certificate is not there: then nothing is known, good or bad.
    """

    certificate: Usage
    signer: Usage
    slot: int | None
    reason: str
    checked: bool = True

    @property
    def good(self) -> bool:
        """Whether it verifies."""
        return not self.reason

    def __str__(self) -> str:
        return f"{self.certificate.name} signed by {self.signer.name}: {self.reason or 'good'}"


@dataclass(frozen=True, slots=True)
class RootReport:
    """Who the root is.

    Attributes:
        product: AMD's product name if the key is pinned, else None.
        trusted: pinned, or named by the owner.
        key_id: as the certificate says.
        pin: of the key.
        key_bits: size of the RSA key.
    """

    product: str | None
    trusted: bool
    key_id: str
    pin: str
    key_bits: int

    @property
    def simulated(self) -> bool:
        """Not one of AMD's: whatever shows such a chain says so."""
        return self.product is None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that was found out about a chain, good or bad.

    Attributes:
        chain: what was inspected.
        root: who stands at its top; None when the ARK is not readable as a certificate.
        signatures: all seven, with their results.
        problems: every reason not to trust the chain; empty for a good one.
    """

    chain: Chain
    root: RootReport | None
    signatures: tuple[Signature, ...]
    problems: tuple[str, ...]

    @property
    def ownership(self) -> str:
        """What the certificates say about the owner of the platform.

        A platform that owns itself has the CEK's signature in slot 2.  In slot 1 it stands only after an
        import by an external owner; the reverse cannot be concluded.
        """
        return _ownership(self.chain.pek)


@dataclass(frozen=True, slots=True)
class PartInspection:
    """What was found out about certificates that are not a whole chain; nothing is trusted for it.

    Attributes:
        parts: what was inspected.
        root: who stands at its top; None when there is no ARK, or none that is readable.
        signatures: those of the certificates that are there.
        problems: every reason not to trust what is there.
    """

    parts: Parts
    root: RootReport | None
    signatures: tuple[Signature, ...]
    problems: tuple[str, ...]

    @property
    def ownership(self) -> str:
        """What the certificates say about the owner of the platform, as for a whole chain."""
        return _ownership(self.parts.pieces.get(Usage.PEK))


def _ownership(pek: Piece | None) -> str:
    if pek is not None and pek.sev().sig1_usage == Usage.CEK:
        return "external: the PEK was imported with the owner's signature in slot 2"
    return "not told by the certificates: compare the OCA with your organisation's own"


class VerifiedPlatform:
    """A platform whose whole chain was verified; only ``verify_chain`` makes one.

    Attributes:
        inspection: the evidence.
    """

    __slots__ = ("inspection",)

    def __init__(self, inspection: Inspection, *, made_by: object) -> None:
        if made_by is not _VERIFIED or inspection.problems:
            raise TypeError("a VerifiedPlatform comes from verify_chain() only")
        self.inspection: Final = inspection

    @property
    def pdh(self) -> SevCert:
        """The platform's Diffie-Hellman certificate."""
        return self.inspection.chain.pdh.sev()

    @property
    def root(self) -> str:
        """The root in words, marked if it is not AMD's."""
        return describe_root(self.inspection.root)

    @property
    def simulated(self) -> bool:
        """Whether the root is an emulator's."""
        return self.inspection.root is None or self.inspection.root.simulated


_VERIFIED: Final = object()


@dataclass(frozen=True, slots=True)
class UnverifiedPlatform:
    """A platform that nobody verified, for the lab: everything that is made for it says so."""

    pdh: SevCert
    root: str = "none: dangerously unverified"
    simulated: bool = False

    @classmethod
    def dangerously_trust(cls, pdh: SevCert) -> Self:
        """Take a Diffie-Hellman certificate from anybody.

        Raises:
            InvalidCertificate: it is no certificate for ECDH on P-384.
        """
        wide = pdh.pubkey_algo == Algo.ECDH_SHA384
        sev_cert.check_sanity(pdh, usage=Usage.PDH, algo=Algo.ECDH_SHA384 if wide else Algo.ECDH_SHA256)
        return cls(pdh)


def verify_chain(chain: Chain, *, trust: Sequence[AmdCert] = ()) -> VerifiedPlatform:
    """Verify a whole chain.

    Args:
        chain: the certificates.
        trust: roots that the owner trusts besides AMD's.

    Raises:
        Untrusted: with every reason.
    """
    inspection = inspect(chain, trust=trust)
    if inspection.problems:
        raise Untrusted(inspection.problems)
    return VerifiedPlatform(inspection, made_by=_VERIFIED)


def inspect(chain: Chain, *, trust: Sequence[AmdCert] = ()) -> Inspection:
    """Check everything and collect it, for showing; trusts nothing by itself."""
    return Inspection(chain, *_inspect({piece.role: piece for piece in chain.pieces()}, trust))


def inspect_parts(parts: Parts, *, trust: Sequence[AmdCert] = ()) -> PartInspection:
    """Check what is there of a chain, for showing; only ``verify_chain`` makes anything trusted."""
    return PartInspection(parts, *_inspect(parts.pieces, trust))


def _inspect(
    pieces: Mapping[Usage, Piece], trust: Sequence[AmdCert]
) -> tuple[RootReport | None, tuple[Signature, ...], tuple[str, ...]]:
    problems: list[str] = []
    amd = {role: _read_amd(pieces[role], problems) for role in (Usage.ARK, Usage.ASK) if role in pieces}
    certs: dict[Usage, SevCert | AmdCert | None] = {**amd}
    for role in (Usage.CEK, Usage.OCA, Usage.PEK, Usage.PDH):
        if (piece := pieces.get(role)) is not None:
            certs[role] = piece.sev()
            why = canonical.sev_problems(piece, ask=amd.get(Usage.ASK))
            problems += (f"{_where(piece)}: {reason}" for reason in why)
    signatures = tuple(_verify(certs, *pair) for pair in SIGNATURES if pair[0] in pieces)
    problems += (str(signature) for signature in signatures if signature.checked and not signature.good)
    ark = amd.get(Usage.ARK)
    if ark is None:
        return None, signatures, tuple(problems)
    return _report_root(ark, trust), signatures, (*problems, *_root_problems(ark, trust))


def describe_root(root: RootReport | None) -> str:
    """Say who a root is, with the mark SIMULATED on whatever is not AMD's."""
    if root is None:
        return "unreadable"
    if root.product is not None:
        return f"AMD {root.product} (pinned)"
    return f"SIMULATED: not an AMD root, {'trusted by your --trust' if root.trusted else 'not trusted'}"


def _where(piece: Piece) -> str:
    return f"{piece.role.name} ({piece.source})"


def _read_amd(piece: Piece, problems: list[str]) -> AmdCert | None:
    try:
        cert = piece.amd()
    except Untrusted as error:
        problems += error.reasons
        return None
    problems += (f"{_where(piece)}: {why}" for why in canonical.amd_problems(cert, role=piece.role))
    return cert


def _verify(certs: dict[Usage, SevCert | AmdCert | None], role: Usage, signer: Usage) -> Signature:
    cert, parent = certs[role], certs.get(signer)
    slot = None
    if isinstance(cert, SevCert):
        slot = next((n for n, (usage, _, _) in enumerate(cert.slots(), 1) if usage == signer), None)
    if signer not in certs:
        return Signature(role, signer, slot, f"not checked, {signer.name} is missing", checked=False)
    try:
        if cert is None or parent is None:
            raise InvalidCertificate("cannot be checked, a certificate is not readable")
        if isinstance(cert, SevCert):
            sev_cert.verify(cert, parent)
        elif isinstance(parent, AmdCert):
            amd_cert.verify(cert, parent)
    except (InvalidCertificate, BadSignature) as error:
        return Signature(role, signer, slot, str(error))
    return Signature(role, signer, slot, "")


def _report_root(ark: AmdCert, trust: Iterable[AmdCert]) -> RootReport:
    known = amd_root(ark)
    return RootReport(
        product=known.product if known else None,
        trusted=known is not None or is_trusted(ark, trust),
        key_id=ark.header.key_id.hex(),
        pin=amd_cert.pin(ark),
        key_bits=ark.header.modulus_size,
    )


def _root_problems(ark: AmdCert, trust: Sequence[AmdCert]) -> list[str]:
    known, claimed = amd_root(ark), claimed_root(ark)
    if known is not None:
        if claimed is known:
            return []
        return [
            f"ARK: AMD's {known.product} key under the key id {ark.header.key_id.hex()}, which is not its own"
        ]
    if is_trusted(ark, trust):
        return []
    if claimed is not None:
        return [
            f"ARK: carries the key id of AMD's {claimed.product} root, but is not that key: it is not AMD's"
        ]
    return [
        "ARK: not one of AMD's pinned roots; an emulator's root that you trust is named with --trust ROOT"
    ]
