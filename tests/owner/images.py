"""Firmware images that announce what a test wants, and real ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import UUID

import pytest

from cbit.owner.measure import Kernel
from cbit.spec import firmware_table, sev_metadata
from cbit.spec.firmware_table import AP_RESET, HASH_TABLE, SEV_METADATA, SEV_SECRET, Area
from cbit.spec.sev_metadata import MetadataSection, SectionType

OVMF = Path("/usr/share/ovmf/OVMF.fd")
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE.fd")
OVMF_CODE_4M = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS.fd")

RESET = 0x0080B004
HASHES = Area(0x810C00, 0x400)
NO_AREA = Area(0, 0)
KERNEL = Kernel(kernel=b"a kernel" * 900, initrd=b"an initrd" * 700, cmdline="console=ttyS0 root=/dev/vda")

#: launch-inputs.md §7.3: AmdSev 202405.
SECTIONS = tuple(
    MetadataSection(base=base, size=size, kind=SectionType(kind))
    for base, size, kind in (
        (0x800000, 0x9000, 1),
        (0x80A000, 0x3000, 1),
        (0x80D000, 0x1000, 2),
        (0x80E000, 0x1000, 3),
        (0x80F000, 0x1000, 4),
        (0x810000, 0x1000, 0x10),
        (0x811000, 0xF000, 1),
    )
)

#: The same, with a SECRETS section of two pages and a CPUID section of three.
LONG = (
    *SECTIONS[:2],
    SECTIONS[2].replace(base=0x900000, size=0x2000),
    SECTIONS[3].replace(base=0x902000, size=0x3000),
    *SECTIONS[4:],
)


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def an_image(
    *,
    size: int = 0x4000,
    hashes: Area = HASHES,
    reset: int | None = RESET,
    sections: tuple[MetadataSection, ...] | bytes | None = SECTIONS,
    fill: bytes = b"\x90",
    reset_code: bytes = b"\xe9\xfe\xff" + bytes(13),
) -> bytes:
    """An image of some size with a firmware table; what is None is not in it."""
    metadata = sections if isinstance(sections, bytes) else sev_metadata.build(sections or ())
    entries: dict[UUID, bytes] = {} if reset is None else {AP_RESET: words(reset)}
    entries |= {SEV_SECRET: words(0x810000, 0xC00), HASH_TABLE: words(hashes.base, hashes.size)}
    if sections is not None:
        entries[SEV_METADATA] = words(0)  # of the same size as what replaces it
        distance = len(metadata) + len(firmware_table.build(entries)) + 32
        entries[SEV_METADATA] = words(distance)
    table = firmware_table.build(entries)
    tail = (metadata if sections is not None else b"") + table + bytes(16) + reset_code
    return (fill * size)[: size - len(tail)] + tail


def installed(path: Path) -> bytes:
    if not path.is_file():
        pytest.skip(f"{path} is not here: apt install ovmf")
    return path.read_bytes()


#: Package ovmf 2022.11-6+deb12u2: SHA-256 of the files for which digests are known from elsewhere.
KNOWN = {
    OVMF: "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
    OVMF_CODE_4M: "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
}


def debian_12s(path: Path) -> bytes:
    """The image of Debian 12; another release's skips aloud."""
    image = installed(path)
    if hashlib.sha256(image).hexdigest() != KNOWN[path]:
        pytest.skip(f"{path} is not that of ovmf 2022.11-6+deb12u2, for which the digests are known")
    return image


def with_hash_area(firmware: bytes, area: Area = HASHES) -> bytes:
    """A copy whose empty HASH_TABLE entry names an area, as AmdSev builds do."""
    at = firmware.rindex(HASH_TABLE.bytes_le) - 2 - 8
    return firmware[:at] + words(area.base, area.size) + firmware[at + 8 :]
