"""Find SNP certificates and reports in files: the tools' names, and what each of them writes.

Paper: launch-inputs.md §8 (sizes), §9 (PEM, DER, certificate table).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cbit.owner.errors import Missing
from cbit.owner.files import from_base64, read_limited
from cbit.owner.verify import files
from cbit.owner.verify.pem import CERTIFICATE, aside_of, is_x509
from cbit.owner.verify.snp_chain import certificates_of
from cbit.owner.verify.x509 import Certificate
from cbit.spec import attestation_report, snp_report
from cbit.spec.errors import WireError

#: Names that are looked for in a folder.
NAMES: Final = (
    *(
        f"{stem}{suffix}"
        for stem in ("vcek", "vlek", "ask", "asvk", "ark", "ask_ark", "asvk_ark", "cert_chain")
        for suffix in (".pem", ".der", ".crt")
    ),
    "cert_chain",
)

_SIZES: Final = (snp_report.REPORT_SIZE, attestation_report.REPORT_SIZE)
_HCL_MAGIC: Final = b"HCLA"  # Azure's wrapper, read from a TPM's NV index
_HCL_HEADER: Final = 32


def holds_snp(paths: Iterable[Path]) -> bool:
    """Say whether files and folders hold X.509 certificates rather than SEV's own.

    Raises:
        ValueError: they hold both, so that no one chain is meant.
        OSError: a file cannot be read.
    """
    found = {kind for path in paths for kind in _kinds(path)}
    if len(found) > 1:
        raise ValueError("SEV certificates and X.509 certificates (SNP) together: verify one chain at a time")
    return found == {True}


def _kinds(path: Path) -> set[bool]:
    if not path.is_dir():
        return {is_x509(read_limited(path))}
    sev = any((path / name).is_file() for name in files.NAMES)
    snp = any((path / name).is_file() for name in NAMES)
    return {kind for kind, there in ((False, sev), (True, snp)) if there}


def read_certificates(paths: Iterable[Path]) -> list[Certificate]:
    """Read X.509 certificates from files, and from folders that hold them under the usual names.

    Raises:
        Missing: a folder has none of the usual names.
        WireError: a file is not one of certificates.
        OSError: a file cannot be read.
    """
    return [
        cert
        for path in paths
        for file in _files_of(path)
        for cert in certificates_of(read_limited(file), source=file.name)
    ]


def left_aside(paths: Iterable[Path]) -> list[str]:
    """Name what the files that ``read_certificates`` takes certificates from hold besides.

    Raises:
        Missing, WireError, OSError: as ``read_certificates``.
    """
    return [
        note
        for path in paths
        for file in _files_of(path)
        for note in aside_of(read_limited(file), label=CERTIFICATE, source=file.name)
    ]


def _files_of(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    found = [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise Missing(f"{path}: none of {', '.join(NAMES)} is in this folder")
    return found


def find_report(data: bytes, *, source: str, offset: int | None = None) -> bytes:
    """Find the report in a file: bare, as text, with what came along, in Azure's wrapper, or at an offset.

    What comes along is the head of the firmware's answer (MSG_REPORT_RSP: status, size, zeros), and the
    host's certificate table behind an extended report.

    Args:
        data: content of the file.
        source: its name.
        offset: where an SNP report starts in it, in bytes; None for the usual forms.

    Returns:
        0x4A0 bytes of an SNP report, or 0xD0 of a SEV report; the length tells which.

    Raises:
        WireError: there is none.
    """
    if offset is None and data.startswith(_HCL_MAGIC):
        offset = _HCL_HEADER
    if offset is not None:
        raw = data[offset : offset + snp_report.REPORT_SIZE]
        if len(raw) != snp_report.REPORT_SIZE:
            raise WireError(f"{source}: {len(data)} bytes hold no whole report at offset {offset}")
        return raw
    candidates = (data, _from_hex(data), from_base64(data) or b"", _answered(data), _extended(data))
    if (found := next((raw for raw in candidates if len(raw) in _SIZES), None)) is not None:
        return found
    raise WireError(
        f"{source}: {len(data)} bytes are no report ({_SIZES[0]} of SNP, {_SIZES[1]} of SEV, hex or base64); "
        "where it stands inside something else, give --offset"
    )


def _from_hex(data: bytes) -> bytes:
    try:
        return bytes.fromhex(data.decode("ascii").strip().removeprefix("0x").removeprefix("0X"))
    except ValueError:
        return b""


def _answered(data: bytes) -> bytes:
    """Take the report out of the firmware's answer, which the kernel hands on in a larger buffer."""
    size = snp_report.REPORT_SIZE
    head = bytes(4) + size.to_bytes(4, "little") + bytes(24)
    rest = data[len(head) + size :]
    return data[len(head) : len(head) + size] if data.startswith(head) and not any(rest) else b""


def _extended(data: bytes) -> bytes:
    """Take the report from before the certificate table with which it came."""
    table = data[snp_report.REPORT_SIZE :]
    return data[: snp_report.REPORT_SIZE] if snp_report.looks_like_cert_table(table) else b""
