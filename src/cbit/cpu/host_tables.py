"""The host's own translation: its tables in system physical memory, reached with the host's key or none.

The nested tables of guests are the host's too, and are reached the same way.

Paper: memory-encryption.md §4.1; §4.2 (nested page-table walk).
"""

from __future__ import annotations

import struct

from cbit.cpu.control import AddressRules, Controls
from cbit.cpu.encryption_rules import HostSituation, Use, host_key
from cbit.cpu.paging import Access, walk
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.translation import Translation
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId


class HostTables:
    """Tables in system physical memory; the parent's C-bit chooses the host's key or none."""

    def __init__(self, port: PhysicalPort, situation: HostSituation) -> None:
        self._port = port
        self._situation = situation

    def read_entry(self, address: int, *, size: int, c: bool) -> int:
        """Read one entry."""
        return int.from_bytes(self._port.read(Spa(address), size, host_key(self._situation, c=c)), "little")

    def read_entries(self, address: int, count: int, *, c: bool) -> tuple[int, ...]:
        """Read neighbouring 64-bit entries of one table."""
        whole = self._port.read(Spa(address), 8 * count, host_key(self._situation, c=c))
        return struct.unpack(f"<{count}Q", whole)

    def write_entry(self, address: int, value: int, *, size: int, c: bool) -> None:
        """Write one entry back through the key it was read with."""
        self._port.write(Spa(address), value.to_bytes(size, "little"), host_key(self._situation, c=c))


class HostTranslator:
    """One level of tables and the host's key: what a core does outside guest mode.

    Attributes:
        rules: which physical address bits exist; the C-bit is None while MemEncryptionModEn is 0.
        nested: None: there is no second level.
    """

    def __init__(self, port: PhysicalPort, rules: AddressRules) -> None:
        self._port = port
        self.rules = rules
        self.nested: Controls | None = None

    def translate(self, linear: int, access: Access, controls: Controls) -> Translation:
        """Walk the host's tables (errors as `cbit.cpu.paging.walk`)."""
        tables = HostTables(self._port, self.situation(controls))
        leaf = walk(linear, access, controls=controls, rules=self.rules, tables=tables)
        return Translation(page=Spa(leaf.at(linear) & -PAGE), leaf=leaf)

    def key(self, use: Use, translation: Translation, controls: Controls) -> KeyId:
        """Decide the key of one access: data and fetches alike obey the leaf's C-bit."""
        return host_key(self.situation(controls), c=translation.leaf.c)

    def situation(self, controls: Controls) -> HostSituation:
        """Find the row of the host's truth table."""
        if self.rules.c_bit is None:
            return HostSituation.OFF
        return HostSituation.WITH_PAE if controls.mode.has_c_bit else HostSituation.WITHOUT_PAE

    def address_key(self, address: int) -> tuple[Spa, KeyId]:
        """Split a physical address that software gave to hardware (VMCB, nCR3 …): its C-bit chooses the key.

        Paper: memory-encryption.md §3 rule 8.
        """
        spa, c = self.rules.split(address)
        return Spa(spa), host_key(
            HostSituation.OFF if self.rules.c_bit is None else HostSituation.WITH_PAE, c=c
        )
