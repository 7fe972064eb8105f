"""The SEV metadata of a firmware image: pages that the hypervisor adds to an SNP launch, and as what.

    'ASEV' | length u32 | version u32 = 1 | count u32 | count × { base u32, size u32, type u32 }

The firmware table (GUID dc886566…) says how far before the end of the file it starts.

Paper: launch-inputs.md §2 (entry), §7.3 (block and section types).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from cbit.spec.errors import WireError
from cbit.spec.firmware_table import SEV_METADATA, FirmwareTable
from cbit.spec.wire import Wire, at

MAGIC: Final = b"ASEV"


class SectionType(IntEnum):
    """What a section's pages become."""

    SNP_SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


class MetadataHeader(Wire, size=0x10):
    """Head of the block; its length counts itself and the sections.

    Paper: launch-inputs.md §7.3.
    """

    magic: bytes = at(0x0, 4, default=MAGIC)
    length: int = at(0x4, 4)
    version: int = at(0x8, 4, default=1)
    count: int = at(0xC, 4)


class MetadataSection(Wire, size=0xC):
    """One range of guest-physical memory.

    Paper: launch-inputs.md §7.3.
    """

    base: int = at(0x0, 4)
    size: int = at(0x4, 4)
    kind: SectionType = at(0x8, 4)


def parse(image: bytes, table: FirmwareTable) -> tuple[MetadataSection, ...] | None:
    """Read the sections that an image announces, in file order; None if it announces none.

    Raises:
        WireError: the entry or the block is malformed, or a section has a type that is not known.
    """
    if SEV_METADATA not in table.entries:
        return None
    entry = table.entries[SEV_METADATA]
    if len(entry) != 4:
        raise WireError(f"SEV metadata: its entry in the firmware table has {len(entry)} bytes, must have 4")
    distance = int.from_bytes(entry, "little")
    if not MetadataHeader.SIZE <= distance <= len(image):
        raise WireError(f"SEV metadata: {distance} bytes before the end of an image of {len(image)} bytes")
    start = len(image) - distance
    header = MetadataHeader.parse(image[start : start + MetadataHeader.SIZE])
    if header.magic != MAGIC:
        raise WireError(f"SEV metadata: starts with {header.magic.hex()}, must be {MAGIC.hex()} ('ASEV')")
    if header.version != 1:
        raise WireError(f"SEV metadata: version {header.version}, 1 is known")
    length = MetadataHeader.SIZE + header.count * MetadataSection.SIZE
    if header.length != length or length > distance:
        raise WireError(
            f"SEV metadata: length {header.length} with {header.count} sections, "
            f"must be {length} and fit the {distance} bytes up to the end of the image"
        )
    return tuple(
        MetadataSection.parse(image[at : at + MetadataSection.SIZE])
        for at in range(start + MetadataHeader.SIZE, start + length, MetadataSection.SIZE)
    )


def build(sections: tuple[MetadataSection, ...]) -> bytes:
    """Lay out a block."""
    length = MetadataHeader.SIZE + len(sections) * MetadataSection.SIZE
    return bytes(MetadataHeader(length=length, count=len(sections))) + b"".join(map(bytes, sections))
