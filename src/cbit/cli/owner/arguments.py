"""Arguments that several owner commands share, and how their values are written."""

from __future__ import annotations

import argparse
import base64
import binascii
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from cbit.cli.parser import Parser
from cbit.owner.files import read_limited
from cbit.spec.errors import WireError

if TYPE_CHECKING:  # each reader loads what it reads: `measure` shares some of them, and is in a hurry
    from pathlib import Path
    from uuid import UUID

    from cbit.crypto.session import TransportKeys
    from cbit.owner.receipt import SessionRecord
    from cbit.owner.verify.chain import Chain, Parts
    from cbit.spec.amd_certificate import AmdCert
    from cbit.spec.policy import ApiVersion
    from cbit.spec.session import MeasureBlob

SIMULATED: Final = "SIMULATED"  #: the mark on everything that stands under a root that is not AMD's


def file_path(text: str) -> Path:
    """Read the name of a file."""
    from pathlib import Path

    return Path(text)


def add_trust(parser: Parser) -> None:
    """Declare --ca and --trust."""
    parser.add_argument(
        "--ca",
        type=file_path,
        action="append",
        default=[],
        metavar="FILE",
        help="more certificates, such as AMD's ask_ark.cert; adds certificates, never trust",
    )
    parser.add_argument(
        "--trust",
        type=file_path,
        action="append",
        default=[],
        metavar="ROOT",
        help="the ARK of an emulator that you trust besides AMD's pinned roots",
    )


def chain_and_roots(paths: list[Path], args: Namespace) -> tuple[Chain, list[AmdCert]]:
    """Read the chain that the arguments name, and the roots that they trust."""
    from cbit.owner.verify.chain import whole

    parts, roots = parts_and_roots(paths, args)
    return whole(parts), roots


def parts_and_roots(paths: list[Path], args: Namespace) -> tuple[Parts, list[AmdCert]]:
    """Read what is there of the chain that the arguments name, and the roots that they trust."""
    from cbit.owner.verify.chain import read_parts
    from cbit.owner.verify.files import Piece
    from cbit.owner.verify.roots import read_root
    from cbit.spec.certificate import Usage

    files = [(path, read_limited(path)) for path in args.trust]
    roots = [read_root(data, source=path.name) for path, data in files]
    pieces = [Piece(Usage.ARK, data, path.name) for path, data in files]
    return read_parts(paths, ca=args.ca, roots=pieces), roots


def policy(text: str) -> int:
    """Read a policy: numbers and names of bits, joined by ``|`` ("0x1", "NODBG|NOKS", "NODBG|0x18000000")."""
    from cbit.spec.policy import GuestPolicy, Policy

    word = 0
    for term in text.split("|"):
        name = term.strip().upper()
        word |= int(Policy[name]) if name in Policy.__members__ else _number(term)
    try:
        return int(GuestPolicy.parse(word))
    except WireError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(term: str) -> int:
    from cbit.spec.policy import Policy

    try:
        return int(term.strip(), 0)
    except ValueError:
        names = ", ".join(Policy.__members__)
        raise argparse.ArgumentTypeError(f"{term.strip()!r} is neither a number nor one of {names}") from None


def byte(text: str) -> int:
    """Read a number that fits one byte."""
    number = _plain(text)
    if not 0 <= number <= 0xFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not in 0..255")
    return number


def _plain(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def api_version(text: str) -> ApiVersion:
    """Read a version such as 0.24."""
    from cbit.spec.policy import ApiVersion

    major, _, minor = text.partition(".")
    return ApiVersion(byte(major), byte(minor))


def measure_blob(text: str) -> MeasureBlob:
    """Read base64(MEASURE ‖ MNONCE), as hypervisors print it."""
    from cbit.spec.session import MeasureBlob

    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise argparse.ArgumentTypeError("not base64") from None
    if len(raw) != MeasureBlob.SIZE:
        raise argparse.ArgumentTypeError(f"{len(raw)} bytes, must be {MeasureBlob.SIZE}: MEASURE then MNONCE")
    return MeasureBlob.parse(raw)


def entry(text: str) -> tuple[UUID, Path]:
    """Read GUID:FILE."""
    from uuid import UUID

    guid, colon, name = text.partition(":")
    try:
        parsed = UUID(guid)
    except ValueError:
        parsed = None
    if parsed is None or not colon or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not GUID:FILE")
    return parsed, file_path(name)


def transport_keys(path: Path) -> TransportKeys:
    """Read TEK then TIK; the bytes appear in no message.

    Raises:
        WireError: not 32 bytes.
    """
    from cbit.crypto.session import TransportKeys

    data = read_limited(path)
    if len(data) != 32:
        raise WireError(f"{path.name}: transport keys have 32 bytes (TEK then TIK), not {len(data)}")
    return TransportKeys.parse(data)


def session_record(path: Path, keys: TransportKeys) -> SessionRecord | None:
    """Read the record of a session that lies beside its keys; None if there is none.

    Raises:
        WireError, BadMeasurement: it was edited, or is another session's.
    """
    from cbit.owner import files
    from cbit.owner.receipt import SessionRecord

    beside = path.with_name(files.SESSION_RECORD)
    return SessionRecord.from_json(read_limited(beside), keys.tik) if beside.is_file() else None
