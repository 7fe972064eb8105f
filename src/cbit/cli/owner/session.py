"""``cbit owner session``: keys for one launch, made only for a verified platform."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import add_trust, chain_and_roots, policy
from cbit.cli.parser import Parser
from cbit.owner import files
from cbit.owner.errors import Missing
from cbit.owner.session import Measuring, Session
from cbit.owner.verify.files import read
from cbit.owner.verify.verdict import UnverifiedPlatform, VerifiedPlatform, verify_chain
from cbit.spec.certificate import Usage
from cbit.spec.policy import GuestPolicy

HELP: Final = "make a session for a verified platform"
DESCRIPTION: Final = (
    "Verify the chain, then make a Diffie-Hellman key, transport keys and the blob for LAUNCH_START.\n"
    f"{files.GODH} and {files.LAUNCH_BLOB} go to the hypervisor; {files.TRANSPORT_KEYS} is secret and stays."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner session --chain ./certs --ca ask_ark.cert --policy 'NODBG|NOKS' --out ./launch\n"
    "  cbit owner session --chain ./emulated --trust ./emulated/ark.cert --policy 0x1 --out ./launch"
)


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--chain",
        type=Path,
        action="append",
        required=True,
        metavar="DIR|FILE",
        help="the platform's certificates",
    )
    add_trust(parser)
    parser.add_argument(
        "--policy",
        type=policy,
        required=True,
        help="a number or names joined by |: NODBG NOKS ES NOSEND DOMAIN SEV",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument(
        "--dangerously-unverified",
        action="store_true",
        help="make the session for any PDH certificate, verifying nothing; recorded in the output",
    )


def run(args: Namespace) -> Outcome:
    """Verify, open, write."""
    platform: VerifiedPlatform | UnverifiedPlatform
    if args.dangerously_unverified:
        platform = UnverifiedPlatform.dangerously_trust(_pdh(args.chain))
    else:
        chain, roots = chain_and_roots(args.chain, args)
        platform = verify_chain(chain, trust=roots)
    measuring = Session.open(platform, policy=args.policy)
    written = _write(measuring, args.out)
    result = _result(measuring, written)
    return Outcome(ok=True, result=result, lines=lambda: _lines(result))


def _pdh(paths: list[Path]) -> Any:
    piece = next((piece for piece in read(paths) if piece.role is Usage.PDH), None)
    if piece is None:
        raise Missing("a session is made for a PDH certificate (pdh.cert), and there is none")
    return piece.sev()


def _write(measuring: Measuring, folder: Path) -> list[Path]:
    session, record = measuring.session, measuring.record
    if session is None or record is None:
        raise AssertionError("Session.open() gives both")
    folder.mkdir(parents=True, exist_ok=True)
    # The keys first: if there are older ones, nothing else in the folder may change.
    files.write_private(folder / files.TRANSPORT_KEYS, measuring.keys.material())
    record_file = folder / files.SESSION_RECORD
    files.write_public(record_file, record.to_json(measuring.keys.tik).encode())
    return [
        *files.write_twins(folder / files.GODH, bytes(session.godh)),
        *files.write_twins(folder / files.LAUNCH_BLOB, bytes(session.blob)),
        record_file,
        folder / files.TRANSPORT_KEYS,
    ]


def _result(measuring: Measuring, written: list[Path]) -> dict[str, Any]:
    record = measuring.record
    return {
        "policy": measuring.policy,
        "policy_text": str(GuestPolicy.parse(measuring.policy)),
        "platform": record and record.root,
        "pdh_sha256": record and record.pdh_sha256,
        "simulated": bool(record and record.simulated),
        "dangerously_unverified": not (record and record.verified),
        "files": [str(path) for path in written],
        "secret_files": [str(written[-1])],
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if result["dangerously_unverified"]:
        yield "DANGEROUSLY UNVERIFIED: whoever made this PDH certificate can read the session"
    yield f"platform: {result['platform']}"
    yield f"policy:   {result['policy_text']}"
    for name in result["files"]:
        yield f"wrote {name}" + ("  (secret: keep it here)" if name in result["secret_files"] else "")
