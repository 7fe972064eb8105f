"""``cbit owner verify``: the certificate chain as a tree, every signature with its result, one verdict."""

from __future__ import annotations

import argparse
import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Exit, Outcome
from cbit.cli.owner.arguments import add_trust, parts_and_roots
from cbit.cli.parser import Parser
from cbit.owner.files import read_limited
from cbit.owner.verify.chain import WHERE_FROM
from cbit.owner.verify.files import Piece
from cbit.owner.verify.snp_chain import (
    Link,
    SnpPartInspection,
    crls_of,
    find_snp_parts,
    inspect_snp_parts,
    trusted_root,
)
from cbit.owner.verify.snp_files import holds_snp, left_aside, read_certificates
from cbit.owner.verify.verdict import (
    ROLLBACK_CAVEAT,
    PartInspection,
    RootReport,
    Signature,
    describe_root,
    inspect_parts,
)
from cbit.spec.certificate import CERT_SIZE, Usage
from cbit.spec.snp_report import SigningKey

HELP: Final = "verify a platform's certificate chain"
DESCRIPTION: Final = (
    "Verify PDH, PEK, OCA, CEK, ASK and ARK (SEV), or VCEK or VLEK, ASK or ASVK, and ARK (SNP, as X.509):\n"
    "every signature and every byte of the format.\n"
    "AMD's roots are pinned; any other root must be named with --trust.  What is there\n"
    "of an incomplete chain is shown, not verified; ASK and ARK alone are verified as what they are."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner verify ./certs --ca ask_ark.cert\n"
    "  cbit owner verify pdh.cert cert_chain.cert cek.cert ask_ark.cert\n"
    "  cbit owner verify vcek.der --ca cert_chain.pem --at 2026-01-31\n"
    "  cbit owner verify ./emulated --trust ./emulated/ark.cert"
)
_LARGEST_CRL: Final = 1 << 22  # bytes

Found = PartInspection | SnpPartInspection


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="DIR|FILE",
        help="folder with the usual names, certificates, or blobs",
    )
    add_trust(parser)
    add_snp(parser)


def add_snp(parser: Parser) -> None:
    """Declare what X.509 chains can be judged by besides their signatures: --crl and --at."""
    parser.add_argument(
        "--crl",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a revocation list (SNP); checked, and its revoked certificates are refused",
    )
    parser.add_argument(
        "--at",
        type=_moment,
        metavar="TIME",
        help="judge the dates of certificates (SNP) at this moment, such as 2026-01-31 or 2026-01-31T12:00Z; "
        "without it they are not judged",
    )


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date or time such as 2026-01-31T12:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def run(args: Namespace) -> Outcome:
    """Inspect the chain and judge it."""
    # Who names the two files means them; a folder that holds nothing else was to hold a platform.
    pair = not any(path.is_dir() for path in args.paths)
    if holds_snp(args.paths):
        snp = inspect_snp_files(args.paths, args)
        return _outcome(snp, pair=pair and snp.parts.authority_only, data=snp_as_json, tree=snp_as_tree)
    if args.crl or args.at is not None:
        raise ValueError("--crl and --at are for SNP: SEV certificates have neither dates nor lists")
    parts, roots = parts_and_roots(args.paths, args)
    found = inspect_parts(parts, trust=roots)
    return _outcome(found, pair=pair and parts.authority_only, data=as_json, tree=as_tree)


def _outcome(
    found: Found,
    *,
    pair: bool,
    data: Callable[..., dict[str, Any]],
    tree: Callable[..., Iterator[str]],
) -> Outcome:
    missing = [] if pair else missing_parts(found)
    return Outcome(
        ok=not found.problems and not missing,
        result=data(found, authority_only=pair),
        reasons=(*missing, *found.problems),
        lines=lambda: tree(found, authority_only=pair),
        exit_code=Exit.UNUSABLE if missing else None,
    )


def missing_parts(found: Found) -> list[str]:
    """Say what a whole chain would have and this one has not, in one sentence or none."""
    parts = found.parts
    if not parts.missing:
        return []
    if isinstance(found, PartInspection):
        return [found.parts.why()]
    return [f"the chain is not complete: {'; '.join(found.parts.missing)}"]


def as_json(found: PartInspection, *, authority_only: bool = False) -> dict[str, Any]:
    """Give the inspection as data."""
    root, pieces = found.root, found.parts.pieces
    return {
        "verdict": verdict(found, authority_only=authority_only),
        "missing": [role.name for role in found.parts.missing],
        "root": _root_as_json(root),
        "signatures": [
            {
                "certificate": signature.certificate.name,
                "signer": signature.signer.name,
                "slot": signature.slot,
                "good": signature.good,
                "reason": signature.reason,
            }
            for signature in found.signatures
        ],
        "certificates": [
            {
                "role": piece.role.name,
                "source": piece.source,
                "api": _api(piece.raw),
                "sha256": hashlib.sha256(piece.raw).hexdigest(),
            }
            for piece in (pieces[role] for role in _FROM_THE_ROOT if role in pieces)
        ],
        "ownership": found.ownership,
        "caveats": [ROLLBACK_CAVEAT],
    }


def _root_as_json(root: RootReport | None) -> dict[str, Any] | None:
    if root is None:
        return None
    return {
        "product": root.product,
        "pinned": root.product is not None,
        "trusted": root.trusted,
        "simulated": root.simulated,
        "key_id": root.key_id or None,
        "pin": root.pin,
        "key_bits": root.key_bits,
    }


def verdict(found: Found, *, authority_only: bool = False) -> str:
    """Give the verdict in one line."""
    if found.parts.missing and not authority_only:
        return "NOT VERIFIED"
    if found.problems:
        return "NOT TRUSTWORTHY"
    if authority_only:
        return f"verified, the authority only: root {describe_root(found.root)}"
    return f"verified, root {describe_root(found.root)}"


def _api(raw: bytes) -> str | None:
    """The version that a SEV certificate carries; AMD's own certificates have none."""
    return f"{raw[4]}.{raw[5]}" if len(raw) == CERT_SIZE else None


def as_tree(found: PartInspection, *, authority_only: bool = False) -> Iterator[str]:
    """Draw the chain from the root down, with every signature beside its certificate."""
    pieces, root = found.parts.pieces, found.root
    results = {
        role: [signature for signature in found.signatures if signature.certificate is role] for role in Usage
    }
    ark = describe_root(root) + (f", RSA-{root.key_bits}, key id {root.key_id}" if root else "")
    drawing = (  # indentation, elbow, certificate, what to say about it
        ("", "", Usage.ARK, ark),
        ("", "└─ ", Usage.ASK, ""),
        ("   ", "└─ ", Usage.CEK, "the chip"),
        ("      ", "├─ ", Usage.OCA, "the owner of the platform; signs itself"),
        ("      ", "└─ ", Usage.PEK, "the platform"),
        ("         ", "└─ ", Usage.PDH, "what a session is made for"),
    )
    for indent, elbow, role, text in drawing:
        piece: Piece | None = pieces.get(role)
        if piece is None:
            if not authority_only:
                yield f"{indent}{elbow}{role.name}  MISSING: {WHERE_FROM[role]}"
            continue
        api = _api(piece.raw)
        about = ", ".join(part for part in (text, f"API {api}" if api else "", piece.source) if part)
        yield f"{indent}{elbow}{piece.role.name}  {about}"
        under = indent + {"": "", "└─ ": "   ", "├─ ": "│  "}[elbow]
        yield from (f"{under}     {_result(signature)}" for signature in results[piece.role])
    yield ""
    if authority_only:
        yield "note: AMD's authority alone: nothing is said about a chip or a platform"
    else:
        yield f"ownership: {found.ownership}"
        yield f"note: {ROLLBACK_CAVEAT}"
    yield f"verdict: {verdict(found, authority_only=authority_only)}"


_FROM_THE_ROOT: Final = (Usage.ARK, Usage.ASK, Usage.CEK, Usage.OCA, Usage.PEK, Usage.PDH)


def _result(signature: Signature) -> str:
    slot = f", slot {signature.slot}" if signature.slot else ""
    return f"signed by {signature.signer.name}{slot}: {_good_or_not(signature)}"


def _good_or_not(signature: Signature | Link) -> str:
    if not signature.checked:
        return signature.reason
    return "good" if signature.good else f"BAD: {signature.reason}"


def inspect_snp_files(
    paths: list[Path], args: Namespace, *, signed_by: SigningKey | None = None
) -> SnpPartInspection:
    """Read what is there of the SNP chain that the arguments name, and judge it."""
    roots = [trusted_root(read_limited(path), source=path.name) for path in args.trust]
    crls = [
        crl for path in args.crl for crl in crls_of(read_limited(path, limit=_LARGEST_CRL), source=path.name)
    ]
    files = [*paths, *args.ca]
    parts = find_snp_parts(read_certificates(files), roots=roots, signed_by=signed_by)
    found = inspect_snp_parts(parts, trust=roots, crls=crls, at=args.at)
    return replace(found, notes=tuple(left_aside(files)))


def snp_as_json(found: SnpPartInspection, *, authority_only: bool = False) -> dict[str, Any]:
    """Give the inspection of an SNP chain as data, with the same names as for SEV."""
    endorsement = found.endorsement
    return {
        "verdict": verdict(found, authority_only=authority_only),
        "missing": list(found.parts.missing),
        "root": _root_as_json(found.root),
        "signatures": [
            {
                "certificate": link.certificate,
                "signer": link.signer,
                "slot": None,
                "good": link.good,
                "reason": link.reason,
            }
            for link in found.links
        ],
        "certificates": [
            {
                "role": role,
                "source": cert.source,
                "common_name": cert.common_name,
                "serial": cert.serial,
                "not_before": cert.not_before.isoformat(),
                "not_after": cert.not_after.isoformat(),
                "sha256": cert.fingerprint,
            }
            for role, cert in found.parts.roles()
            if cert is not None
        ],
        "endorsement": endorsement
        and {
            "signing_key": endorsement.signing_key.name,
            "product": endorsement.product_name,
            "tcb": endorsement.tcb.components(),
            "hardware_id": endorsement.hardware_id.hex() or None,
            "provider_id": endorsement.provider_id or None,
        },
        "dates_judged_at": found.at and found.at.isoformat(),
        "revocation_lists": found.crls,
        "notes": list(found.notes),
        "caveats": list(found.caveats),
    }


def snp_as_tree(found: SnpPartInspection, *, authority_only: bool = False) -> Iterator[str]:
    """Draw the SNP chain from the root down, with every signature beside its certificate."""
    yield from snp_branches(found, authority_only=authority_only)
    yield ""
    if authority_only:
        yield "note: AMD's authority alone: nothing is said about a chip"
    yield from (f"note: {note}" for note in (*found.notes, *found.caveats))
    yield f"verdict: {verdict(found, authority_only=authority_only)}"


def snp_branches(found: SnpPartInspection, *, authority_only: bool = False) -> Iterator[str]:
    """Draw the certificates and signatures alone."""
    about = {"ARK": describe_root(found.root) + (f", RSA-{found.root.key_bits}" if found.root else "")}
    if found.endorsement is not None:
        owner = (
            "the chip" if found.endorsement.hardware_id else f"the provider {found.endorsement.provider_id}"
        )
        about[found.endorsement.signing_key.name] = (
            f"{owner}, {found.endorsement.product_name}, firmware: {found.endorsement.tcb}"
        )
    links = {link.certificate: link for link in found.links}
    for depth, (role, cert) in enumerate(found.parts.roles()):
        indent = "   " * (depth - 1) + "└─ " if depth else ""
        if cert is None:
            if not authority_only:
                yield f"{indent}{role}  MISSING"
            continue
        link = links[role]
        yield f"{indent}{role}  " + ", ".join(part for part in (about.get(role, ""), cert.source) if part)
        yield f"{'   ' * depth}     signed by {link.signer}: {_good_or_not(link)}"
