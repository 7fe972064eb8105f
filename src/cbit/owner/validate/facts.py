"""What evidence says, as named facts that wishes can be held against.

A fact that this kind of evidence does not tell is absent: a wish about it is then not fulfilled.

Paper: launch-inputs.md §8 (SNP report), sev-crypto.md §1 (SEV policy), §9 (measurement), §12 (SEV report).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from cbit.crypto.key import Key
from cbit.crypto.measurement import measurement
from cbit.owner.receipt import CheckedReceipt, SessionRecord
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.policy import Policy, required_api
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.snp_report import (
    HOST_VMPL,
    PlatformInfo,
    Product,
    SnpPolicy,
    SnpPolicyFlag,
    SnpReport,
    TcbVersion,
)


class Kind(StrEnum):
    """What sort of evidence it is."""

    SNP_REPORT = "snp-report"
    SEV_REPORT = "sev-report"
    LAUNCH = "launch"  #: a launch receipt, or the owner's checked one


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts of one piece of evidence, by the name of the wish that asks for each."""

    kind: Kind
    facts: Mapping[str, Any]


#: Facts to the bits of an SNP policy; a set bit is True.
_SNP_POLICY: Final = {
    "policy.smt": SnpPolicyFlag.SMT,
    "policy.migration": SnpPolicyFlag.MIGRATE_MA,
    "policy.debug": SnpPolicyFlag.DEBUG,
    "policy.single_socket": SnpPolicyFlag.SINGLE_SOCKET,
    "policy.cxl": SnpPolicyFlag.CXL_ALLOW,
    "policy.aes_256_xts": SnpPolicyFlag.MEM_AES_256_XTS,
    "policy.rapl_disabled": SnpPolicyFlag.RAPL_DIS,
    "policy.ciphertext_hiding": SnpPolicyFlag.CIPHERTEXT_HIDING_DRAM,
    "policy.page_swap_disabled": SnpPolicyFlag.PAGE_SWAP_DISABLE,
}
_PLATFORM: Final = {
    "platform.smt": PlatformInfo.SMT,
    "platform.tsme": PlatformInfo.TSME,
    "platform.ecc": PlatformInfo.ECC,
    "platform.rapl_disabled": PlatformInfo.RAPL_DIS,
    "platform.ciphertext_hiding": PlatformInfo.CIPHERTEXT_HIDING,
    "platform.alias_check": PlatformInfo.ALIAS_CHECK_COMPLETE,
    "platform.tio": PlatformInfo.TIO,
}
#: Facts to the bits of a SEV policy, and whether a set bit is True: SEV's bits forbid where SNP's allow.
_SEV_POLICY: Final = {
    "policy.debug": (Policy.NODBG, False),
    "policy.key_sharing": (Policy.NOKS, False),
    "policy.es": (Policy.ES, True),
    "policy.migration": (Policy.NOSEND, False),
    "policy.domain": (Policy.DOMAIN, True),
    "policy.sev": (Policy.SEV, True),
}


def of_snp_report(
    report: SnpReport,
    *,
    product: Product | None = None,
    simulated: bool | None = None,
    verified: bool | None = None,
) -> Evidence:
    """Collect the facts of an SNP report.

    MODEL CHOICE: a version 2 report does not name its processor.  Without ``product`` (from the certificate
    of its key) its TCB is read as Milan's and Genoa's, which are laid out alike and older than Turin, unless
    its chip id is Turin's.

    Args:
        report: what it says; whether to believe it is the verification's question.
        product: the product of the certificate, if one was looked at.
        simulated: whether the root above it is an emulator's, if that is known.
        verified: whether its signature and chain were verified, if somebody looked.

    Raises:
        WireError: a TCB version is malformed.
        NotModelled: the processor that it names is not known.
    """
    product = product or report.likely_product
    layout = product or Product.MILAN
    policy = SnpPolicy.of(report.policy)
    facts: dict[str, Any] = {
        "measurement": report.measurement,
        "report_data": report.report_data,
        "host_data": report.host_data,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "report_id": report.report_id,
        "report_id_ma": report.report_id_ma,
        "chip_id": report.chip_id,
        "id_key_digest": report.id_key_digest,
        "author_key": report.author_key_en,
        "author_key_digest": _author_key_digest(report),
        "vmpl": "host" if report.vmpl == HOST_VMPL else report.vmpl,
        "version": report.version,
        "signing_key": report.signing_key.name.lower() if report.signing_key is not None else None,
        "product": None if product is None else product.value,
        "simulated": simulated,
        "verified": verified,
        "policy.word": report.policy,
        "policy.abi": policy.min_abi,
        "minimum.guest_svn": report.guest_svn,
        "minimum.version": report.version,
        "minimum.api": min(report.current_api, report.committed_api),
        "minimum.build": _oldest_build(report),
    }
    facts |= {name: flag in policy.flags for name, flag in _SNP_POLICY.items()}
    facts |= {name: flag in report.platform_info for name, flag in _PLATFORM.items()}
    for name in ("reported", "current", "committed", "launch"):
        tcb = TcbVersion.parse(getattr(report, f"{name}_tcb"), layout)
        facts |= {f"minimum.{name}_tcb.{part}": number for part, number in tcb.components().items()}
    if report.version >= 5:
        facts |= {
            "platform.launch_mitigations": report.launch_mit_vector,
            "platform.current_mitigations": report.current_mit_vector,
        }
    return _evidence(Kind.SNP_REPORT, facts)


def _author_key_digest(report: SnpReport) -> bytes | None:
    """The digest where there is an author key, and zeros where there is none; anything else is no fact."""
    consistent = report.author_key_en or not any(report.author_key_digest)
    return report.author_key_digest if consistent else None


def _oldest_build(report: SnpReport) -> int:
    """The build that goes with ``minimum.api``: builds count only within one version."""
    current, committed = (
        (report.current_api, report.current_build),
        (report.committed_api, report.committed_build),
    )
    return min(current, committed)[1]


def of_sev_report(
    report: AttestationReport, *, simulated: bool | None = None, verified: bool | None = None
) -> Evidence:
    """Collect the facts of the answer of ATTESTATION; the arguments are those of ``of_snp_report``."""
    facts = {
        "measurement": report.launch_digest,
        "nonce": report.mnonce,
        "simulated": simulated,
        "verified": verified,
    }
    return _evidence(Kind.SEV_REPORT, facts | _sev_policy(report.policy))


def of_launch_receipt(
    receipt: LaunchReceipt,
    *,
    tik: Key | None = None,
    digests: Iterable[bytes] = (),
    record: SessionRecord | None = None,
) -> Evidence:
    """Collect the facts of a platform's launch receipt.

    Its MEASURE is a keyed hash: which digest it covers can be told only with the session's TIK, and only for
    digests that are tried.

    Args:
        receipt: what the platform says.
        tik: the session's integrity key; without it no measurement is told.
        digests: the digests to try, such as those that are wished for.
        record: for whom the session was made; it tells of this launch only if the measurement is its own.
    """
    facts: dict[str, Any] = {"minimum.api": receipt.api, "minimum.build": receipt.build}
    if tik is not None:
        facts["measurement"] = next((d for d in digests if _is_measured(receipt, d, tik)), b"")
    if record is not None and facts.get("measurement"):
        facts |= {"verified": record.verified, "simulated": record.simulated}
    return _evidence(Kind.LAUNCH, facts | _sev_policy(receipt.policy))


def _is_measured(receipt: LaunchReceipt, digest: bytes, tik: Key) -> bool:
    if len(digest) != 32:
        return False
    expected = measurement(
        tik,
        api=receipt.api,
        build=receipt.build,
        policy=receipt.policy,
        digest=digest,
        mnonce=receipt.mnonce,
    )
    return hmac.compare_digest(expected, receipt.measure)


def of_checked_receipt(receipt: CheckedReceipt) -> Evidence:
    """Collect the facts of a launch that the owner checked (``receipt.CheckedReceipt``)."""
    facts: dict[str, Any] = {
        "measurement": receipt.expectation.digest,
        "minimum.api": receipt.api,
        "minimum.build": receipt.build,
        "verified": receipt.verified,
        "simulated": receipt.simulated if receipt.verified is not None else None,
    }
    return _evidence(Kind.LAUNCH, facts | _sev_policy(receipt.policy))


def _sev_policy(word: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: bool(word & bit) is when_set for name, (bit, when_set) in _SEV_POLICY.items()
    }
    return facts | {"policy.word": word, "policy.abi": required_api(word)}


def _evidence(kind: Kind, facts: Mapping[str, Any]) -> Evidence:
    told = {name: value for name, value in facts.items() if value is not None}
    return Evidence(kind, MappingProxyType({"evidence": kind.value, **told}))
