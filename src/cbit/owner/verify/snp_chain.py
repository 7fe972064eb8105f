"""The chain above an SNP report, and its verdict.

    ARK ─ signs itself ─> ASK ──> VCEK     the chip's own key, derived for one version of its firmware
                     └──> ASVK ─> VLEK     a provider's key, loaded into many chips

Trust comes from a pinned AMD root or from a root that the owner names, and from nothing else.  The roots are
the same RSA keys as in AMD's own format, so that the same pins serve.

Paper: launch-inputs.md §9, sev-crypto.md §3 (the keys).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """One signature of the chain and what became of it; ``reason`` is empty when it is good.

    ``checked`` is False where the signer's certificate is not there: then nothing is known, good or bad.
    """

    certificate: str
    signer: str
    reason: str
    checked: bool = True

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


@dataclass(frozen=True, slots=True)
class SnpParts:
    """What was found of the three certificates; nothing is verified yet.

    Attributes:
        leaf: VCEK or VLEK.
        authority: ASK or ASVK.
        root: ARK.
        missing: what is not there, and where it comes from.
    """

    leaf: Certificate | None
    authority: Certificate | None
    root: Certificate | None
    missing: tuple[str, ...]

    @property
    def authority_only(self) -> bool:
        """Whether this is AMD's pair alone, and no chip."""
        return self.leaf is None and self.authority is not None and self.root is not None

    def roles(self) -> tuple[tuple[str, Certificate | None], ...]:
        """The places with their certificates, the root first."""
        if self.leaf is not None:
            kind = LEAVES[self.leaf.common_name]
            return (("ARK", self.root), (_AUTHORITY[kind], self.authority), (kind.name, self.leaf))
        middle = self.authority is not None and self.authority.common_name.startswith(_ASVK)
        leaf = ("VLEK" if middle else "VCEK") if self.authority is not None else "VCEK or VLEK"
        return (("ARK", self.root), ("ASVK" if middle else "ASK", self.authority), (leaf, None))


_ASVK: Final = "SEV-VLEK-"


def assemble_snp(
    certificates: Iterable[Certificate],
    *,
    roots: Iterable[TrustedRoot] = (),
    signed_by: SigningKey | None = None,
) -> SnpChain:
    """Find the leaf, and above it the certificates that its names ask for; what is left over does not matter.

    Args:
        certificates: where to look.
        roots: roots that the owner trusts, which may stand in for the chain's.
        signed_by: the kind of key that the report names, for where there are leaves of both kinds.

    Raises:
        Missing: the leaf, its authority or the root is not there; says what to do.
        Untrusted: two certificates contend for a place.
    """
    parts = find_snp_parts(certificates, roots=roots, signed_by=signed_by)
    if parts.leaf is None or parts.authority is None or parts.root is None:
        raise Missing(f"the chain is not complete: {parts.missing[0]}")
    return SnpChain(parts.leaf, parts.authority, parts.root)


def find_snp_parts(
    certificates: Iterable[Certificate],
    *,
    roots: Iterable[TrustedRoot] = (),
    signed_by: SigningKey | None = None,
) -> SnpParts:
    """Find what is there of a chain, from the leaf up; without a leaf, AMD's pair.

    The arguments are those of ``assemble_snp``.

    Raises:
        Untrusted: two certificates contend for a place.
    """
    given = list({cert.raw: cert for cert in certificates}.values())
    missing: list[str] = []

    def only(found: Iterable[Certificate], what: str, where_from: str) -> Certificate | None:
        different = list({cert.raw: cert for cert in found}.values())
        if not different:
            missing.append(f"no {what}; {where_from}")
        return _only(different, what)

    leaves = [cert for cert in given if cert.common_name in LEAVES]
    # A host may hand out a VCEK and a VLEK; a leaf of the other kind alone is left for the report to refuse.
    signers = [cert for cert in leaves if LEAVES[cert.common_name] is signed_by]
    leaf = only(signers or leaves, "VCEK or VLEK", _LEAF_FROM)
    kind = SigningKey.VCEK if leaf is None else LEAVES[leaf.common_name]
    where = f"AMD publishes it: kdsintf.amd.com/{kind.name.lower()}/v1/PRODUCT/cert_chain, give it with --ca"
    if leaf is None:
        above = [cert for cert in given if cert.subject != cert.issuer]
        authority = only(above, "ASK or ASVK", where)
    else:
        above = [cert for cert in given if cert.subject == leaf.issuer]
        authority = only(above, f"{_AUTHORITY[kind]} named {_cn(leaf.issuer)}", where)
    # A trusted root fills the place only where the chain brings none: trust goes by the key alone.
    trusted = [root.certificate for root in roots if root.certificate is not None]

    def top(fits: Callable[[Certificate], bool], what: str) -> Certificate | None:
        return only([*filter(fits, given)] or [*filter(fits, trusted)], what, where)

    if authority is not None:
        issuer = authority.issuer
        root = top(lambda cert: cert.subject == issuer, f"ARK named {_cn(issuer)}")
    elif leaf is not None:
        name = f"ARK-{_cn(leaf.issuer).removeprefix(_ASVK).removeprefix('SEV-')}"
        root = top(lambda cert: cert.common_name == name, f"ARK named {name}")
    else:
        root = top(lambda cert: cert.subject == cert.issuer, "ARK")
    return SnpParts(leaf, authority, root, tuple(missing))


_LEAF_FROM: Final = (
    "the host hands it out with an extended report, or AMD's key server makes it for a chip id and TCB"
)


def _only(found: Sequence[Certificate], what: str) -> Certificate | None:
    if len(found) > 1:
        sources = ", ".join(cert.source for cert in found)
        raise Untrusted([f"{len(found)} certificates that differ contend for the place of {what}: {sources}"])
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class SnpFindings:
    """What was found out about certificates, good or bad.

    Attributes:
        root: who stands at its top; None when the root's key cannot be read.
        endorsement: what the leaf says; None when it cannot be read.
        links: the three signatures with their results.
        problems: every reason not to trust the chain; empty for a good one.
        at: the moment that dates were judged by; None if they were not.
        crls: how many revocation lists were judged by.
        unjudged: the other lists, in words: who issued them is missing from the chain.
    """

    root: RootReport | None
    endorsement: Endorsement | None
    links: tuple[Link, ...]
    problems: tuple[str, ...]
    at: datetime | None
    crls: int
    unjudged: tuple[str, ...]

    @property
    def caveats(self) -> tuple[str, ...]:
        """What this inspection does not say."""
        found = () if self.at else (DATES_CAVEAT,)
        given = self.crls or self.unjudged
        return (
            (*found, *self.unjudged) if given else (*found, "revocation was not judged: no --crl was given")
        )


@dataclass(frozen=True, slots=True)
class SnpInspection(SnpFindings):
    """Everything that was found out about a whole chain.

    Attributes:
        chain: what was inspected.
    """

    chain: SnpChain


@dataclass(frozen=True, slots=True)
class SnpPartInspection(SnpFindings):
    """What was found out about certificates that are not a whole chain; nothing is trusted for it.

    Attributes:
        parts: what was inspected.
        notes: what else there is to say about where it came from.
    """

    parts: SnpParts
    notes: tuple[str, ...] = ()


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
    found = _judge(SnpParts(chain.leaf, chain.authority, chain.root, ()), trust, crls, at)
    return SnpInspection(*found, chain=chain)


def inspect_snp_parts(
    parts: SnpParts,
    *,
    trust: Sequence[TrustedRoot] = (),
    crls: Sequence[Crl] = (),
    at: datetime | None = None,
) -> SnpPartInspection:
    """Check what is there of a chain, for showing; only ``verify_snp_chain`` makes anything trusted."""
    return SnpPartInspection(*_judge(parts, trust, crls, at), parts=parts)


_Words = tuple[str, ...]
_Found = tuple[RootReport | None, Endorsement | None, tuple[Link, ...], _Words, datetime | None, int, _Words]


def _judge(parts: SnpParts, trust: Sequence[TrustedRoot], crls: Sequence[Crl], at: datetime | None) -> _Found:
    """Give the fields of ``SnpFindings``, in order."""
    problems: list[str] = []
    (_, root), (name, authority), (leaf_name, leaf) = parts.roles()
    there = [(role, cert) for role, cert in parts.roles() if cert is not None]
    for role, cert in there:
        where = f"{role} ({cert.source})"
        problems += (f"{where}: {why}" for why in cert.problems(ca=cert is not leaf))
        if at is not None:
            problems += (f"{where}: {why}" for why in cert.date_problems(at))
    signed = (("ARK", root, "ARK", root), (name, authority, "ARK", root), (leaf_name, leaf, name, authority))
    links = tuple(_link(role, cert, by, signer) for role, cert, by, signer in signed if cert is not None)
    problems += (str(link) for link in links if link.checked and not link.good)
    report = None if root is None else _report_root(root, trust)
    if report is not None and not report.trusted:
        problems.append(
            "ARK: not one of AMD's pinned roots; an emulator's root that you trust is named with --trust ROOT"
        )
    endorsement = None
    try:
        endorsement = None if leaf is None else read_endorsement(leaf)
    except Untrusted as error:
        problems += error.reasons
    problems += _name_problems(parts, endorsement, report)
    whole = root is not None and authority is not None
    issuers = {cert.subject for _, cert in there}
    unjudged: list[str] = []
    for crl in crls:
        if whole or crl.issuer in issuers:
            problems += crl_problems(crl, (cert for _, cert in there), at)
        else:
            issuer = _cn(crl.issuer)
            unjudged.append(f"revocation list {crl.source}: not judged, its issuer {issuer} is missing")
    judged = len(crls) - len(unjudged)
    return report, endorsement, links, tuple(problems), at, judged, tuple(unjudged)


def _link(role: str, cert: Certificate, signer_role: str, signer: Certificate | None) -> Link:
    if signer is None:
        return Link(role, signer_role, f"not checked, {signer_role} is missing", checked=False)
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
    parts: SnpParts, endorsement: Endorsement | None, root: RootReport | None
) -> Iterator[str]:
    """Hold the common names against the product that the leaf names (§9); without a leaf, AMD's root."""
    if endorsement is None:
        if parts.leaf is None:
            yield from _pair_problems(parts, root)
        return
    product = endorsement.product
    middle = "SEV-VLEK" if endorsement.signing_key is SigningKey.VLEK else "SEV"
    for cert, expected in ((parts.authority, f"{middle}-{product}"), (parts.root, f"ARK-{product}")):
        if cert is not None and cert.common_name != expected:
            yield f"{cert.source}: named {cert.common_name!r}, over a {product} leaf stands {expected!r}"
    if root is not None and root.product is not None and root.product != product:
        yield f"ARK: AMD's {root.product} key over a leaf for {product}"


def _pair_problems(parts: SnpParts, root: RootReport | None) -> Iterator[str]:
    if parts.root is None:
        return
    product = (root and root.product) or parts.root.common_name.removeprefix("ARK-")
    names = ((parts.authority, {f"SEV-{product}", f"{_ASVK}{product}"}), (parts.root, {f"ARK-{product}"}))
    for cert, expected in names:
        if cert is not None and cert.common_name not in expected:
            wanted = " or ".join(sorted(expected))
            yield f"{cert.source}: named {cert.common_name!r}, for {product} it is {wanted}"
