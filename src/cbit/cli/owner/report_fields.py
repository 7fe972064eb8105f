"""The fields of attestation reports: as data for programs, in words for a reader.

Paper: launch-inputs.md §8, sev-crypto.md §12.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from cbit.spec.attestation_report import AttestationReport
from cbit.spec.errors import WireError
from cbit.spec.policy import GuestPolicy
from cbit.spec.snp_report import (
    ECDSA_P384_SHA384,
    HOST_VMPL,
    NO_MIGRATION_AGENT,
    Product,
    SnpPolicy,
    SnpReport,
    TcbVersion,
)

_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")

#: Fields that are shown with the words beside them, not as they stand.
_TOLD_BELOW: Final = frozenset(
    {
        *("cpuid_family", "cpuid_model", "cpuid_stepping", "current_build", "current_minor", "current_major"),
        *("committed_build", "committed_minor", "committed_major", "r", "s"),
    }
)
_MITIGATIONS: Final = frozenset({"launch_mit_vector", "current_mit_vector"})


def snp_fields(report: SnpReport, product: Product | None) -> dict[str, Any]:
    """Give every field of an SNP report as data: bytes as hex, words taken apart beside them."""
    fields: dict[str, Any] = {}
    for name in SnpReport.FIELDS:
        value = getattr(report, name)
        fields[name] = value.hex() if isinstance(value, bytes) else value
    policy = SnpPolicy.of(report.policy)
    key = report.signing_key
    return fields | {
        "platform_info": int(report.platform_info),
        "r": f"{report.r:096x}",
        "s": f"{report.s:096x}",
        "policy_flags": _names(policy.flags),
        "policy_abi": str(policy.min_abi),
        "platform_flags": _names(report.platform_info),
        "author_key_en": report.author_key_en,
        "mask_chip_key": report.mask_chip_key,
        "signing_key": key.name if key is not None else None,
        "tcb": {name: _tcb(getattr(report, name), product) for name in _TCBS},
    }


def _names(flags: Iterable[Any]) -> list[str]:
    return [flag.name for flag in flags]


def _tcb(raw: bytes, product: Product | None) -> dict[str, int] | None:
    """Take a TCB version apart; None where no product is known or its bytes are malformed."""
    try:
        return None if product is None else TcbVersion.parse(raw, product).components()
    except WireError:
        return None


def shown_snp(report: SnpReport, product: Product | None) -> Iterator[tuple[str, str]]:
    """Give name and value of every field of an SNP report, for a reader."""
    words = _in_words(report, product)
    untold = _TOLD_BELOW | (_MITIGATIONS if report.version < 5 else frozenset())
    for name in SnpReport.FIELDS:
        if name not in untold:
            value = getattr(report, name)
            yield name.upper(), words.get(name) or (value.hex() if isinstance(value, bytes) else str(value))
    if report.version >= 3:
        cpu = f"family {report.cpuid_family:#x}, model {report.cpuid_model:#x}, stepping "
        yield "CPUID", cpu + str(report.cpuid_stepping)
    yield "CURRENT firmware", f"{report.current_api} build {report.current_build}"
    yield "COMMITTED firmware", f"{report.committed_api} build {report.committed_build}"
    yield "SIGNATURE R", f"{report.r:096x}"
    yield "SIGNATURE S", f"{report.s:096x}"


def _in_words(report: SnpReport, product: Product | None) -> dict[str, str]:
    key = report.signing_key
    facts = (
        f"signed by {'a reserved key' if key is None else key.name}",
        *(("the chip key is masked",) if report.mask_chip_key else ()),
        *(("an author key certified the ID key",) if report.author_key_en else ()),
    )
    known = report.signature_algo == ECDSA_P384_SHA384
    algorithm = "ECDSA P-384 with SHA-384" if known else "unknown"
    platform = "|".join(_names(report.platform_info)) or "none"
    words = {
        "policy": str(SnpPolicy.of(report.policy)),
        "vmpl": "the host asked" if report.vmpl == HOST_VMPL else str(report.vmpl),
        "signature_algo": f"{report.signature_algo} ({algorithm})",
        "platform_info": f"{int(report.platform_info):#x} ({platform})",
        "key_info": f"{report.key_info:#x} ({', '.join(facts)})",
        "launch_mit_vector": f"{report.launch_mit_vector:#x}",
        "current_mit_vector": f"{report.current_mit_vector:#x}",
    }
    if report.report_id_ma == NO_MIGRATION_AGENT:
        words["report_id_ma"] = "none (no migration agent)"
    for name in _TCBS:
        raw: bytes = getattr(report, name)
        parts = _tcb(raw, product)
        told = (
            "" if parts is None else f" ({', '.join(f'{part} {number}' for part, number in parts.items())})"
        )
        words[name] = raw.hex() + told
    return words


def sev_fields(report: AttestationReport) -> dict[str, Any]:
    """Give every field of a SEV report as data."""
    fields: dict[str, Any] = {
        "mnonce": report.mnonce.hex(),
        "launch_digest": report.launch_digest.hex(),
        "policy": report.policy,
        "sig_usage": int(report.sig_usage),
        "sig_algo": int(report.sig_algo),
        "r": f"{report.r:096x}",
        "s": f"{report.s:096x}",
    }
    try:
        return fields | {"policy_flags": _names(GuestPolicy.parse(report.policy).flags)}
    except WireError:
        return fields | {"policy_flags": None}


def shown_sev(report: AttestationReport) -> Iterator[tuple[str, str]]:
    """Give name and value of every field of a SEV report, for a reader."""
    for name, value in sev_fields(report).items():
        yield name.upper(), _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:#x}" if isinstance(value, int) else str(value)
