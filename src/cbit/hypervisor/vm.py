"""A virtual machine's memory: frames, nested tables, and what the hypervisor puts there.

Paper: memory-encryption.md §3 rule 6, §4.3; launch-inputs.md §1 (where the image goes).
"""

from __future__ import annotations

from dataclasses import dataclass

from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.nested_tables import NestedTables
from cbit.spec.address import GIB, PAGE, Gpa, Spa
from cbit.spec.errors import CbitError


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

    Attributes:
        protection: how its memory is protected.
        tables: the nested tables, in DRAM.
        regions: what memory it has.
        c: whether the host uses the C-bit for this guest's memory.
    """

    def __init__(self, host: Host, protection: Protection) -> None:
        self.host = host
        self.protection = protection
        self.regions: list[Region] = []
        self.c = protection is Protection.SME
        self.tables = NestedTables(host, c_bit=host.machine.profile.features.c_bit, encrypted=self.c)

    def add_memory(self, gpa: Gpa, size: int) -> Region:
        """Give the guest memory; its system-physical place is the host's choice.

        Raises:
            OutOfMemory: the host has not enough; the guest is as before.
        """
        region = Region(gpa, self.host.frames.take(size))
        self.regions.append(region)
        self.tables.map(gpa, region.frames, c=self.c)
        return region

    def load(self, gpa: Gpa, data: bytes) -> None:
        """Write into guest memory as the hypervisor can: with C=0, or under SME with the host's key."""
        self.host.write(self.spa(gpa, len(data)), data, c=self.c)

    def load_firmware(self, image: bytes) -> Region:
        """Put a firmware image where the reset vector is: it ends at 4 GiB."""
        size = -(-len(image) // PAGE) * PAGE
        region = self.add_memory(Gpa(4 * GIB - size), size)
        self.load(Gpa(4 * GIB - len(image)), image)
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

    def destroy(self) -> None:
        """Give tables and memory back; what is in the frames stays until somebody overwrites it."""
        self.tables.free()
        for region in self.regions:
            self.host.frames.give_back(region.frames)
        self.regions.clear()
