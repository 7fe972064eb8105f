"""Is the report signed, by whom, and in the one form that a report has?

An SNP report is signed by the VCEK or VLEK of a verified chain (``snp_chain``), a SEV report by the PEK of a
verified platform (``verdict``).  The unsigned bytes are padding and must be zero, so that no byte of an
accepted report can be changed.

Paper: launch-inputs.md §8 (report), §9 (verification); sev-crypto.md §12 (SEV).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec, sev_cert
from cbit.owner.errors import Untrusted
from cbit.owner.verify.kds import Endorsement
from cbit.owner.verify.snp_chain import Endorser
from cbit.owner.verify.verdict import VerifiedPlatform
from cbit.spec import attestation_report, snp_report
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.certificate import Algo, EcdsaSignature, SevCert, Usage
from cbit.spec.errors import BadSignature, InvalidCertificate, NotModelled, WireError
from cbit.spec.policy import GuestPolicy
from cbit.spec.snp_report import (
    ECDSA_P384_SHA384,
    HOST_VMPL,
    LARGEST_VMPL,
    PLATFORM_BITS,
    VERSIONS,
    Product,
    SigningKey,
    SnpPolicy,
    SnpReport,
    TcbVersion,
)

_KEY_INFO_BITS: Final = 0x1F
_SNP_GAPS: Final = tuple(SnpReport.gaps())
_SEV_GAPS: Final = tuple(AttestationReport.gaps())
_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked about a report; no reasons: it holds."""

    what: str
    reasons: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether it holds."""
        return not self.reasons


def read_report(raw: bytes) -> SnpReport:
    """Read a report leniently: what its bytes say, right or wrong.

    Raises:
        WireError: not 0x4A0 bytes.
        NotModelled: a version that nobody has described.
    """
    report = SnpReport.parse(raw, canonical=False)
    if report.version not in VERSIONS:
        raise NotModelled(
            f"SNP report of version {report.version}: only {', '.join(map(str, VERSIONS))} are known"
        )
    return report


def inspect_report(raw: bytes, *, endorsement: Endorsement, key: ec.PublicKey) -> tuple[Check, ...]:
    """Check a report against a leaf, whether or not that leaf is to be trusted.

    Args:
        raw: the report, 0x4A0 bytes.
        endorsement: what the leaf's certificate says.
        key: the leaf's key.

    Raises:
        WireError: not 0x4A0 bytes.
        NotModelled: a version that nobody has described.
    """
    return _checks(raw, read_report(raw), endorsement, key)


def _checks(raw: bytes, report: SnpReport, endorsement: Endorsement, key: ec.PublicKey) -> tuple[Check, ...]:
    name = endorsement.signing_key.name
    return (
        Check("form", tuple(form_problems(raw, report, endorsement.product))),
        Check(f"signed by the {name}", tuple(_signature_problems(raw, report, endorsement, key))),
        Check(f"firmware of the {name}", tuple(_tcb_problems(report, endorsement))),
        Check("chip", tuple(_chip_problems(report, endorsement))),
        Check("product", tuple(_product_problems(report, endorsement))),
    )


class VerifiedReport:
    """An SNP report that a trusted chip signed; only ``verify_report`` makes one.

    Attributes:
        raw: its bytes.
        report: what it says.
        endorser: whose key signed it.
    """

    __slots__ = ("endorser", "raw", "report")

    def __init__(self, raw: bytes, report: SnpReport, endorser: Endorser, *, made_by: object) -> None:
        if made_by is not _VERIFIED:
            raise TypeError("a VerifiedReport comes from verify_report() only")
        self.raw: Final = raw
        self.report: Final = report
        self.endorser: Final = endorser


def verify_report(raw: bytes, endorser: Endorser) -> VerifiedReport:
    """Verify an SNP report under a verified chain; one chain serves any number of reports.

    Raises:
        Untrusted: with every reason.
        WireError: not 0x4A0 bytes.
        NotModelled: a version that nobody has described.
    """
    report = read_report(raw)
    checks = _checks(raw, report, endorser.endorsement, endorser.key)
    reasons = [reason for check in checks for reason in check.reasons]
    if reasons:
        raise Untrusted(reasons)
    return VerifiedReport(raw, report, endorser, made_by=_VERIFIED)


def form_problems(raw: bytes, report: SnpReport, product: Product) -> Iterator[str]:
    """Name every byte that is not as the format of this version says."""
    yield from _gap_problems(_SNP_GAPS, raw)
    if report.signature_algo != ECDSA_P384_SHA384:
        yield f"report: signature algorithm {report.signature_algo:#x}, must be {ECDSA_P384_SHA384}"
    if report.key_info & ~_KEY_INFO_BITS or report.signing_key is None:
        yield f"report: the word at 0x48 ({report.key_info:#x}) sets reserved bits or names a reserved key"
    if report.platform_info & ~PLATFORM_BITS:
        yield f"report: platform info {int(report.platform_info):#x} sets reserved bits"
    yield from SnpPolicy.of(report.policy).problems()
    if report.vmpl > LARGEST_VMPL and report.vmpl != HOST_VMPL:
        yield f"report: VMPL {report.vmpl}, there are 0 to {LARGEST_VMPL}"
    if any(report.author_key_digest) and not report.author_key_en:
        yield "report: has an AUTHOR_KEY_DIGEST, and says that there is no author key (AUTHOR_KEY_EN)"
    if report.version < 3 and any(raw[0x188:0x18B]):
        yield f"report: version {report.version} names no processor, and bytes 0x188..0x18a are not zero"
    if report.version < 5 and (report.launch_mit_vector or report.current_mit_vector):
        yield f"report: version {report.version} has no mitigation vectors, and their bytes are not zero"
    tcbs: dict[str, dict[str, int]] = {}
    for name in _TCBS:
        try:
            tcbs[name] = TcbVersion.parse(getattr(report, name), product).components()
        except WireError as error:
            yield f"{name}: {error}"
    yield from _order_problems(tcbs)


def _order_problems(tcbs: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Firmware runs no part older than what is committed, and reports none newer than what runs.

    LAUNCH_TCB has no order: the guest may have been launched, or have come from, where newer firmware ran.
    """
    current = tcbs.get("current_tcb", {})
    for name in ("committed_tcb", "reported_tcb"):
        for part, number in tcbs.get(name, {}).items():
            if number > current.get(part, number):
                yield f"{name}: {part} is {number}, and only {current[part]} runs (current_tcb)"


def _gap_problems(gaps: Sequence[tuple[int, int]], raw: bytes) -> Iterator[str]:
    for start, end in gaps:
        if any(raw[start:end]):
            yield f"report: reserved bytes {start:#x}..{end - 1:#x} are not zero"


def _signature_problems(
    raw: bytes, report: SnpReport, endorsement: Endorsement, key: ec.PublicKey
) -> Iterator[str]:
    if report.signing_key is SigningKey.NONE:
        yield "report: not signed, the platform was configured to sign nothing"
        return
    if report.signing_key is not endorsement.signing_key:
        named = "a reserved number" if report.signing_key is None else report.signing_key.name
        yield f"report: names {named} as its key, the certificate is for a {endorsement.signing_key.name}"
    if report.mask_chip_key and not (report.r or report.s):
        yield "report: not signed, the platform withholds its key (MASK_CHIP_KEY)"
        return
    try:
        _verify(key, report.signature, raw[: snp_report.SIGNED_SIZE], hashes.SHA384())
    except BadSignature as error:
        yield f"report: {error}"


def _verify(
    key: ec.PublicKey, signature: EcdsaSignature, message: bytes, digest: hashes.HashAlgorithm
) -> None:
    if not (0 < signature.r < ec.ORDER and 0 < signature.s < ec.ORDER):
        raise BadSignature("R or S is not between 0 and the order of P-384")
    ec.verify(key, signature, message, digest)


def _tcb_problems(report: SnpReport, endorsement: Endorsement) -> Iterator[str]:
    try:
        reported = TcbVersion.parse(report.reported_tcb, endorsement.product).components()
    except WireError:
        return  # ``form_problems`` says so
    for name, number in endorsement.tcb.components().items():
        if number != reported[name]:
            yield f"REPORTED_TCB: {name} is {reported[name]}, the certificate was made for {number}"


def _chip_problems(report: SnpReport, endorsement: Endorsement) -> Iterator[str]:
    chip_id = endorsement.chip_id
    if chip_id is None:
        return  # a VLEK is nobody's in particular; the chip that has it may name itself (decision 12)
    if not any(report.chip_id):
        return  # MASK_CHIP_ID, a setting that no bit of the report tells; the VCEK is still that of one chip
    if report.chip_id != chip_id:
        yield f"CHIP_ID: {report.chip_id.hex()}, the certificate is for chip {chip_id.hex()}"


def _product_problems(report: SnpReport, endorsement: Endorsement) -> Iterator[str]:
    try:
        product = report.product
    except NotModelled as error:
        yield f"CPUID: {error}"
        return
    if product is not None and product is not endorsement.product:
        yield f"CPUID: the report is of {product}, the certificate of {endorsement.product}"


class VerifiedSevReport:
    """A SEV report that a trusted platform signed; only ``verify_sev_report`` makes one.

    Attributes:
        report: what it says.
        platform: whose PEK signed it.
    """

    __slots__ = ("platform", "report")

    def __init__(self, report: AttestationReport, platform: VerifiedPlatform, *, made_by: object) -> None:
        if made_by is not _VERIFIED:
            raise TypeError("a VerifiedSevReport comes from verify_sev_report() only")
        self.report: Final = report
        self.platform: Final = platform


_VERIFIED: Final = object()


def verify_sev_report(raw: bytes, platform: VerifiedPlatform) -> VerifiedSevReport:
    """Verify the answer of ATTESTATION under a verified platform.

    Raises:
        Untrusted: with every reason.
        WireError: not 0xD0 bytes.
    """
    checks = inspect_sev_report(raw, platform.inspection.chain.pek.sev())
    reasons = [reason for check in checks for reason in check.reasons]
    if reasons:
        raise Untrusted(reasons)
    return VerifiedSevReport(AttestationReport.parse(raw), platform, made_by=_VERIFIED)


def inspect_sev_report(raw: bytes, pek: SevCert | None) -> tuple[Check, ...]:
    """Check a SEV report against a PEK, whether or not that PEK is to be trusted; without one, its form.

    Raises:
        WireError: not 0xD0 bytes.
    """
    report = AttestationReport.parse(raw, canonical=False)
    form = Check("form", tuple(_sev_form_problems(raw, report)))
    if pek is None:
        return (form,)
    return form, Check("signed by the PEK", tuple(_sev_signature_problems(raw, report, pek)))


def _sev_form_problems(raw: bytes, report: AttestationReport) -> Iterator[str]:
    yield from _gap_problems(_SEV_GAPS, raw)
    if report.sig_usage != Usage.PEK:
        yield f"report: signed by a key of usage {report.sig_usage:#x}, must be the PEK ({Usage.PEK:#x})"
    if report.sig_algo != Algo.ECDSA_SHA256:
        yield f"report: signature algorithm {report.sig_algo:#x}, must be {Algo.ECDSA_SHA256:#x}"
    try:
        GuestPolicy.parse(report.policy)
    except WireError as error:
        yield f"report: {error}"


def _sev_signature_problems(raw: bytes, report: AttestationReport, pek: SevCert) -> Iterator[str]:
    signature = EcdsaSignature(r=report.r, s=report.s)
    signed = raw[: attestation_report.SIGNED_SIZE]
    try:
        _verify(sev_cert.public_key(pek), signature, signed, hashes.SHA256())
    except (BadSignature, InvalidCertificate) as error:
        yield f"report: {error}"
