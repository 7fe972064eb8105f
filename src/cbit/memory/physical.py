"""What the parts above the memory system may ask of it."""

from __future__ import annotations

from typing import Protocol

from cbit.spec.address import Spa
from cbit.spec.key_id import KeyId

Data = bytes | bytearray | memoryview  #: what a caller may hand in to be stored


class PhysicalMemory(Protocol):
    """Memory behind a key id: the cores see it through `Cache`, the secure processor through `FabricPort`."""

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Return ``length`` bytes as the holder of ``key_id`` sees them.

        Raises:
            AddressError: the range leaves DRAM.
        """
        ...

    def write(self, spa: Spa, data: Data, key_id: KeyId) -> None:
        """Store ``data`` so that the holder of ``key_id`` reads it back.

        Raises:
            AddressError: the range leaves DRAM.
        """
        ...
