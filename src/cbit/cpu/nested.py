"""The two-level walk of a guest, and who decides which key each of its steps uses.

      guest linear -> guest's tables (each entry read at a guest physical address) -> guest physical, guest C
      guest physical, C masked -> nested tables -> system physical, nested C
      (use, guest C, nested C, ASID) -> key id                       cbit.cpu.encryption_rules

Both sets of tables may be encrypted at once: the guest's with the guest's key, the nested ones with the
host's.

Paper: memory-encryption.md §3 rules 6 and 7, §4.2, §4.3; access rights of nested accesses are the AMD64
architecture's own.
Not modelled: shadow paging (NP_ENABLE=0), nested tables of a host outside long mode, vTOM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.cpu.control import AddressRules, Controls
from cbit.cpu.encryption_rules import HostSituation, Use, host_key, sev_key, treated_as_private
from cbit.cpu.faults import NestedPageFault, PageFault, PageFaultCode
from cbit.cpu.host_tables import HostTables
from cbit.cpu.paging import Access, Kind, Leaf, walk
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.tlb import VmMode
from cbit.cpu.translation import Translation
from cbit.spec.address import PAGE, Gpa, Spa
from cbit.spec.key_id import KeyId

_NESTED_BITS: Final = 48  # what four levels of nested tables translate


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What VMRUN fixes for one turn of a guest.

    Attributes:
        asid: the key index, and the TLB tag.
        mode: SEV or not.
        vte: virtual transparent encryption is on.
        nested: the host's control registers with nCR3 in place of CR3.
        host_rules: physical address bits of the nested entries: reduced, with C-bit.
        guest_rules: physical address bits of the guest's entries: not reduced, C-bit only with SEV.
    """

    asid: int
    mode: VmMode
    vte: bool
    nested: Controls
    host_rules: AddressRules
    guest_rules: AddressRules


class NestedWalker:
    """Walks a guest's tables through the nested ones.

    Attributes:
        rules: the guest's physical address bits.
        nested: the control registers that the nested walk obeys.
    """

    def __init__(self, port: PhysicalPort, world: World) -> None:
        self._port = port
        self._world = world
        self.rules = world.guest_rules
        self.nested: Controls | None = world.nested
        self._encryption_on = world.host_rules.c_bit is not None
        # The nested tables are the host's: each is read as its parent's C-bit says, with the host's key.
        self._nested_tables = HostTables(
            port, HostSituation.WITH_PAE if self._encryption_on else HostSituation.OFF
        )

    def translate(self, linear: int, access: Access, controls: Controls) -> Translation:
        """Walk both levels for a guest linear address.

        Raises:
            PageFault: the guest's tables refuse: the guest's own affair.
            NestedPageFault: the nested tables refuse: the hypervisor's.
            GeneralProtection: a non-canonical address.
        """
        tables = _GuestTables(self, self._port)
        leaf = walk(linear, access, controls=controls, rules=self.rules, tables=tables)
        return self.second_level(Gpa(leaf.at(linear)), leaf, access.kind)

    def second_level(self, gpa: Gpa, leaf: Leaf, kind: Kind) -> Translation:
        """Finish a translation whose guest half is ``leaf`` (its C-bit is kept, the address has none)."""
        nested = self.to_system(gpa, kind, guest_c=leaf.c, where=PageFaultCode.FINAL)
        return Translation(page=Spa(nested.at(gpa) & -PAGE), leaf=leaf, nested=nested)

    def to_system(self, gpa: Gpa, kind: Kind, *, guest_c: bool, where: PageFaultCode) -> Leaf:
        """Walk the nested tables for a guest physical address, C-bit already masked.

        Every such access is a user access, whatever the guest's privilege.

        Args:
            gpa: the address.
            kind: read, write or fetch.
            guest_c: the guest's C-bit, which a fault reports.
            where: `PageFaultCode.FINAL` or `PageFaultCode.TABLE`.

        Raises:
            NestedPageFault: absent, reserved bit, or not permitted.
        """
        world = self._world
        # With VTE the address in the nested walk has no C-bit (§4.2), so a fault cannot report one.
        reported = self.rules.join(gpa, c=guest_c and not world.vte)
        if gpa >> _NESTED_BITS:
            # MODEL CHOICE: what the nested tables cannot reach is "not present" there.
            code = PageFaultCode.U | where | (PageFaultCode.W if kind is Kind.WRITE else PageFaultCode(0))
            raise NestedPageFault(code, reported, f"beyond the {_NESTED_BITS} bits of nested tables")
        # A guest physical address has no sign: its bit 47 is an index bit like the others.
        linear = gpa if gpa < 1 << 47 else gpa | 0xFFFF << 48
        access = Access(kind, user=True)
        try:
            return walk(
                linear, access, controls=world.nested, rules=world.host_rules, tables=self._nested_tables
            )
        except PageFault as fault:
            raise NestedPageFault(fault.code | where, reported, f"nested tables: {fault.why}") from None

    def key(self, use: Use, translation: Translation, controls: Controls) -> KeyId:
        """Decide the key of a fetch or a data access."""
        private = treated_as_private(
            use, guest_c=translation.leaf.c, has_c_bit=controls.mode.has_c_bit, vte=self._world.vte
        )
        return self._key(private=private, nested_c=translation.nested_c)

    def table_key(self, *, nested_c: bool) -> KeyId:
        """Decide the key of the guest's own page tables."""
        private = treated_as_private(Use.TABLE, guest_c=False, has_c_bit=True, vte=self._world.vte)
        return self._key(private=private, nested_c=nested_c)

    def _key(self, *, private: bool, nested_c: bool) -> KeyId:
        if self._world.mode is not VmMode.PLAIN:
            return sev_key(self._world.asid, private=private, nested_c=nested_c)
        return host_key(
            HostSituation.GUEST_WITHOUT_SEV if self._encryption_on else HostSituation.OFF, c=nested_c
        )


class _GuestTables:
    """A guest's page tables: guest physical addresses, translated by the nested tables.

    Each access counts as a *write* there, because the walker may have to set A or D; so read-only nested
    pages cannot hold guest page tables.
    """

    def __init__(self, walker: NestedWalker, port: PhysicalPort) -> None:
        self._walker = walker
        self._port = port

    def read_entry(self, address: int, *, size: int, c: bool) -> int:
        spa, key = self._reach(address, c=c)
        return int.from_bytes(self._port.read(spa, size, key), "little")

    def write_entry(self, address: int, value: int, *, size: int, c: bool) -> None:
        spa, key = self._reach(address, c=c)
        self._port.write(spa, value.to_bytes(size, "little"), key)

    def _reach(self, address: int, *, c: bool) -> tuple[Spa, KeyId]:
        nested = self._walker.to_system(Gpa(address), Kind.WRITE, guest_c=c, where=PageFaultCode.TABLE)
        # Always private, whatever the C-bit says: a shared table would let the host forge mappings.
        return Spa(nested.at(address)), self._walker.table_key(nested_c=nested.c)
