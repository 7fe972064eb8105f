"""A window: a page of host memory whose translation is looked up once and held.

Host software maps what it works on all the time, and its TLB answers for it; walking for each of millions
of accesses to one VMCB would cost more than the accesses.  Whoever holds a window must not change the
mapping behind it: the direct map of a host never changes.

Paper: memory-encryption.md §4.1 (the mapping's C-bit chooses the key), §7 (translations are held).
"""

from __future__ import annotations

from typing import Final

from cbit.cpu.physical import PhysicalPort
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId


class Window:
    """One page of memory under one key, read and written by offset."""

    __slots__ = ("_key", "_port", "_spa")

    def __init__(self, port: PhysicalPort, spa: Spa, key_id: KeyId) -> None:
        self._port: Final = port
        self._spa: Final = spa
        self._key: Final = key_id

    def read(self, at: int, length: int) -> bytes:
        """Read bytes of the page.

        Raises:
            ValueError: the range leaves the page.
        """
        if at < 0 or at + length > PAGE:
            raise ValueError(f"{length} bytes at {at:#x} leave the page")
        return self._port.read(Spa(self._spa + at), length, self._key)

    def write(self, at: int, data: bytes) -> None:
        """Write bytes of the page (errors as `read`)."""
        if at < 0 or at + len(data) > PAGE:
            raise ValueError(f"{len(data)} bytes at {at:#x} leave the page")
        self._port.write(Spa(self._spa + at), data, self._key)
