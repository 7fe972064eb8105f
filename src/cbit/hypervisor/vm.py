"""A virtual machine's memory: frames, nested tables, and what the hypervisor puts there.

Paper: memory-encryption.md §3 rule 6, §4.3, §6.2; launch-inputs.md §1 (where the image goes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.hypervisor.frames import OutOfMemory
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.nested_tables import NestedTables
from cbit.spec.address import GIB, PAGE, Gpa, Spa
from cbit.spec.errors import CbitError

TOP: Final = 4 * GIB  #: a firmware image ends here: the reset vector is 16 bytes below


class NoSuchMemory(CbitError):
    """A guest-physical address that the guest does not have."""


@dataclass(frozen=True, slots=True)
class Region:
    """Contiguous guest memory on contiguous frames."""

    gpa: Gpa
    frames: range

    @property
    def size(self) -> int:
        """Bytes."""
        return PAGE * len(self.frames)

    def __contains__(self, gpa: int) -> bool:
        return self.gpa <= gpa < self.gpa + self.size


class Vm:
    """Guest memory on one host.

    Mutable: its memory, and its ASID.

    Attributes:
        protection: how its memory is protected.
        tables: the nested tables, in DRAM.
        regions: what memory it has.
        c: whether the host uses the C-bit for this guest's memory.
        asid: what tags its accesses; a guest with SEV has none (0) until it is launched.
    """

    def __init__(self, host: Host, protection: Protection) -> None:
        self.host = host
        self.protection = protection
        self.regions: list[Region] = []
        self.c = protection is Protection.SME
        self._pages: set[Spa] = set()
        self.tables = NestedTables(host, encrypted=self.c)
        self.asid = 0
        if protection is not Protection.SEV:
            try:
                self.asid = host.plain_asids.take()
            except CbitError:
                self.tables.free()
                raise

    def add_memory(self, gpa: Gpa, size: int) -> Region:
        """Give the guest memory; its system-physical place is the host's choice.

        Raises:
            OutOfMemory: the host has not enough; the guest is as before.
            ValueError: not a page's address, nothing, or where the guest has memory already.
        """
        end = gpa + -(-size // PAGE) * PAGE
        if gpa % PAGE or gpa < 0 or size <= 0:
            raise ValueError(f"{size:#x} bytes of guest memory at {gpa:#x}: whole pages, one at least")
        if any(gpa < region.gpa + region.size and region.gpa < end for region in self.regions):
            raise ValueError(f"guest memory {gpa:#x}..{end - 1:#x} is there already")
        region = Region(gpa, self.host.frames.take(size))
        try:
            self.tables.map(gpa, region.frames, c=self.c)
        except OutOfMemory:
            self.tables.unmap(gpa, len(region.frames))
            self.host.frames.give_back(region.frames)
            raise
        self._change_hands()
        self.regions.append(region)
        return region

    def load(self, gpa: Gpa, data: bytes) -> None:
        """Write into guest memory as the hypervisor can: with C=0, or under SME with the host's key."""
        self.host.write(self.spa(gpa, len(data)), data, c=self.c)

    def load_firmware(self, image: bytes) -> Region:
        """Put a firmware image where the reset vector is (errors as ``add_memory``).

        Returns:
            The pages that hold it; the image itself starts at ``firmware_start(image)``.
        """
        start = firmware_start(image)
        region = self.add_memory(Gpa(start & -PAGE), TOP - (start & -PAGE))
        self.load(start, image)
        return region

    def spa(self, gpa: Gpa, length: int = 1) -> Spa:
        """Translate an address of one region, as the hypervisor's own bookkeeping has it.

        Raises:
            NoSuchMemory: no region holds the whole range.
        """
        for region in self.regions:
            if gpa in region and gpa + length <= region.gpa + region.size:
                return Spa(region.frames.start + gpa - region.gpa)
        raise NoSuchMemory(f"guest memory has nothing at {gpa:#x}..{gpa + max(length, 1) - 1:#x}")

    def take_page(self) -> Spa:
        """Take a frame for the hypervisor's records of this guest; it goes back with the guest's memory."""
        return Spa(self.take_run(PAGE).start)

    def take_run(self, length: int) -> range:
        """Take contiguous frames as ``take_page`` takes one; return their addresses."""
        frames = self.host.frames.take(length)
        self._pages.update(map(Spa, frames))
        return frames

    def give_back_page(self, page: Spa) -> None:
        """Give back what ``take_page`` gave; nothing happens the second time."""
        if page in self._pages:
            self._pages.remove(page)
            self.host.frames.give_back(range(page, page + PAGE, PAGE))

    def destroy(self) -> None:
        """Give everything back; what is in the frames stays until somebody overwrites it."""
        self._change_hands()
        for page in tuple(self._pages):
            self.host.forget(page)
            self.give_back_page(page)
        self.tables.free()
        for region in self.regions:
            self.host.frames.give_back(region.frames)
        self.regions.clear()
        if self.asid and self.protection is not Protection.SEV:
            self.host.plain_asids.give_back(self.asid)
            self.host.forget_use(self.asid)
        self.asid = 0

    def _change_hands(self) -> None:
        """Flush what caches hold of memory that enters or leaves a key's domain."""
        if self.protection is not Protection.NONE:
            self.host.flush_caches()


def firmware_start(image: bytes) -> Gpa:
    """Where an image starts, for it ends at 4 GiB.

    Raises:
        ValueError: no image, or none that fits below 4 GiB.
    """
    if not 0 < len(image) <= TOP:
        raise ValueError(f"a firmware image of {len(image)} bytes cannot end at 4 GiB")
    return Gpa(TOP - len(image))
