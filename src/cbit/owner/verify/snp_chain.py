"""The chain above an SNP report, and its verdict.

    ARK ─ signs itself ─> ASK ──> VCEK     the chip's own key, derived for one version of its firmware
                     └──> ASVK ─> VLEK     a provider's key, loaded into many chips

Trust comes from a pinned AMD root or from a root that the owner names, and from nothing else.  The roots are
the same RSA keys as in AMD's own format, so that the same pins serve.

Paper: launch-inputs.md §9, sev-crypto.md §3 (the keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cbit.crypto import amd_cert, ec, rsa
from cbit.owner.errors import Missing, Untrusted
from cbit.owner.verify.crl import Crl, crl_problems
from cbit.owner.verify.kds import LEAVES, Endorsement, read_endorsement
from cbit.owner.verify.pem import CERTIFICATE, CRL, blocks_of, is_x509
from cbit.owner.verify.roots import AMD_ROOTS, read_root
from cbit.owner.verify.verdict import RootReport, describe_root
from cbit.owner.verify.x509 import Certificate, common_name
from cbit.spec.errors import BadSignature, InvalidCertificate, WireError
from cbit.spec.snp_report import SigningKey

#: Said wherever no moment was given to judge dates by.
DATES_CAVEAT: Final = "dates were not judged: no --at was given"

_AUTHORITY: Final = {SigningKey.VCEK: "ASK", SigningKey.VLEK: "ASVK"}


@dataclass(frozen=True, slots=True)
class Link:
    """One signature of the chain and what became of it; ``reason`` is empty when it is good."""

    certificate: str
    signer: str
    reason: str

    @property
    def good(self) -> bool:
        """Whether it verifies."""
        return not self.reason

    def __str__(self) -> str:
        return f"{self.certificate} signed by {self.signer}: {self.reason or 'good'}"


@dataclass(frozen=True, slots=True)
class SnpChain:
    """The three certificates above a report; nothing is verified yet."""

    leaf: Certificate
    authority: Certificate
    root: Certificate

    @property
    def signing_key(self) -> SigningKey:
        """Which kind of key the leaf says it is about."""
        return LEAVES[self.leaf.common_name]

    def roles(self) -> tuple[tuple[str, Certificate], ...]:
        """The certificates with their roles, the root first."""
        kind = self.signing_key
        return (("ARK", self.root), (_AUTHORITY[kind], self.authority), (kind.name, self.leaf))


def certificates_of(data: bytes, *, source: str) -> list[Certificate]:
    """Read all certificates of one file.

    Raises:
        WireError: not a file of certificates.
    """
    blocks = blocks_of(data, label=CERTIFICATE, source=source)
    return [Certificate.parse(block.raw, source=block.source) for block in blocks]


def crls_of(data: bytes, *, source: str) -> list[Crl]:
    """Read all revocation lists of one file.

    Raises:
        WireError: not a file of revocation lists.
    """
    return [Crl.parse(block.raw, source=block.source) for block in blocks_of(data, label=CRL, source=source)]


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A root that the owner names: its key, and its certificate if it came as X.509."""

    key: rsa.PublicKey
    certificate: Certificate | None


def trusted_root(data: bytes, *, source: str) -> TrustedRoot:
    """Read the file of a root that the owner trusts: X.509, or AMD's own format.

    Raises:
        WireError: it is not exactly one root.
        InvalidCertificate: its key is none that signs here.
    """
    if not is_x509(data):
        return TrustedRoot(amd_cert.public_key(read_root(data, source=source)), None)
    certificates = certificates_of(data, source=source)
    if len(certificates) != 1 or certificates[0].subject != certificates[0].issuer:
        raise WireError(f"{source}: a trusted root is one certificate that signs itself")
    return TrustedRoot(certificates[0].rsa_key(), certificates[0])


def assemble_snp(certificates: Iterable[Certificate], *, roots: Iterable[TrustedRoot] = ()) -> SnpChain:
    """Find the leaf, and above it the certificates that its names ask for; what is left over does not matter.

    Raises:
        Missing: the leaf, its authority or the root is not there; says what to do.
        Untrusted: two certificates contend for a place.
    """
    given = list({cert.raw: cert for cert in certificates}.values())
    leaf = _only([cert for cert in given if cert.common_name in LEAVES], "VCEK or VLEK", _LEAF_FROM)
    kind = LEAVES[leaf.common_name]
    above = [cert for cert in given if cert.subject == leaf.issuer]
    where = f"AMD publishes it: kdsintf.amd.com/{kind.name.lower()}/v1/PRODUCT/cert_chain, give it with --ca"
    authority = _only(above, f"{_AUTHORITY[kind]} named {_cn(leaf.issuer)}", where)
    named = [root.certificate for root in roots if root.certificate is not None]
    top = [cert for cert in (*given, *named) if cert.subject == authority.issuer]
    return SnpChain(
        leaf,
        authority,
        _only(list({cert.raw: cert for cert in top}.values()), f"ARK named {_cn(authority.issuer)}", where),
    )


_LEAF_FROM: Final = (
    "the host hands it out with an extended report, or AMD's key server makes it for a chip id and TCB"
)


def _only(found: Sequence[Certificate], what: str, where_from: str) -> Certificate:
    if not found:
        raise Missing(f"the chain is not complete: no {what}; {where_from}")
    if len(found) > 1:
        sources = ", ".join(cert.source for cert in found)
        raise Untrusted([f"{len(found)} certificates that differ contend for the place of {what}: {sources}"])
    return found[0]


@dataclass(frozen=True, slots=True)
class SnpInspection:
    """Everything that was found out about a chain, good or bad.

    Attributes:
        chain: what was inspected.
        root: who stands at its top; None when the root's key cannot be read.
        endorsement: what the leaf says; None when it cannot be read.
        links: the three signatures with their results.
        problems: every reason not to trust the chain; empty for a good one.
        at: the moment that dates were judged by; None if they were not.
        crls: how many revocation lists were looked at.
    """

    chain: SnpChain
    root: RootReport | None
    endorsement: Endorsement | None
    links: tuple[Link, ...]
    problems: tuple[str, ...]
    at: datetime | None
    crls: int

    @property
    def caveats(self) -> tuple[str, ...]:
        """What this inspection does not say."""
        found = () if self.at else (DATES_CAVEAT,)
        return found if self.crls else (*found, "revocation was not judged: no --crl was given")


class Endorser:
    """A VCEK or VLEK whose whole chain was verified; only ``verify_snp_chain`` makes one.

    Attributes:
        inspection: the evidence.
        endorsement: what its certificate says.
        key: the public key.
    """

    __slots__ = ("endorsement", "inspection", "key")

    def __init__(self, inspection: SnpInspection, *, made_by: object) -> None:
        endorsement = inspection.endorsement
        if made_by is not _VERIFIED or inspection.problems or endorsement is None:
            raise TypeError("an Endorser comes from verify_snp_chain() only")
        self.inspection: Final = inspection
        self.endorsement: Final = endorsement
        self.key: Final[ec.PublicKey] = inspection.chain.leaf.ec_key()

    @property
    def root(self) -> str:
        """The root in words, marked if it is not AMD's."""
        return describe_root(self.inspection.root)

    @property
    def simulated(self) -> bool:
        """Whether the root is an emulator's."""
        return self.inspection.root is None or self.inspection.root.simulated


_VERIFIED: Final = object()


def verify_snp_chain(
    chain: SnpChain,
    *,
    trust: Sequence[TrustedRoot] = (),
    crls: Sequence[Crl] = (),
    at: datetime | None = None,
) -> Endorser:
    """Verify a whole chain.

    Args:
        chain: the certificates.
        trust: roots that the owner trusts besides AMD's.
        crls: revocation lists to judge by.
        at: the moment to judge dates by; None leaves them alone.

    Raises:
        Untrusted: with every reason.
    """
    inspection = inspect_snp(chain, trust=trust, crls=crls, at=at)
    if inspection.problems:
        raise Untrusted(inspection.problems)
    return Endorser(inspection, made_by=_VERIFIED)


def inspect_snp(
    chain: SnpChain,
    *,
    trust: Sequence[TrustedRoot] = (),
    crls: Sequence[Crl] = (),
    at: datetime | None = None,
) -> SnpInspection:
    """Check everything and collect it, for showing; trusts nothing by itself."""
    problems: list[str] = []
    (_, root), (name, authority), (leaf_name, leaf) = chain.roles()
    for role, cert in chain.roles():
        where = f"{role} ({cert.source})"
        problems += (f"{where}: {why}" for why in cert.problems(ca=cert is not leaf))
        if at is not None:
            problems += (f"{where}: {why}" for why in cert.date_problems(at))
    links = (
        _link("ARK", root, "ARK", root),
        _link(name, authority, "ARK", root),
        _link(leaf_name, leaf, name, authority),
    )
    problems += (str(link) for link in links if not link.good)
    report = _report_root(root, trust)
    if report is not None and not report.trusted:
        problems.append(
            "ARK: not one of AMD's pinned roots; an emulator's root that you trust is named with --trust ROOT"
        )
    try:
        endorsement = read_endorsement(leaf)
    except Untrusted as error:
        problems += error.reasons
        endorsement = None
    problems += _name_problems(chain, endorsement, report)
    for crl in crls:
        problems += crl_problems(crl, (root, authority, leaf), at)
    return SnpInspection(chain, report, endorsement, links, tuple(problems), at, len(crls))


def _link(role: str, cert: Certificate, signer_role: str, signer: Certificate) -> Link:
    try:
        if cert.issuer != signer.subject:
            raise InvalidCertificate(f"names {_cn(cert.issuer)} as its issuer, not {signer.common_name}")
        cert.outer.check(signer)
    except (InvalidCertificate, BadSignature) as error:
        return Link(role, signer_role, str(error))
    return Link(role, signer_role, "")


def _cn(name: bytes) -> str:
    return common_name(name, what="issuer") or "somebody without CN"


def _report_root(root: Certificate, trust: Sequence[TrustedRoot]) -> RootReport | None:
    try:
        key, pin = root.rsa_key(), root.pin()
    except InvalidCertificate:
        return None  # ``Certificate.problems`` says why
    known = next((amd for amd in AMD_ROOTS if amd.pin == pin), None)
    named = any(key.public_numbers() == other.key.public_numbers() for other in trust)
    return RootReport(
        product=known.product if known else None,
        trusted=known is not None or named,
        key_id="",
        pin=pin,
        key_bits=key.key_size,
    )


def _name_problems(
    chain: SnpChain, endorsement: Endorsement | None, root: RootReport | None
) -> Iterator[str]:
    """Hold the common names against the product that the leaf names (§9)."""
    if endorsement is None:
        return
    product = endorsement.product
    middle = "SEV-VLEK" if endorsement.signing_key is SigningKey.VLEK else "SEV"
    for cert, expected in ((chain.authority, f"{middle}-{product}"), (chain.root, f"ARK-{product}")):
        if cert.common_name != expected:
            yield f"{cert.source}: named {cert.common_name!r}, over a {product} leaf stands {expected!r}"
    if root is not None and root.product is not None and root.product != product:
        yield f"ARK: AMD's {root.product} key over a leaf for {product}"
