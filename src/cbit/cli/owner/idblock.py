"""``cbit owner idblock``: make the ID block of an SNP guest and sign it, or check one."""

from __future__ import annotations

import argparse
import base64
import binascii
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.measure_arguments import digest_value
from cbit.cli.parser import Parser
from cbit.owner import files, idblock
from cbit.owner.files import read_limited
from cbit.spec.errors import WireError
from cbit.spec.id_block import IdAuth, IdBlock
from cbit.spec.snp_report import SnpPolicy

HELP: Final = "make, sign or check the ID block of an SNP guest"
DESCRIPTION: Final = (
    "An ID block says which digest and policy a guest must have; your ID key signs it, and the secure\n"
    "processor refuses any other launch.  QEMU takes both files in base64 (id-block=, id-auth=)."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner idblock create --digest 80479ca8… --policy 0x30000 --id-key id.pem --out ./id\n"
    "  cbit owner idblock create --digest 80479ca8… --policy 0x30000 --id-key id.pem \\\n"
    "      --author-key author.pem --guest-svn 2 --out ./id\n"
    "  cbit owner idblock check ./id/id_block.bin ./id/id_auth.bin --digest 80479ca8…"
)

BLOCK_FILE: Final = "id_block.bin"
AUTH_FILE: Final = "id_auth.bin"


def configure(parser: Parser) -> None:
    """Declare the actions."""
    actions: Any = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    create = actions.add_parser("create", help="make a block and sign it", epilog=EXAMPLE)
    create.add_argument("--digest", type=_snp_digest, required=True, help="the launch digest, hex or base64")
    create.add_argument(
        "--policy", type=_number, required=True, help="the guest's SNP policy, such as 0x30000"
    )
    create.add_argument(
        "--id-key", type=Path, required=True, metavar="PEM", help="your private key on P-384 (secp384r1)"
    )
    create.add_argument("--author-key", type=Path, metavar="PEM", help="the key that signs the ID key")
    create.add_argument(
        "--family-id", type=_sixteen, default=bytes(16), metavar="HEX", help="16 bytes of yours"
    )
    create.add_argument(
        "--image-id", type=_sixteen, default=bytes(16), metavar="HEX", help="16 bytes of yours"
    )
    create.add_argument("--guest-svn", type=_number, default=0, metavar="N", help="your version (default: 0)")
    create.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    check = actions.add_parser("check", help="check a block and its signatures", epilog=EXAMPLE)
    check.add_argument("block", type=Path, metavar="BLOCK", help="96 bytes, or their base64")
    check.add_argument("auth", type=Path, metavar="AUTH", help="the authentication page, or its base64")
    check.add_argument("--digest", type=_snp_digest, help="the launch digest that it must want")
    check.add_argument("--policy", type=_number, help="the policy that it must want")


def run(args: Namespace) -> Outcome:
    """Do one of the two."""
    action = {"create": _create, "check": _check}[args.action]
    return action(args)


def _create(args: Namespace) -> Outcome:
    block = idblock.create(
        args.digest,
        policy=args.policy,
        family_id=args.family_id,
        image_id=args.image_id,
        guest_svn=args.guest_svn,
    )
    id_key = idblock.read_private_key(read_limited(args.id_key), source=args.id_key.name)
    author_key = None
    if args.author_key is not None:
        author_key = idblock.read_private_key(read_limited(args.author_key), source=args.author_key.name)
    auth = idblock.sign(block, id_key=id_key, author_key=author_key)
    args.out.mkdir(parents=True, exist_ok=True)
    written = [
        *files.write_twins(args.out / BLOCK_FILE, bytes(block)),
        *files.write_twins(args.out / AUTH_FILE, bytes(auth)),
    ]
    result = _result(block, auth) | {"files": [str(path) for path in written]}
    return Outcome(ok=True, result=result, lines=lambda: _lines(result))


def _check(args: Namespace) -> Outcome:
    block = IdBlock.parse(_bytes(args.block, IdBlock.SIZE))
    auth = IdAuth.parse(_bytes(args.auth, IdAuth.SIZE))
    idblock.verify(block, auth, digest=args.digest, policy=args.policy)
    result = _result(block, auth)
    return Outcome(
        ok=True, result=result, lines=lambda: (*_lines(result), "verdict: signed by the keys that it carries")
    )


def _result(block: IdBlock, auth: IdAuth) -> dict[str, Any]:
    digests = idblock.key_digests(auth)
    return {
        "launch_digest": block.launch_digest.hex(),
        "policy": block.policy,
        "policy_text": str(SnpPolicy.of(block.policy)),
        "family_id": block.family_id.hex(),
        "image_id": block.image_id.hex(),
        "guest_svn": block.guest_svn,
        "id_key_digest": digests.id_key.hex(),
        "author_key_digest": digests.author_key and digests.author_key.hex(),
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"launch digest      {result['launch_digest']}"
    yield f"policy             {result['policy_text']}"
    yield f"family, image, SVN {result['family_id']} {result['image_id']} {result['guest_svn']}"
    yield f"ID key digest      {result['id_key_digest']}"
    yield f"author key digest  {result['author_key_digest'] or 'no author key'}"
    for path in result.get("files", ()):
        yield f"wrote {path}"


def _bytes(path: Path, size: int) -> bytes:
    """Read a file that is binary or base64."""
    data = read_limited(path)
    if len(data) != size:
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise WireError(f"{path.name}: {len(data)} bytes are neither {size} nor their base64") from None
    return data


def _snp_digest(text: str) -> bytes:
    value = digest_value(text)
    if len(value) != 48:
        raise argparse.ArgumentTypeError(f"{len(value)} bytes, the digest of an SNP launch has 48")
    return value


def _number(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _sixteen(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not 16 bytes in hex")
    return value
