"""Find certificates in files: the ecosystem's names, and blobs told apart by their length.

A length tells which certificates a file holds and in which order, because every certificate has a fixed size
and the usual blobs have one order (``LAYOUTS``).  What then stands at a place and is not what belongs there
is found by the verification and named.  Base64, as QEMU and libvirt hand certificates out, is the same bytes.

Paper: sev-crypto.md §4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cbit.owner.errors import Missing, Untrusted
from cbit.owner.files import from_base64, read_limited
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import CERT_SIZE, SevCert, Usage
from cbit.spec.errors import WireError

#: Names whose single certificate has a known role.
ROLES: Final[Mapping[str, Usage]] = MappingProxyType(
    {
        f"{usage.name.lower()}.cert": usage
        for usage in (Usage.PDH, Usage.PEK, Usage.OCA, Usage.CEK, Usage.ASK, Usage.ARK)
    }
)
#: Names that are looked for in a folder.
NAMES: Final = (*ROLES, "ask_ark.cert", "cert_chain.cert")

_EXPORT: Final = (Usage.PEK, Usage.OCA, Usage.CEK)
_PLATFORM: Final = (Usage.PDH, *_EXPORT)
_SIGNED: Final = (832, 1600)  # an ARK or ASK of 2048 and of 4096 bits
_UNSIGNED: Final = (576, 1088)  # without the signature, as the early Naples ARK was published


def _layouts() -> dict[int, tuple[tuple[Usage, int], ...]]:
    layouts = {}
    for amd in _SIGNED:
        ca = ((Usage.ASK, amd), (Usage.ARK, amd))
        for sev in ((), _EXPORT, _PLATFORM):
            layout = (*((usage, CERT_SIZE) for usage in sev), *ca)
            layouts[sum(size for _, size in layout)] = layout
    for sev in (_EXPORT, _PLATFORM):
        layouts[len(sev) * CERT_SIZE] = tuple((usage, CERT_SIZE) for usage in sev)
    return layouts


#: Length of a blob to the certificates in it.
LAYOUTS: Final[Mapping[int, tuple[tuple[Usage, int], ...]]] = MappingProxyType(_layouts())


@dataclass(frozen=True, slots=True)
class Piece:
    """One certificate as it was found: the role of its place, the bytes, and where they come from."""

    role: Usage
    raw: bytes
    source: str

    def sev(self) -> SevCert:
        """Read it as the firmware would; the canonical rules look at ``raw``."""
        return SevCert.parse(self.raw, canonical=False)

    def amd(self) -> AmdCert:
        """Read it as an ARK or ASK.

        Raises:
            Untrusted: the size is right and the content is no such certificate.
        """
        try:
            return AmdCert.parse(self.raw)
        except WireError as error:
            raise Untrusted([f"{self.role.name} ({self.source}): {error}"]) from None


def pieces_of(data: bytes, *, source: str) -> list[Piece]:
    """Take the certificates of one file apart.

    Args:
        data: content of the file.
        source: its name: a name of ``ROLES`` gives a single certificate its role, else its usage field does.

    Raises:
        WireError: no certificate and no usual blob has this length.
    """
    if b"-----BEGIN" in data[:64]:
        raise WireError(
            f"{source}: an X.509 certificate (PEM) is of a SEV-SNP chain; a SEV session wants the platform's "
            "SEV certificates (pdh.cert, pek.cert, oca.cert, cek.cert, ask_ark.cert)"
        )
    data = from_base64(data) or data
    if len(data) in (CERT_SIZE, *_SIGNED, *_UNSIGNED):
        return [Piece(ROLES.get(Path(source).name) or _usage_of(data, source), data, source)]
    layout = LAYOUTS.get(len(data))
    if layout is None:
        raise WireError(
            f"{source}: {len(data)} bytes are no certificate ({CERT_SIZE}; ARK and ASK {_SIGNED[0]} or "
            f"{_SIGNED[1]}) and no usual blob of them (PEK OCA CEK, PDH PEK OCA CEK, ASK ARK, or these "
            "joined); the file is cut short, or something else"
        )
    pieces, start = [], 0
    for usage, size in layout:
        pieces.append(Piece(usage, data[start : start + size], f"{source} at {start:#x}"))
        start += size
    return pieces


def _usage_of(data: bytes, source: str) -> Usage:
    offset, family = (0x08, _PLATFORM) if len(data) == CERT_SIZE else (0x24, (Usage.ARK, Usage.ASK))
    number = int.from_bytes(data[offset : offset + 4], "little")
    found = next((usage for usage in family if usage == number), None)
    if found is None:
        raise WireError(
            f"{source}: usage {number:#x} is none of {', '.join(u.name for u in family)}; a file that is "
            f"named after its role ({', '.join(ROLES)}) is judged by its name"
        )
    return found


def read(paths: Iterable[Path]) -> list[Piece]:
    """Read files, and folders that hold files under the usual names.

    Raises:
        Missing: a folder has none of the usual names.
        WireError: a file is not one of certificates.
        OSError: a file cannot be read.
    """
    pieces: list[Piece] = []
    for path in paths:
        for file in _files_of(path):
            pieces += pieces_of(read_limited(file), source=file.name)
    return pieces


def _files_of(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    files = [path / name for name in NAMES if (path / name).is_file()]
    if not files:
        raise Missing(f"{path}: none of {', '.join(NAMES)} is in this folder")
    return files
