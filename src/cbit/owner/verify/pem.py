r"""Take a file of X.509 certificates or revocation lists apart: PEM, DER, several of them, a host's table.

Text around PEM blocks and the form of line ends do not matter; inside a block every character does.
A file that ends inside a block, or in which begin and end lines do not pair up, is refused whole.
PEM may stand in the strings of a JSON object, as a provider's metadata service answers; a host's table may
stand behind the report with which it came.
Certificates and revocation lists may share a file; ``aside_of`` tells who asks for one of them what else it
holds.

Paper: launch-inputs.md §9 (PEM chains, certificate table).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from cbit.owner.files import from_base64
from cbit.owner.verify import der
from cbit.spec.errors import WireError
from cbit.spec.snp_report import (
    CERT_GUIDS,
    CRL_GUID,
    REPORT_SIZE,
    looks_like_cert_table,
    parse_cert_table,
)

CERTIFICATE: Final = "CERTIFICATE"
CRL: Final = "X509 CRL"
UNKNOWN: Final = "thing that is not known here"  #: what a host's table holds under any other GUID

_TABLE_LABELS: Final = {**dict.fromkeys(CERT_GUIDS, CERTIFICATE), CRL_GUID: CRL}
_SHARING: Final = {CERTIFICATE, CRL, UNKNOWN}  # what may stand beside what is wanted

_BEGIN: Final = b"-----BEGIN "
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----([^-]*)-----END ([A-Z0-9 ]{1,64})-----")


@dataclass(frozen=True, slots=True)
class Block:
    """The DER bytes of one thing in a file, what the file calls it, and where it stood."""

    label: str
    raw: bytes
    source: str


def is_x509(data: bytes) -> bool:
    """Say whether a file looks like X.509 at all: PEM, DER or a certificate table."""
    return _BEGIN in data or data[:1] == b"\x30" or bool(_table(data))


def _table(data: bytes) -> bytes:
    """Return the certificate table that a file is, or that stands behind a report in it; else nothing."""
    found = (part for part in (data, data[REPORT_SIZE:]) if looks_like_cert_table(part))
    return next(found, b"")


def blocks_of(data: bytes, *, label: str, source: str) -> list[Block]:
    """Take one file apart, and return what is wanted of it.

    Args:
        data: its content.
        label: what it must hold, and what DER without a label is taken for.
        source: its name.

    Raises:
        WireError: not such a file, cut short, it has nothing of what is wanted, or holds what no such file
            should (a private key, for one).
    """
    found = _blocks(data, label, source)
    wanted = [block for block in found if block.label == label]
    for block in found:
        if "PRIVATE KEY" in block.label:
            raise WireError(f"{block.source}: holds a private key; no certificate file should")
        if block.label != label and (not wanted or block.label not in _SHARING):
            raise WireError(f"{block.source}: holds a {block.label}, a {label} is wanted")
    return wanted


def aside_of(data: bytes, *, label: str, source: str) -> list[str]:
    """Name what a file holds besides what is wanted, and what ``blocks_of`` therefore leaves aside.

    Raises:
        WireError: as ``blocks_of``.
    """
    found = _blocks(data, label, source)
    return [f"{block.source}: a {block.label}, left aside" for block in found if block.label != label]


def _blocks(data: bytes, label: str, source: str) -> list[Block]:
    """Take one file apart, with everything that is in it."""
    if _BEGIN in data:
        found = _pem(_plain(data), source)
    elif table := _table(data):
        found = [
            Block(_TABLE_LABELS.get(guid, UNKNOWN), raw, f"{source} under {guid}")
            for guid, raw in parse_cert_table(table).items()
        ]
    elif data[:1] == b"\x30":
        raws = der.split(data, what=source)
        names = [source] if len(raws) == 1 else [f"{source} #{n}" for n in range(1, len(raws) + 1)]
        found = [Block(label, raw, name) for raw, name in zip(raws, names, strict=True)]
    else:
        raise WireError(
            f"{source}: neither PEM nor DER nor a certificate table; cut short, or something else"
        )
    return found


def _plain(data: bytes) -> bytes:
    """Take PEM out of the strings of a JSON object, if that is what a file is."""
    if not data.lstrip().startswith(b"{"):
        return data
    try:
        values = json.loads(data).values()
    except (ValueError, RecursionError):
        return data
    return "\n".join(value for value in values if isinstance(value, str)).encode()


def _pem(data: bytes, source: str) -> list[Block]:
    matches = list(_BLOCK.finditer(data))
    marks = data.count(_BEGIN), data.count(b"-----END ")
    if marks != (len(matches), len(matches)):
        raise WireError(
            f"{source}: {marks[0]} PEM blocks begin and {marks[1]} end, {len(matches)} are whole: cut short, "
            "or not PEM"
        )
    found = []
    for number, match in enumerate(matches, 1):
        begin, body, end = match.groups()
        where = source if len(matches) == 1 else f"{source} #{number}"
        if begin != end:
            raise WireError(f"{where}: begins as {begin.decode()}, ends as {end.decode()}")
        found.append(Block(begin.decode(), _decoded(body, where), where))
    return found


def _decoded(body: bytes, where: str) -> bytes:
    raw = from_base64(body)
    if raw is None:
        raise WireError(f"{where}: the text of the PEM block is not base64")
    return raw
