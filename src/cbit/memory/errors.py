"""What the memory system refuses, one class a fact.

A wrong key is not here: the engine never faults, it returns garbage (memory-encryption.md §4.5).
"""

from __future__ import annotations

from cbit.spec.errors import CbitError


class AddressError(CbitError):
    """A request names memory that is not there, or that this requester cannot address.

    A device stopped by the IOMMU's tables is an `IommuFault`.

    Attributes:
        address: the first address of the request, as the requester drove it.
        why: what is wrong with it.
    """

    def __init__(self, address: int, why: str) -> None:
        super().__init__(f"{address:#x}: {why}")
        self.address = address
        self.why = why


class IommuFault(CbitError):
    """The IOMMU refused a device's request; nothing was transferred.

    Attributes:
        device_id: who asked.
        address: the I/O virtual address as the device drove it.
        reason: what the walk found.
    """

    def __init__(self, device_id: int, address: int, reason: str) -> None:
        super().__init__(f"device {device_id:#06x} at {address:#x}: {reason}")
        self.device_id = device_id
        self.address = address
        self.reason = reason
