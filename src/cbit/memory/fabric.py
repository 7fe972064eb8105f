"""The secure processor's way to memory: past the cores' caches, through the engine, with any key.

Its requests make the data fabric write back and invalidate what x86 caches hold of the range, under every
tag (PspRdSzWrBkInvd): it rewrites memory whose dirty plaintext may still sit in a cache.

Paper: memory-encryption.md §6.4 ("The secure processor's own accesses"), §1 rule 4 (keys).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cbit.crypto.key import Key
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dram import anonymous
from cbit.memory.errors import AddressError
from cbit.memory.physical import Data
from cbit.spec.address import BLOCK, KIB, PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED, KeyId

CHUNK: Final = 256 * KIB  #: bytes of memory that the secure processor holds at a time


class FabricPort:
    """Reads, writes and re-encrypts memory for the secure processor, and fills key slots.

    The only holder of the power to load keys; the machine hands it to the secure processor alone.
    """

    def __init__(self, cache: Cache, controller: MemoryController) -> None:
        self._cache = cache
        self._controller = controller
        # The secure processor's own SRAM; off the pages' starts, where the other side of its copies lies.
        self._local = memoryview(anonymous(CHUNK + PAGE, dumpable=False))[PAGE // 2 :][:CHUNK]

    @property
    def size(self) -> int:
        """Bytes of DRAM."""
        return self._controller.size

    def load_key(self, key_id: KeyId, key: Key) -> None:
        """Put a key in a slot of the memory controller (errors as `MemoryController.load_key`)."""
        self._controller.load_key(key_id, key)

    def has_key(self, key_id: KeyId) -> bool:
        """Say whether a slot was loaded since the last reset."""
        return self._controller.has_key(key_id)

    def protect(self, start: int, end: int) -> None:
        """Keep a range for the secure processor alone, in the place of the range before; 0, 0: none.

        Raises:
            AddressError: the range leaves DRAM; the range before stays.
        """
        self._cache.protect(start, end)

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Flush the range, then read it from DRAM through the engine.

        Raises:
            AddressError: the range leaves DRAM; nothing was flushed.
            ValueError: no such key id.
        """
        self._controller.check(spa, length, key_id)
        self._cache.flush(spa, length)
        return self._controller.read(spa, length, key_id)

    def read_into(self, spa: Spa, out: memoryview, key_id: KeyId) -> None:
        """Read into a buffer, without a copy for whole lines (errors as `read`)."""
        self._controller.check(spa, len(out), key_id)
        self._cache.flush(spa, len(out))
        self._controller.read_into(spa, out, key_id)

    def write(self, spa: Spa, data: Data, key_id: KeyId) -> None:
        """Flush the range, then write it to DRAM through the engine (errors as `read`)."""
        self._controller.check(spa, len(data), key_id)
        self._cache.flush(spa, len(data))  # the firmware's "dummy read of the destination"
        self._controller.write(spa, data, key_id)

    def encrypt_in_place(
        self,
        spa: Spa,
        length: int,
        *,
        key_id: KeyId,
        source: KeyId = UNENCRYPTED,
        show: Callable[[memoryview], object],
    ) -> None:
        """Rewrite a range under another key, and show the plaintext, chunk by chunk, to whoever hashes it.

        A chunk is shown, read-only and for the time of the call, and then encrypted; nobody else has the bus
        in between, so what is hashed is what is encrypted.

        Args:
            spa: start, a multiple of 16.
            length: bytes, a multiple of 16.
            key_id: the slot to encrypt with.
            source: the slot that the range is stored under now; `HOST` when the address came with C=1.
            show: what becomes of the plaintext.  If it raises, that chunk and those behind it are as before.

        Raises:
            AddressError: the range leaves DRAM or is not whole blocks; nothing has been changed.
            ValueError: no such key id.
        """
        controller = self._controller
        controller.check(spa, length, key_id)
        controller.check(spa, length, source)
        if spa % BLOCK or length % BLOCK:
            raise AddressError(spa, f"{length} bytes from here are not whole blocks of {BLOCK} bytes")
        self._cache.flush(spa, length)
        used = self._local[: min(CHUNK, length)]
        at, end, held = spa, spa + length, False
        try:
            while at < end:
                room = used[: min(CHUNK - at % CHUNK, end - at)]  # at the engine's own boundaries
                plaintext = controller.look(at, room, source)
                held = held or plaintext is room
                show(plaintext.toreadonly())
                controller.write(at, plaintext, key_id)
                at = Spa(at + len(room))
        finally:
            if held:
                used[:] = bytes(len(used))
