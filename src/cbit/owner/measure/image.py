"""A firmware image, and what it announces about itself.

Paper: launch-inputs.md §2 (firmware table), §7.3 (SEV metadata).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Final

from cbit.owner.measure.inputs import Mode, Sections
from cbit.spec import firmware_table, kernel_hashes, sev_metadata
from cbit.spec.address import BLOCK, PAGE
from cbit.spec.firmware_table import FirmwareTable
from cbit.spec.frozen import Frozen
from cbit.spec.sev_metadata import MetadataSection, SectionType

TOP: Final = 1 << 32  #: the image ends here in guest-physical memory
ONE_PAGE: Final = (SectionType.SECRETS, SectionType.CPUID)  #: sections of which a guest needs one, of a page

_NO_CODE: Final = (
    "nothing is at its reset vector (the last 16 bytes), as in a variable store (OVMF_VARS), which no launch "
    "measures: give the code image"
)
_NO_START: Final = (
    "nothing is at its reset vector (the last 16 bytes), where the first vCPU begins: a guest of it can be "
    "launched and measured, and does not start"
)


class Image(Frozen):
    """pflash unit 0, byte for byte.

    Attributes:
        data: the file.
        name: what to call it.
    """

    data: bytes
    name: str = "firmware"

    @property
    def base(self) -> int:
        """Guest-physical address of its first byte."""
        return TOP - len(self.data)

    @cached_property
    def table(self) -> FirmwareTable:
        """Its GUIDed table.

        Raises:
            WireError: a malformed table.
        """
        return firmware_table.parse(self.data)

    @cached_property
    def sections(self) -> tuple[MetadataSection, ...] | None:
        """Its SEV metadata; None if it announces none.

        Raises:
            WireError: malformed metadata.
        """
        return sev_metadata.parse(self.data, self.table)

    @property
    def starts(self) -> bool:
        """Whether there is something at the reset vector, where the first vCPU begins."""
        return self.data[-BLOCK:] not in {bytes(BLOCK), b"\xff" * BLOCK}

    def unusable(self, mode: Mode, *, kernel: bool) -> Iterator[str]:
        """Give every reason why no host can launch this image in a mode.

        Args:
            mode: how the guest is to be protected.
            kernel: whether a kernel is to be measured with it.

        Raises:
            WireError: a malformed table or malformed metadata.
        """
        unit = PAGE if mode is Mode.SNP else BLOCK
        if not self.data or len(self.data) % unit or len(self.data) > TOP:
            yield (
                f"a firmware image of {len(self.data)} bytes: it must be a multiple of {unit}, and not empty"
            )
            return
        if mode is Mode.SEV and not self.starts and not self.table.entries:
            yield f"this is no firmware image of a guest: {_NO_CODE}"
        if mode is not Mode.SEV and self.table.ap_reset is None:
            yield (
                f"the firmware image has no SEV-ES reset vector (GUID {firmware_table.AP_RESET}): "
                "hosts refuse to start it with encrypted registers; "
                + ("take an OVMF build with SEV-ES support" if self.starts else _NO_CODE)
            )
        if kernel:
            yield from self._unusable_for_kernels()
        if mode is Mode.SNP:
            yield from self._unusable_for_snp(kernel=kernel)

    def _unusable_for_kernels(self) -> Iterator[str]:
        area = self.table.hash_area
        if not area:
            yield (
                "the firmware image announces no area for kernel hashes (GUID "
                f"{firmware_table.HASH_TABLE}): it checks no kernel, so measuring one would prove nothing; "
                "take a build that does (OvmfPkg/AmdSev), or leave the kernel out"
            )
        elif area.size < kernel_hashes.TABLE_SIZE:
            yield (
                f"the image's area for kernel hashes has {area.size} bytes, "
                f"{kernel_hashes.TABLE_SIZE} are needed"
            )

    def _unusable_for_snp(self, *, kernel: bool) -> Iterator[str]:
        if self.sections is None:
            yield (
                "the firmware image has no SEV metadata section (GUID "
                f"{firmware_table.SEV_METADATA}): it does not say which pages an SNP launch adds, and hosts "
                "refuse it; of Debian's and Ubuntu's builds the 4 MiB images lack it, OVMF.fd has it"
            )
            return
        for section in self.sections:
            if section.base % PAGE or section.size % PAGE or not section.size:
                yield (
                    f"the image's metadata section at {section.base:#x} with {section.size:#x} bytes "
                    "is not made of whole pages"
                )
        yield from self._overlaps(self.sections)
        if not kernel:
            return
        places = [s for s in self.sections if s.kind is SectionType.KERNEL_HASHES]
        if [s.size for s in places] != [PAGE]:
            yield (
                f"the image's metadata has {len(places)} sections for kernel hashes, one of a page is wanted "
                "(KERNEL_HASHES): an SNP launch of it measures no kernel; take an OvmfPkg/AmdSev build"
            )
        elif (self.table.hash_area.base % PAGE) + kernel_hashes.TABLE_SIZE > PAGE:
            yield f"the image's area for kernel hashes at {self.table.hash_area.base:#x} crosses a page"
        elif places[0].base != self.table.hash_area.base // PAGE * PAGE:
            yield (
                f"the image's section for kernel hashes is at {places[0].base:#x}, and it looks for them at "
                f"{self.table.hash_area.base:#x}, in another page: what is measured is not what it checks"
            )

    def _overlaps(self, sections: Iterable[MetadataSection]) -> Iterator[str]:
        """Name pages that a launch would add twice: once added they are the guest's, and refused.

        The image reaches up to 4 GiB, so that whatever goes beyond runs into it.
        """
        ranges = [(s.base, s.base + s.size, f"its {s.kind.name} section at {s.base:#x}") for s in sections]
        ranges.append((self.base, TOP, f"the image itself at {self.base:#x}"))
        for (_, end, lower), (start, _, upper) in pairwise(sorted(ranges)):
            if end > start:
                yield f"of the image, {lower} reaches to {end:#x}, over {upper}: no page can be added twice"

    def lacks(self, mode: Mode, *, kernel: bool) -> Iterator[str]:
        """Give what a launch of this image will not do, and what that means; none of it stops a launch.

        Raises:
            WireError: a malformed table or malformed metadata.
        """
        if not self.table.entries:
            yield "no firmware table: it says nothing about SEV; is it a firmware image of a guest at all?"
            return
        if not self.starts:
            yield _NO_START
        if not self.table.hash_area and not kernel:
            yield (
                "no area for kernel hashes: a kernel that the host loads directly is not measured; "
                "boot from an encrypted disk, or take a build that checks kernels (OvmfPkg/AmdSev)"
            )
        if mode is not Mode.SNP and not self.table.secret_area:
            yield "no area for secrets: the host must be told an address when it injects one"
        if mode is Mode.SNP and self.sections is not None:
            for kind in ONE_PAGE:
                sizes = [section.size for section in self.sections if section.kind is kind]
                if not sizes:
                    yield f"no {kind.name} section in its metadata: the guest will not find that page"
                elif len(sizes) > 1:
                    yield f"{len(sizes)} {kind.name} sections in its metadata: the guest looks at one of them"
                elif sizes[0] != PAGE:
                    yield (
                        f"its {kind.name} section has {sizes[0] // PAGE} pages: hosts add them all, "
                        f"sev-snp-measure counts the first alone ({Sections.FIRST_PAGE})"
                    )
