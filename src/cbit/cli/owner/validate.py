"""``cbit owner validate``: evidence against the owner's wishes, every violation at once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import session_record, transport_keys
from cbit.cli.owner.report import add_offset
from cbit.cli.parser import Parser
from cbit.crypto.session import TransportKeys
from cbit.owner.errors import Missing, Untrusted
from cbit.owner.files import read_limited
from cbit.owner.receipt import CHECKED_FORMAT, NOT_RECORDED, CheckedReceipt, SessionRecord
from cbit.owner.session import Measuring
from cbit.owner.validate.facts import (
    Evidence,
    Kind,
    of_checked_receipt,
    of_launch_receipt,
    of_sev_report,
    of_snp_report,
)
from cbit.owner.validate.wishes import Wishes, read_wishes
from cbit.owner.verify.report import form_problems, read_report
from cbit.owner.verify.snp_files import find_report
from cbit.spec import snp_report
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.receipt import LaunchReceipt, read_object
from cbit.spec.snp_report import Product

HELP: Final = "hold a report or a launch receipt against your wishes"
DESCRIPTION: Final = (
    "Compare what evidence says with a TOML file of what you want, and list every difference.\n"
    "Whether the evidence is *true* is another question: `cbit owner report` verifies reports, and takes\n"
    "--want too; `cbit owner measure` checks a launch and writes the receipt that is given here with --tk."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner validate report.bin --want wishes.toml\n"
    "  cbit owner validate checked.json --tk launch/tmp_tk.bin --want wishes.toml"
)


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "evidence",
        type=Path,
        metavar="EVIDENCE",
        help="an SNP or SEV report, a launch receipt, or a checked receipt",
    )
    parser.add_argument(
        "--want", type=Path, required=True, metavar="WISHES", help="a TOML file of what it must say"
    )
    parser.add_argument("--tk", type=Path, metavar="TK", help="the session's keys, for receipts")
    add_offset(parser)


def run(args: Namespace) -> Outcome:
    """Judge the evidence."""
    wishes = read_wishes(read_limited(args.want), source=args.want.name)
    keys = None if args.tk is None else transport_keys(args.tk)
    record = None if keys is None else session_record(args.tk, keys)
    evidence, believed = _evidence(read_limited(args.evidence), args, wishes, keys, record)
    violations = wishes.violations(evidence)
    recorded = None
    if evidence.kind is Kind.LAUNCH:
        # A record is believed for the launch that gave a wanted digest: of any other one it may say nothing.
        unbelieved = record is not None and evidence.facts.get("measurement") == b""
        recorded = "verified" in evidence.facts or unbelieved
    result = {
        "evidence": evidence.kind.value,
        "believed": believed,
        "chain_verified": evidence.facts.get("verified"),
        "platform_recorded": recorded,
        "wishes": {"file": args.want.name, "count": len(wishes.wanted), "violations": violations},
    }
    return Outcome(
        ok=not violations,
        result=result,
        reasons=tuple(violations),
        lines=lambda: _lines(result, violations),
    )


_NOT_BELIEVED: Final = "nothing: what it says was compared, its signature was not checked here"


def _evidence(
    data: bytes,
    args: Namespace,
    wishes: Wishes,
    keys: TransportKeys | None,
    record: SessionRecord | None,
) -> tuple[Evidence, str]:
    """Read the evidence, and say in words what makes it believable."""
    source = args.evidence.name
    if data.lstrip()[:1] == b"{":
        return _receipt(data, source, wishes, keys, record)
    raw = find_report(data, source=source, offset=args.offset)
    if len(raw) != snp_report.REPORT_SIZE:
        return of_sev_report(AttestationReport.parse(raw)), _NOT_BELIEVED
    report = read_report(raw)
    problems = tuple(form_problems(raw, report, report.likely_product or Product.MILAN))
    if problems:
        raise Untrusted(problems)
    return of_snp_report(report), _NOT_BELIEVED


def _receipt(
    data: bytes, source: str, wishes: Wishes, keys: TransportKeys | None, record: SessionRecord | None
) -> tuple[Evidence, str]:
    if read_object(data, what=source).get("format") == CHECKED_FORMAT:
        if keys is None:
            raise Missing(f"{source}: a checked receipt is sealed with its session's keys: give --tk")
        checked = CheckedReceipt.from_json(data, keys.tik)
        Measuring(keys, policy=checked.policy).check_again(checked)
        return of_checked_receipt(checked), "your own seal: this launch was checked with these keys"
    receipt = LaunchReceipt.from_json(data)
    evidence = of_launch_receipt(
        receipt, tik=None if keys is None else keys.tik, digests=wishes.digests, record=record
    )
    if evidence.facts.get("measurement"):
        return evidence, "the measurement: it covers digest, policy, version and build"
    return evidence, _NOT_BELIEVED


def _lines(result: dict[str, Any], violations: list[str]) -> Iterator[str]:
    yield f"evidence: {result['evidence']}"
    yield f"believed because of {result['believed']}"
    if result["platform_recorded"] is False:
        yield NOT_RECORDED
    count = result["wishes"]["count"]
    yield f"verdict: {'NOT WHAT YOU WANT' if violations else f'as wanted ({count} wishes)'}"
