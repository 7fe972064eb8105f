"""``cbit owner report``: an attestation report, field by field; who signed it; is it what you want?"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Exit, Outcome
from cbit.cli.owner.arguments import add_trust, parts_and_roots
from cbit.cli.owner.report_fields import sev_fields, shown_sev, shown_snp, snp_fields
from cbit.cli.owner.verify import (
    add_snp,
    as_json,
    as_tree,
    inspect_snp_files,
    missing_parts,
    snp_as_json,
    snp_branches,
    verdict,
)
from cbit.cli.parser import Parser
from cbit.owner.files import read_limited
from cbit.owner.validate.facts import Evidence, of_sev_report, of_snp_report
from cbit.owner.validate.wishes import Wishes, read_wishes
from cbit.owner.verify.kds import vcek_address
from cbit.owner.verify.report import Check, form_problems, inspect_report, inspect_sev_report, read_report
from cbit.owner.verify.snp_files import find_report
from cbit.owner.verify.verdict import inspect_parts
from cbit.spec import snp_report
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.certificate import Usage
from cbit.spec.errors import InvalidCertificate, NotModelled, WireError
from cbit.spec.snp_report import Product, SigningKey, SnpReport

HELP: Final = "show, verify and judge an attestation report"
DESCRIPTION: Final = (
    "Show an SNP report (or a SEV one) with a name for every field, verify it up to AMD's root, and hold it\n"
    "against your wishes.  Without --want it says who signed what, and nothing about whether you want it;\n"
    "without certificates it shows what the report says, and verifies nothing."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner report report.bin --vcek vcek.der --ca cert_chain.pem --want wishes.toml\n"
    "  cbit owner report report.bin --vcek vlek_and_chain.pem --at 2026-01-31 --crl Milan.crl\n"
    "  cbit owner report attestation_report.bin --chain ./certs --ca ask_ark.cert"
)


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "report",
        type=Path,
        metavar="REPORT",
        help="the report: binary, hex, base64, or with what came along (a certificate table, Azure's header)",
    )
    add_offset(parser)
    parser.add_argument(
        "--vcek",
        "--vlek",
        type=Path,
        action="append",
        default=[],
        metavar="CERT",
        help="the leaf of an SNP report: PEM, DER or a host's table; the file may hold its chain too",
    )
    parser.add_argument(
        "--chain",
        type=Path,
        action="append",
        default=[],
        metavar="DIR|FILE",
        help="for a SEV report: the platform's certificates",
    )
    add_trust(parser)
    add_snp(parser)
    parser.add_argument("--want", type=Path, metavar="WISHES", help="a TOML file of what it must say")


def add_offset(parser: Parser) -> None:
    """Declare --offset."""
    parser.add_argument("--offset", type=_offset, metavar="N", help="where the SNP report starts in the file")


def _offset(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no offset in bytes")
    return number


def run(args: Namespace) -> Outcome:
    """Verify the report, and judge it if wishes are given."""
    wishes = None if args.want is None else read_wishes(read_limited(args.want), source=args.want.name)
    raw = find_report(read_limited(args.report), source=args.report.name, offset=args.offset)
    is_snp = len(raw) == snp_report.REPORT_SIZE
    found = _snp(raw, args) if is_snp else _sev(raw, args)
    problems = [*found.chain_problems, *(reason for check in found.checks for reason in check.reasons)]
    violations = (
        [] if wishes is None else _violations(wishes, found, verified=not problems and not found.missing)
    )
    result = {
        "kind": "snp-report" if is_snp else "sev-report",
        "verdict": _verdict(found, problems, violations),
        "report": found.fields,
        "chain": found.chain,
        "checks": [
            {"what": check.what, "good": check.good, "reasons": list(check.reasons)} for check in found.checks
        ],
        "wishes": None if args.want is None else {"file": args.want.name, "violations": violations},
    }
    return Outcome(
        ok=not problems and not found.missing and not violations,
        result=result,
        reasons=(*found.missing, *problems, *violations),
        lines=lambda: _lines(found, result, violations, wanted=wishes is not None),
        exit_code=Exit.UNUSABLE if found.missing else None,
    )


def _violations(wishes: Wishes, found: Found, *, verified: bool) -> list[str]:
    try:
        evidence = found.evidence(verified=verified)
    except (WireError, NotModelled) as error:
        return [f"the wishes cannot be judged: {error}"]
    return wishes.violations(evidence)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about a report of either kind, ready to be shown."""

    fields: dict[str, Any]
    shown: tuple[tuple[str, str], ...]
    chain: dict[str, Any] | None
    tree: tuple[str, ...]
    root: str
    chain_problems: tuple[str, ...]
    missing: tuple[str, ...]
    checks: tuple[Check, ...]
    report: SnpReport | AttestationReport
    product: Product | None
    simulated: bool | None

    def evidence(self, *, verified: bool) -> Evidence:
        """Collect its facts for the wishes."""
        if isinstance(self.report, SnpReport):
            return of_snp_report(
                self.report, product=self.product, simulated=self.simulated, verified=verified
            )
        return of_sev_report(self.report, simulated=self.simulated, verified=verified)


def _snp(raw: bytes, args: Namespace) -> Found:
    report = read_report(raw)
    if args.chain:
        raise ValueError(
            "--chain is for SEV reports; this is an SNP report, its certificate is given as --vcek"
        )
    if not args.vcek:
        return _snp_alone(raw, report)
    chain = inspect_snp_files(args.vcek, args, signed_by=report.signing_key)
    checks: tuple[Check, ...] = ()
    leaf = chain.parts.leaf
    if leaf is None:
        return replace(
            _snp_alone(raw, report),
            chain=snp_as_json(chain),
            tree=tuple(snp_branches(chain)),
            chain_problems=chain.problems,
            missing=tuple(missing_parts(chain)),
        )
    if chain.endorsement is not None:
        try:
            key = leaf.ec_key()
        except InvalidCertificate:
            pass  # the chain's problems say so
        else:
            checks = inspect_report(raw, endorsement=chain.endorsement, key=key)
    product = chain.endorsement.product if chain.endorsement else None
    return Found(
        fields=snp_fields(report, product),
        shown=tuple(shown_snp(report, product)),
        chain=snp_as_json(chain),
        tree=(*snp_branches(chain), *(f"note: {note}" for note in (*chain.notes, *chain.caveats))),
        root=verdict(chain),
        chain_problems=chain.problems,
        missing=tuple(missing_parts(chain)),
        checks=checks,
        report=report,
        product=product,
        simulated=None if chain.root is None else chain.root.simulated,
    )


def _snp_alone(raw: bytes, report: SnpReport) -> Found:
    """Tell what a report says by itself: nobody has signed for it yet."""
    try:
        product = report.likely_product
    except NotModelled:
        product = None
    # Milan's TCB and Genoa's have one form; Turin's reports tell that they are Turin's.
    problems = tuple(form_problems(raw, report, product or Product.MILAN))
    why = f"the certificate of the key that signed is wanted (--vcek): {_where_from(report)}"
    return Found(
        fields=snp_fields(report, product),
        shown=tuple(shown_snp(report, product)),
        chain=None,
        tree=("certificates: none given (--vcek)",),
        root="NOT VERIFIED",
        chain_problems=(),
        missing=(why,),
        checks=(Check("form", problems),),
        report=report,
        product=product,
        simulated=None,
    )


def _where_from(report: SnpReport) -> str:
    if report.signing_key is SigningKey.VLEK:
        return "a VLEK is handed out by the host, with an extended report"
    if not any(report.chip_id) or report.signing_key is not SigningKey.VCEK:
        return "the report does not tell for which chip"
    try:
        return f"AMD's key server has it: {vcek_address(report)}"
    except (NotModelled, WireError) as error:
        return str(error)


def _sev(raw: bytes, args: Namespace) -> Found:
    report = AttestationReport.parse(raw, canonical=False)
    if args.vcek or args.crl or args.at is not None:
        raise ValueError("--vcek, --crl and --at are for SNP reports; this is a SEV report: give --chain")
    parts, roots = parts_and_roots(args.chain, args)
    chain = inspect_parts(parts, trust=roots)
    pek = parts.pieces.get(Usage.PEK)
    wanted = "the platform's certificates are wanted (--chain): its PEK signed the report"
    return Found(
        fields=sev_fields(report),
        shown=tuple(shown_sev(report)),
        chain=as_json(chain) if args.chain else None,
        tree=tuple(as_tree(chain))[:-1] if args.chain else ("certificates: none given (--chain)",),
        root=verdict(chain),
        chain_problems=chain.problems,
        missing=tuple(missing_parts(chain)) if args.chain else (wanted,),
        checks=inspect_sev_report(raw, None if pek is None else pek.sev()),
        report=report,
        product=None,
        simulated=None if chain.root is None else chain.root.simulated,
    )


def _verdict(found: Found, problems: list[str], violations: list[str]) -> str:
    if found.missing:
        return "NOT VERIFIED"
    if problems:
        return "NOT TRUSTWORTHY"
    if violations:
        return f"signed, and NOT WHAT YOU WANT; {found.root}"
    return found.root


def _lines(found: Found, result: dict[str, Any], violations: list[str], *, wanted: bool) -> Iterator[str]:
    """Show it; why something is bad is said once, with the reasons."""
    yield f"{result['kind']}"
    yield from (f"  {name:<18} {value}" for name, value in found.shown)
    yield ""
    yield from found.tree
    yield ""
    yield from (f"{check.what}: {'good' if check.good else 'BAD'}" for check in found.checks)
    if wanted:
        yield f"wishes: {'all fulfilled' if not violations else f'{len(violations)} not fulfilled'}"
    else:
        yield "wishes: none given (--want), so nothing is said about whether this is your guest"
    yield f"verdict: {result['verdict']}"
