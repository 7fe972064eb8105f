"""The secure processor's way to memory, and the address rules it applies to every host pointer.

Paper: sev-api.md §2.2; memory-encryption.md §6.4 (the fabric writes back and invalidates x86 copies first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cbit.memory.fabric import FabricPort
from cbit.secure_processor.refusal import Refused
from cbit.spec.address import KIB, MIB, Spa, strip_c_bit
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cbit.spec.status import Status

ASEG: Final = (0xA0000, 0xC0000)  #: legacy video and SMM window
MOVE_CHUNK: Final = 20 * KIB  #: plaintext that the secure processor holds at a time while it copies
TRANSFER_WINDOW: Final = 64 * MIB  #: a transfer may cross at most one boundary of this size


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Which system-physical addresses a command may name.

    Attributes:
        c_bit: position of the C-bit, masked before every comparison.
        dram_size: bytes of DRAM; what lies above is an MMIO hole or nothing.
        forbidden: further ranges as (start, end): SMM memory, active TMRs.
    """

    c_bit: int
    dram_size: int
    forbidden: Sequence[tuple[int, int]] = ()

    def check(self, address: int, length: int, what: str) -> tuple[Spa, bool]:
        """Strip the C-bit and validate the range.

        Raises:
            Refused: INVALID_ADDRESS with the rule that was broken.
        """
        start, c = strip_c_bit(address, self.c_bit)
        end = start + max(length, 1)
        if end > self.dram_size:
            raise Refused(
                Status.INVALID_ADDRESS,
                f"{what} {start:#x}..{end - 1:#x} leaves DRAM ({self.dram_size:#x} bytes)",
            )
        if start < ASEG[1] and end > ASEG[0]:
            raise _overlaps(what, start, end, ASEG)
        for low, high in self.forbidden:
            if start < high and end > low:
                raise _overlaps(what, start, end, (low, high))
        return Spa(start), c

    def valid_prefix(self, address: int, length: int, chunk: int) -> int:
        """Return how many leading bytes are valid when the range is checked chunk by chunk."""
        try:
            self.check(address, length, "range")
            return length  # the usual case: one look at all of it
        except Refused:
            pass
        done = 0
        while done < length:
            step = min(chunk, length - done)
            try:
                self.check(address + done, step, "chunk")
            except Refused:
                break
            done += step
        return done


def _overlaps(what: str, start: int, end: int, protected: tuple[int, int]) -> Refused:
    low, high = protected
    why = f"{what} {start:#x}..{end - 1:#x} overlaps protected {low:#x}..{high - 1:#x}"
    return Refused(Status.INVALID_ADDRESS, why)


class MemoryPort:
    """Checked access to host buffers (C-bit honoured) and guest memory (always the guest's key)."""

    def __init__(self, fabric: FabricPort, rules: AddressRules) -> None:
        self.fabric = fabric
        self.rules = rules

    def read_host(self, address: int, length: int, what: str) -> bytes:
        """Read a host buffer.

        Raises:
            Refused: INVALID_ADDRESS, or INVALID_PARAM for a transfer over two 64 MiB boundaries.
        """
        spa, key_id = self.host_range(address, length, what)
        return self.fabric.read(spa, length, key_id)

    def write_host(self, address: int, data: bytes, what: str) -> None:
        """Write a host buffer; raises as ``read_host``."""
        spa, key_id = self.host_range(address, len(data), what)
        self.fabric.write(spa, data, key_id)

    def host_range(self, address: int, length: int, what: str) -> tuple[Spa, KeyId]:
        """Validate a host buffer, before anything is changed; its C-bit says with which key it is used.

        Raises:
            Refused: as ``read_host``.
        """
        spa, c = self.rules.check(address, length, what)
        if length and (spa + length - 1) // TRANSFER_WINDOW - spa // TRANSFER_WINDOW > 1:
            raise Refused(Status.INVALID_PARAM, f"{what} spans more than one 64 MiB boundary")
        return spa, HOST if c else UNENCRYPTED

    def guest_range(self, address: int, length: int, what: str) -> Spa:
        """Validate guest memory: the C-bit is ignored, the key is the guest's; raises as ``read_host``."""
        return self.host_range(address, length, what)[0]

    def move(self, source: Spa, target: Spa, length: int, *, source_key: KeyId, target_key: KeyId) -> None:
        """Copy validated memory as memmove does, from one key and address to another."""
        starts = range(0, length, MOVE_CHUNK)
        # Ranges that overlap: what is still to be read must not be overwritten.
        for start in reversed(starts) if target > source else starts:
            part = self.fabric.read(Spa(source + start), min(MOVE_CHUNK, length - start), source_key)
            self.fabric.write(Spa(target + start), part, target_key)
