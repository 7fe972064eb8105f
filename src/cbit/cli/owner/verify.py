"""``cbit owner verify``: the certificate chain as a tree, every signature with its result, one verdict."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import add_trust, chain_and_roots
from cbit.cli.parser import Parser
from cbit.owner.verify.verdict import ROLLBACK_CAVEAT, Inspection, Signature, describe_root, inspect
from cbit.spec.certificate import CERT_SIZE, Usage

HELP: Final = "verify a platform's certificate chain"
DESCRIPTION: Final = (
    "Verify PDH, PEK, OCA, CEK, ASK and ARK: every signature and every byte of the format.\n"
    "AMD's roots are pinned; any other root must be named with --trust."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner verify ./certs --ca ask_ark.cert\n"
    "  cbit owner verify pdh.cert cert_chain.cert cek.cert ask_ark.cert\n"
    "  cbit owner verify ./emulated --trust ./emulated/ark.cert"
)


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


def run(args: Namespace) -> Outcome:
    """Inspect the chain and judge it."""
    chain, roots = chain_and_roots(args.paths, args)
    found = inspect(chain, trust=roots)
    return Outcome(
        ok=not found.problems, result=as_json(found), reasons=found.problems, lines=lambda: as_tree(found)
    )


def as_json(found: Inspection) -> dict[str, Any]:
    """Give the inspection as data."""
    root = found.root
    return {
        "verdict": verdict(found),
        "root": root
        and {
            "product": root.product,
            "pinned": root.product is not None,
            "trusted": root.trusted,
            "simulated": root.simulated,
            "key_id": root.key_id,
            "pin": root.pin,
            "key_bits": root.key_bits,
        },
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
            for piece in found.chain.pieces()
        ],
        "ownership": found.ownership,
        "caveats": [ROLLBACK_CAVEAT],
    }


def verdict(found: Inspection) -> str:
    """Give the verdict in one line."""
    if found.problems:
        return "NOT TRUSTWORTHY"
    return f"verified, root {describe_root(found.root)}"


def _api(raw: bytes) -> str | None:
    """The version that a SEV certificate carries; AMD's own certificates have none."""
    return f"{raw[4]}.{raw[5]}" if len(raw) == CERT_SIZE else None


def as_tree(found: Inspection) -> Iterator[str]:
    """Draw the chain from the root down, with every signature beside its certificate."""
    chain, root = found.chain, found.root
    results = {
        role: [signature for signature in found.signatures if signature.certificate is role] for role in Usage
    }
    ark = describe_root(root) + (f", RSA-{root.key_bits}, key id {root.key_id}" if root else "")
    drawing = (  # indentation, elbow, certificate, what to say about it
        ("", "", chain.ark, ark),
        ("", "└─ ", chain.ask, ""),
        ("   ", "└─ ", chain.cek, "the chip"),
        ("      ", "├─ ", chain.oca, "the owner of the platform; signs itself"),
        ("      ", "└─ ", chain.pek, "the platform"),
        ("         ", "└─ ", chain.pdh, "what a session is made for"),
    )
    for indent, elbow, piece, text in drawing:
        api = _api(piece.raw)
        about = ", ".join(part for part in (text, f"API {api}" if api else "", piece.source) if part)
        yield f"{indent}{elbow}{piece.role.name}  {about}"
        under = indent + {"": "", "└─ ": "   ", "├─ ": "│  "}[elbow]
        yield from (f"{under}     {_result(signature)}" for signature in results[piece.role])
    yield ""
    yield f"ownership: {found.ownership}"
    yield f"note: {ROLLBACK_CAVEAT}"
    yield f"verdict: {verdict(found)}"


def _result(signature: Signature) -> str:
    slot = f", slot {signature.slot}" if signature.slot else ""
    return (
        f"signed by {signature.signer.name}{slot}: {'good' if signature.good else f'BAD: {signature.reason}'}"
    )
