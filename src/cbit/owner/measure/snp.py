"""The launch digest of SNP: a chain of pages.

    LD = 48 zero bytes; for each page: LD = SHA-384( LD ‖ SHA-384(page) or zeros ‖ kind ‖ address )

Address and kind of every page are part of it, so the order counts: the image, the sections of its metadata,
the VMSAs.

Paper: launch-inputs.md §7.1 (chain), §7.2 (order), §7.3 (sections), §7.4 (kernel hashes page).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from cbit.owner.measure.image import ONE_PAGE, Image
from cbit.owner.measure.inputs import Sections
from cbit.owner.vmsa import Hypervisor
from cbit.spec.address import PAGE
from cbit.spec.frozen import Frozen
from cbit.spec.sev_metadata import MetadataSection, SectionType
from cbit.spec.snp_launch import DIGEST_SIZE, VMSA_GPA, PageInfo, PageType

NOTHING: Final = bytes(DIGEST_SIZE)

#: As what the pages of a section are launched; KERNEL_HASHES becomes NORMAL when there are hashes.
LAUNCHED_AS: Final[Mapping[SectionType, PageType]] = MappingProxyType(
    {
        SectionType.SNP_SEC_MEM: PageType.ZERO,
        SectionType.SECRETS: PageType.SECRETS,
        SectionType.CPUID: PageType.CPUID,
        SectionType.SVSM_CAA: PageType.ZERO,
        SectionType.KERNEL_HASHES: PageType.ZERO,
    }
)


@cache
def _tail(kind: PageType) -> bytes:
    """The bytes of PAGE_INFO between the contents and the address."""
    info = PageInfo(digest_cur=NOTHING, contents=NOTHING, page_type=kind, gpa=0)
    return bytes(info)[PageInfo.FIELDS["length"].offset : PageInfo.FIELDS["gpa"].offset]


class Chain:
    """The running digest.

    Attributes:
        digest: after all that was added so far.
    """

    __slots__ = ("digest",)

    def __init__(self, digest: bytes = NOTHING) -> None:
        self.digest = digest

    def add_data(self, gpa: int, data: bytes) -> None:
        """Add pages whose contents are measured; the length is a multiple of a page."""
        sha384, digest, tail = hashlib.sha384, self.digest, _tail(PageType.NORMAL)
        view = memoryview(data)
        for offset in range(0, len(view), PAGE):
            contents = sha384(view[offset : offset + PAGE]).digest()
            digest = sha384(digest + contents + tail + (gpa + offset).to_bytes(8, "little")).digest()
        self.digest = digest

    def add_empty(self, kind: PageType, gpa: int, size: int) -> None:
        """Add pages of which only kind and address are measured."""
        sha384, digest, tail = hashlib.sha384, self.digest, NOTHING + _tail(kind)
        for address in range(gpa, gpa + size, PAGE):
            digest = sha384(digest + tail + address.to_bytes(8, "little")).digest()
        self.digest = digest

    def add_vmsas(self, pages: Iterable[bytes]) -> None:
        """Add the registers of vCPUs; equal pages are hashed once, for most vCPUs start alike."""
        known: dict[bytes, bytes] = {}
        end = _tail(PageType.VMSA) + VMSA_GPA.to_bytes(8, "little")
        for page in pages:
            contents = known.get(page) or known.setdefault(page, hashlib.sha384(page).digest())
            self.digest = hashlib.sha384(self.digest + contents + end).digest()


class Region(Frozen):
    """Pages that a launch adds: their kind, address, size, and their contents where these are measured."""

    kind: PageType
    gpa: int
    size: int
    data: bytes | None = None
    section: SectionType | None = None


def kernel_page(table: bytes, area_base: int) -> bytes:
    """Lay out the page of kernel hashes: zeros, with the table where the image looks for it."""
    return (bytes(area_base % PAGE) + table).ljust(PAGE, b"\x00")


def regions(
    image: Image, table: bytes | None, *, hypervisor: Hypervisor, sections: Sections = Sections.WHOLE
) -> Iterator[Region]:
    """Give all that is launched before the VMSAs, in the order of a hypervisor.

    Args:
        image: the firmware; without metadata it is launched alone.
        table: the kernel-hash table, if there is one.
        hypervisor: whose order and page types.
        sections: which pages of SECRETS and CPUID sections.

    Raises:
        WireError: malformed metadata.
    """
    yield Region(PageType.NORMAL, image.base, len(image.data), image.data)
    for section in _ordered(image.sections or (), hypervisor):
        if section.kind is SectionType.KERNEL_HASHES and table is not None:
            page = kernel_page(table, image.table.hash_area.base)
            yield Region(PageType.NORMAL, section.base, len(page), page, section.kind)
            continue
        kind = LAUNCHED_AS[section.kind]
        if hypervisor is Hypervisor.GCE and section.kind is SectionType.SNP_SEC_MEM:
            kind = PageType.UNMEASURED
        first = sections is Sections.FIRST_PAGE and section.kind in ONE_PAGE
        yield Region(kind, section.base, PAGE if first else section.size, None, section.kind)


def section_pages_differ(image: Image) -> bool:
    """Say whether it matters which pages of SECRETS and CPUID sections count.

    Raises:
        WireError: malformed metadata.
    """
    return any(section.kind in ONE_PAGE and section.size != PAGE for section in image.sections or ())


def _ordered(sections: Iterable[MetadataSection], hypervisor: Hypervisor) -> list[MetadataSection]:
    """Put the sections into the order of the launch: EC2 adds the CPUID page last, others as in the file."""
    if hypervisor in {Hypervisor.EC2, Hypervisor.EC2_RDX0}:
        return sorted(sections, key=lambda section: section.kind is SectionType.CPUID)
    return list(sections)


def add_regions(chain: Chain, parts: Iterable[Region]) -> None:
    """Add regions to a chain."""
    for region in parts:
        if region.data is None:
            chain.add_empty(region.kind, region.gpa, region.size)
        else:
            chain.add_data(region.gpa, region.data)


def digest(
    image: Image,
    *,
    table: Callable[[], bytes] | None,
    vmsas: Iterable[bytes],
    hypervisor: Hypervisor,
    sections: Sections = Sections.WHOLE,
) -> bytes:
    """Compute the launch digest, 48 bytes.

    Args:
        image: the firmware.
        table: gives the kernel-hash table; asked only when the image is hashed, so that the kernel can be
            hashed meanwhile.
        vmsas: the registers of each vCPU.
        hypervisor: whose order and page types.
        sections: which pages of SECRETS and CPUID sections.

    Raises:
        WireError: malformed metadata.
    """
    chain = Chain()
    chain.add_data(image.base, image.data)
    parts = regions(image, None if table is None else table(), hypervisor=hypervisor, sections=sections)
    next(parts)  # the image, which is in the chain
    add_regions(chain, parts)
    chain.add_vmsas(vmsas)
    return chain.digest
