"""A core with memory under it, host tables, and guests: everything a test of this room may want to hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cbit.cpu.control import Cr0, Cr4, Efer, PagingMode
from cbit.cpu.core import Core
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.encryption_rules import HostSituation
from cbit.cpu.guest_view import GuestView
from cbit.cpu.host_tables import HostTables
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.cpu.msr import Hwcr, Msr, Syscfg
from cbit.cpu.physical import CachedMemory, PhysicalPort
from cbit.cpu.tlb import Tlb, TlbControl
from cbit.cpu.vmcb import Enable, Vmcb
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.key_id import HOST, KeyId, guest
from cbit.trace import Trace
from cpu.fake_memory import FakeMemory
from cpu.tables import Builder, P, U, W

NAPLES = EncryptionFeatures(c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5)
MILAN = EncryptionFeatures(c_bit=51, address_reduction=5, guests=509, min_sev_no_es_asid=100)
GENOA = EncryptionFeatures(
    c_bit=51, address_reduction=6, guests=1006, min_sev_no_es_asid=100, coherent=True, physical_bits=52
)
PARTS = {"naples": NAPLES, "milan": MILAN, "genoa": GENOA}

ALICE, BOB = 5, 6  # ASIDs: the first two that Naples gives to guests without SEV-ES
SIZE = 4 * MIB
TABLES = 3 * MIB  # tables and VMCBs are allocated from here up; pages below are the tests'
MODES = (PagingMode.LEGACY, PagingMode.PAE, PagingMode.LONG)
PAGED = int(Cr0.PE | Cr0.PG | Cr0.WP)


@dataclass
class World:
    """A core out of reset; `boot` gives it encryption, SVM and long mode."""

    features: EncryptionFeatures = NAPLES
    memory: CachedMemory = field(default_factory=lambda: FakeMemory(SIZE))
    usable: Callable[[int], bool] = lambda asid: True
    mmio: Sequence[range] = ()
    mitigations: Mitigations = NONE
    tlb: Tlb = field(default_factory=Tlb)
    trace: Trace = field(default_factory=Trace)

    def __post_init__(self) -> None:
        self._next = TABLES
        self.core = self.another_core(0)

    def another_core(self, index: int) -> Core:
        return Core(
            memory=self.memory,
            features=self.features,
            asid_usable=self.usable,
            index=index,
            mmio=self.mmio,
            mitigations=self.mitigations,
            tlb=self.tlb,
            trace=self.trace,
        )

    def new_page(self) -> int:
        self._next += PAGE
        assert self._next < SIZE, "this world has run out of pages for tables"
        return self._next

    def encrypt(self, core: Core | None = None) -> None:
        (core or self.core).wrmsr(Msr.SYSCFG, Syscfg.MEM_ENCRYPTION_MOD_EN)

    def host_builder(self, mode: PagingMode = PagingMode.LONG, *, root_c: bool = False) -> Builder:
        return Builder(
            mode, self.core.host_tables(), new_table=self.new_page, c_bit=self.core.rules.c_bit, root_c=root_c
        )

    def enter(self, builder: Builder, core: Core | None = None) -> None:
        """Switch a core out of reset to paging with these tables."""
        core = core or self.core
        if builder.mode is PagingMode.LONG:
            core.enter_long_mode(builder.cr3)
            return
        core.mov_cr4(int(Cr4.PSE | Cr4.PGE | (Cr4.PAE if builder.mode is PagingMode.PAE else 0)))
        if builder.mode is PagingMode.PAE:
            core.wrmsr(Msr.EFER, Efer.NXE)
        core.mov_cr3(builder.cr3)
        core.mov_cr0(PAGED)

    def boot(self, *, encrypted: bool = True, core: Core | None = None) -> Builder:
        """Long mode with every page mapped where it is (C=0), SVM on, SmmLock closed."""
        core = core or self.core
        if encrypted:
            self.encrypt(core)
        host = self.host_builder()
        host.map(0, 0, shift=21)
        host.map(2 * MIB, 2 * MIB, shift=21)
        self.enter(host, core)
        core.wrmsr(Msr.EFER, core.rdmsr(Msr.EFER) | Efer.SVME)
        core.wrmsr(Msr.HWCR, Hwcr.SMM_LOCK | Hwcr.INVD_TO_WBINVD)
        return host

    # --- guests

    def nested(self, *, root_c: bool = False) -> Builder:
        """Empty nested tables."""
        return self.host_builder(root_c=root_c)

    def guest_tables(
        self,
        mode: PagingMode,
        *,
        nested: Builder,
        asid: int | None,
        frames: Sequence[tuple[int, int]] = (),
        root_c: bool = False,
        nested_c: bool = False,
    ) -> Builder:
        """Tables in guest memory: guest physical pages from 0x100000 up, made and mapped as they are needed.

        Args:
            mode: the guest's paging mode.
            nested: maps each table's page.
            asid: the key that the guest's walks use; None for a guest without SEV.
            frames: (guest physical, system physical) pages for the tables, in order.
            root_c: C-bit in the guest's CR3.
            nested_c: C-bit of the nested leaves of the tables.
        """
        where = dict(frames)
        free = list(where)
        port = PhysicalPort(self.memory)

        class InGuest:
            """Writes the tables as the guest will read them: with its key, or as the nested C-bit says."""

            def read_entry(self, address: int, *, size: int, c: bool) -> int:
                return int.from_bytes(port.read(self._spa(address), size, self._key()), "little")

            def write_entry(self, address: int, value: int, *, size: int, c: bool) -> None:
                port.write(self._spa(address), value.to_bytes(size, "little"), self._key())

            def _spa(self, address: int) -> Spa:
                return Spa(where[address & -PAGE] + address % PAGE)

            def _key(self) -> KeyId:
                if asid is not None:
                    return guest(asid)
                return HOST if nested_c else KeyId(0)

        def new_table() -> int:
            if free:
                gpa = free.pop(0)
            else:
                gpa = 0x10_0000 + PAGE * len(where)
                where[gpa] = self.new_page()
            nested.map(gpa, where[gpa], c=nested_c)
            return gpa

        c_bit = self.features.c_bit if asid is not None else None
        return Builder(mode, InGuest(), new_table=new_table, c_bit=c_bit, root_c=root_c)

    def vmcb(self, vmcb: Vmcb, *, at: int | None = None) -> int:
        """Put a VMCB into memory through the host's mapping, and return its address."""
        page = self.new_page() if at is None else at
        self.core.write(page, bytes(vmcb))  # type: ignore[arg-type]  # identity mapping
        return page

    def stored(self, page: int) -> Vmcb:
        return Vmcb.parse(self.core.read(page, PAGE), canonical=False)  # type: ignore[arg-type]  # identity mapping

    def run(
        self, nested: Builder, tables: Builder | None = None, *, asid: int = ALICE, **changes: Any
    ) -> GuestView:
        """VMRUN a SEV guest on these tables (paging off without ``tables``)."""
        return self.core.vmrun(self.vmcb(guest_vmcb(nested, tables, asid=asid, **changes)))


def guest_vmcb(nested: Builder, tables: Builder | None = None, *, asid: int = ALICE, **changes: Any) -> Vmcb:
    """The VMCB of a SEV guest that VMRUN accepts."""
    mode = tables.mode if tables else PagingMode.OFF
    cr4 = {PagingMode.LEGACY: int(Cr4.PSE | Cr4.PGE), PagingMode.OFF: 0}.get(mode, int(Cr4.PAE | Cr4.PGE))
    efer = Efer.SVME | (Efer.LME | Efer.LMA if mode is PagingMode.LONG else 0)
    efer |= Efer.NXE if mode in (PagingMode.LONG, PagingMode.PAE) else 0
    fields: dict[str, Any] = {
        "asid": asid,
        "enable": Enable.NP_ENABLE | Enable.SEV,
        "tlb_control": TlbControl.NOTHING,
        "ncr3": nested.cr3,
        "cr0": PAGED if tables else int(Cr0.PE),
        "cr3": tables.cr3 if tables else 0,
        "cr4": cr4,
        "efer": int(efer),
    }
    return Vmcb(**(fields | changes))


def host_tables(memory: CachedMemory) -> HostTables:
    return HostTables(PhysicalPort(memory), HostSituation.WITH_PAE)


RWX = P | W | U
