"""``cbit owner secret``: a secret, sealed for the one launch that was checked."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import SIMULATED, entry, measure_blob, transport_keys
from cbit.cli.parser import Parser
from cbit.crypto.session import TransportKeys
from cbit.owner import files, secret
from cbit.owner.files import read_limited
from cbit.owner.receipt import NOT_RECORDED, CheckedReceipt
from cbit.owner.session import Measuring, Trusted
from cbit.spec.secret_table import DISK_PASSPHRASE

HELP: Final = "seal a secret for a checked launch"
DESCRIPTION: Final = (
    "Check the receipt of `cbit owner measure` again and seal a secret that only this launch can open.\n"
    f"{files.SECRET_HEADER} and {files.SECRET} go to the hypervisor."
)
EXAMPLE: Final = (
    "example:\n"
    "  cbit owner secret --receipt checked.json --tk launch/tmp_tk.bin \\\n"
    f"      --entry {DISK_PASSPHRASE}:passphrase.txt --out ./packet"
)


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    evidence = parser.add_mutually_exclusive_group(required=True)
    evidence.add_argument(
        "--receipt", type=Path, metavar="FILE", help="the checked receipt of `cbit owner measure`"
    )
    evidence.add_argument(
        "--dangerously-unverified",
        action="store_true",
        help="seal for a --measurement that nobody checked; recorded in the output",
    )
    parser.add_argument(
        "--measurement", type=measure_blob, metavar="B64", help="base64 of measure and nonce, if unverified"
    )
    parser.add_argument(
        "--tk", type=Path, required=True, metavar="TK", help=f"the session's {files.TRANSPORT_KEYS}"
    )
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument(
        "--entry",
        type=entry,
        action="append",
        metavar="GUID:FILE",
        help="an entry of the secret table; repeatable",
    )
    content.add_argument("--raw", type=Path, metavar="FILE", help="bytes without a table, padded to 16")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the packet")


def run(args: Namespace) -> Outcome:
    """Check again, seal, write."""
    trusted = _trusted(args, transport_keys(args.tk))
    plaintext = _plaintext(args)
    header, payload = trusted.seal(plaintext)
    args.out.mkdir(parents=True, exist_ok=True)
    written = [
        *files.write_twins(args.out / files.SECRET_HEADER, header),
        *files.write_twins(args.out / files.SECRET, payload),
    ]
    result = _result(trusted, size=len(payload), written=written)
    return Outcome(ok=True, result=result, lines=lambda: _lines(result))


def _trusted(args: Namespace, keys: TransportKeys) -> Trusted:
    if not args.dangerously_unverified:
        if args.measurement is not None:
            raise ValueError(
                "--measurement stands beside --dangerously-unverified only; a receipt holds its own"
            )
        receipt = CheckedReceipt.from_json(read_limited(args.receipt), keys.tik)
        return Measuring(keys, policy=receipt.policy).check_again(receipt)
    if args.measurement is None:
        raise ValueError("--dangerously-unverified needs the --measurement that the packet is bound to")
    return Measuring(keys, policy=0).dangerously_trust(args.measurement.measure)


def _plaintext(args: Namespace) -> bytes:
    if args.raw is not None:
        return secret.raw(read_limited(args.raw, limit=secret.LARGEST))
    return secret.table_of([(guid, read_limited(path, limit=secret.LARGEST)) for guid, path in args.entry])


def _result(trusted: Trusted, *, size: int, written: list[Path]) -> dict[str, Any]:
    receipt, area = trusted.receipt, trusted.secret_area
    return {
        "files": [str(path) for path in written],
        "size": size,
        "measure": trusted.measure.hex(),
        "guest_address": area.base if area else None,
        "platform": (receipt and receipt.platform) or None,
        "simulated": bool(receipt and receipt.simulated),
        "chain_verified": receipt and receipt.verified,
        "dangerously_unverified": receipt is None or receipt.verified is False,
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if result["dangerously_unverified"]:
        yield "DANGEROUSLY UNVERIFIED: nobody checked what this packet was sealed for"
    elif result["chain_verified"] is None:
        yield NOT_RECORDED
    mark = f"{SIMULATED}: " if result["simulated"] else ""
    yield f"{mark}sealed {result['size']} bytes for the launch that measured {result['measure']}"
    if result["guest_address"] is not None:
        yield f"the image wants them at guest address {result['guest_address']:#x}"
    else:
        yield "the image announces no place for secrets: the hypervisor is told an address"
    yield from (f"wrote {name}" for name in result["files"])
