"""Devices: the C-bit in the address, no ASID, and the IOMMU for those that cannot drive it.

Checklist of memory-encryption.md §12: item 15; the rules of §5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.memory.dma import DmaPort
from cbit.memory.errors import AddressError, IommuFault
from cbit.memory.iommu import (
    DTE_BYTES,
    DTE_TRANSLATION_VALID,
    DTE_VALID,
    LEVEL_SHIFT,
    PTE_PRESENT,
    READ,
    WRITE,
    Iommu,
    place,
)
from cbit.spec.address import GIB, LINE, MIB, PAGE, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from memory.worlds import ALICE, World

C_BIT = 47
C = 1 << C_BIT
P = 5 * PAGE
TEXT = b"what the host or the guest keeps" * 4


def port(world: World, **special: int) -> DmaPort:
    return DmaPort(world.cache, c_bit=C_BIT, address_bits=special.get("address_bits", 64))


# ---- without an IOMMU


def test_a_device_that_drives_the_c_bit_reads_and_writes_the_hosts_plaintext(any_mode: World) -> None:
    any_mode.cache.write(Spa(P), TEXT, HOST)
    any_mode.cache.wbinvd()
    assert port(any_mode).read(P | C, len(TEXT)) == TEXT
    port(any_mode).write(P | C, TEXT[::-1])
    assert any_mode.cache.read(Spa(P), len(TEXT), HOST) == TEXT[::-1]
    assert TEXT[::-1] not in any_mode.probe.read(Spa(0), MIB)


def test_without_the_c_bit_it_reads_and_overwrites_ciphertext(any_mode: World) -> None:
    any_mode.cache.write(Spa(P), TEXT, HOST)
    any_mode.cache.wbinvd()
    assert port(any_mode).read(P, len(TEXT)) == any_mode.probe.read(Spa(P), len(TEXT)) != TEXT
    port(any_mode).write(P, TEXT)
    assert any_mode.probe.read(Spa(P), len(TEXT)) == TEXT
    assert any_mode.cache.read(Spa(P), len(TEXT), HOST) != TEXT


@pytest.mark.parametrize("written_back", [False, True], ids=["in the cache", "in DRAM"])
def test_item_15_a_guests_private_page_is_ciphertext_or_a_host_key_decrypt_of_it(
    any_mode: World, *, written_back: bool
) -> None:
    any_mode.cache.write(Spa(P), TEXT, ALICE)
    if written_back:
        any_mode.cache.wbinvd()
    plain, host = port(any_mode).read(P, len(TEXT)), port(any_mode).read(P | C, len(TEXT))
    assert plain == any_mode.probe.read(Spa(P), len(TEXT))
    assert host == any_mode.controller.read(Spa(P), len(TEXT), HOST)
    assert TEXT[:16] not in plain + host


@pytest.mark.parametrize("c", [0, C], ids=["C=0", "C=1"])
def test_what_a_device_writes_to_a_private_page_is_garbage_for_the_guest(world: World, c: int) -> None:
    world.cache.write(Spa(P), TEXT, ALICE)
    world.cache.wbinvd()
    port(world).write(P | c, b"from the device!" * 8)
    read = world.cache.read(Spa(P), len(TEXT), ALICE)
    assert b"from the device!" not in read
    assert read[:16] != TEXT[:16]


def test_a_shared_page_works_both_ways_without_a_flush(world: World) -> None:
    world.cache.write(Spa(P), b"request", UNENCRYPTED)  # dirty in the cache: the device snoops it
    assert port(world).read(P, 7) == b"request"
    port(world).write(P + 100, b"answer")
    assert world.cache.read(Spa(P), 7, UNENCRYPTED) == b"request"  # other dirty bytes of the page survived
    assert world.cache.read(Spa(P + 100), 6, UNENCRYPTED) == b"answer"


def test_a_device_snoops_only_its_own_tag(world: World) -> None:
    world.cache.write(Spa(P), TEXT, HOST)
    assert port(world).read(P | C, len(TEXT)) == TEXT
    assert port(world).read(P, len(TEXT)) == bytes(len(TEXT))  # C=0: what DRAM held before
    assert len(world.cache.snapshot()) == 1  # nothing was allocated, nothing flushed


def test_on_coherent_hardware_a_device_sees_the_ciphertext_of_dirty_data() -> None:
    world = World(coherent=True)
    world.cache.write(Spa(P), TEXT, ALICE)
    read = port(world).read(P, len(TEXT))
    assert read == world.probe.read(Spa(P), len(TEXT))
    assert read not in (TEXT, bytes(len(TEXT)))


def test_under_tsme_a_plain_request_reads_plaintext_and_guests_stay_hidden() -> None:
    world = World(tsme=True)
    world.cache.write(Spa(P), TEXT, UNENCRYPTED)
    world.cache.write(Spa(2 * P), TEXT, ALICE)
    world.cache.wbinvd()
    assert port(world).read(P, len(TEXT)) == port(world).read(P | C, len(TEXT)) == TEXT
    assert TEXT[:16] not in port(world).read(2 * P, len(TEXT)) + port(world).read(2 * P | C, len(TEXT))
    assert TEXT[:16] not in world.probe.read(Spa(0), MIB)


def test_with_encryption_disabled_the_c_bit_is_an_address_bit(world: World) -> None:
    device = port(world)
    device.c_bit = None
    with pytest.raises(AddressError, match=rf"{P | C:#x}: .* not inside DRAM"):
        device.read(P | C, 1)
    world.cache.write(Spa(P), TEXT, UNENCRYPTED)
    assert device.read(P, len(TEXT)) == TEXT


@pytest.mark.parametrize(("address", "length"), [(MIB, 1), (MIB | C, 1), (MIB - 1, 2), (1 << 50, 16)])
def test_dma_outside_memory_is_refused_and_writes_nothing(world: World, address: int, length: int) -> None:
    with pytest.raises(AddressError, match="not inside DRAM of 0x100000 bytes"):
        port(world).read(address, length)
    with pytest.raises(AddressError, match="not inside DRAM"):
        port(world).write(address, b"x" * length)
    assert not any(world.probe.read(Spa(0), MIB))


@pytest.mark.parametrize(("address", "length"), [(-1, 1), (1 << 64, 1), ((1 << 64) - 1, 2), (0, -1)])
def test_an_address_that_no_device_can_drive_is_refused(world: World, address: int, length: int) -> None:
    with pytest.raises(AddressError, match="64 address bits"):
        port(world).read(address, length)


def test_a_32_bit_device_cannot_drive_the_c_bit(world: World) -> None:
    world.cache.write(Spa(P), TEXT, HOST)
    device = port(world, address_bits=32)
    with pytest.raises(AddressError, match="32 address bits"):
        device.read(P | C, len(TEXT))
    with pytest.raises(AddressError, match="32 address bits"):
        device.write((1 << 32) - 1, b"ab")
    assert device.read(P, 16) != TEXT[:16]


# ---- with one


@dataclass
class Tables:
    """I/O page tables in the DRAM of a world, built the way a driver builds them."""

    world: World
    encrypted: bool = True
    levels: int = 3
    device_table: int = 0x10_000
    next_free: int = 0x20_000
    tables: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clear(self.device_table)

    @property
    def c(self) -> int:
        return C if self.encrypted else 0

    def iommu(self, devices: int = 4) -> Iommu:
        return Iommu(
            self.world.cache,
            device_table=self.device_table | self.c,
            devices=devices,
            c_bit=C_BIT,
            trace=self.world.trace,
        )

    @property
    def key_id(self) -> KeyId:
        return HOST if self.encrypted else UNENCRYPTED

    def clear(self, at: int) -> None:
        # Zeros in DRAM are not zeros under a key: an encrypted table that nobody cleared has random entries.
        self.world.cache.write(Spa(at), bytes(PAGE), self.key_id)

    def put(self, at: int, value: int) -> None:
        self.world.cache.write(Spa(at), value.to_bytes(8, "little"), self.key_id)

    def attach(self, device: int, *, mode: int | None = None, flags: int = READ | WRITE) -> None:
        root = self.table(self.levels, 0)
        mode = self.levels if mode is None else mode
        valid = DTE_VALID | DTE_TRANSLATION_VALID
        self.put(self.device_table + DTE_BYTES * device, valid | mode << LEVEL_SHIFT | root | self.c | flags)

    def table(self, level: int, address: int) -> int:
        key = (level, address >> (12 + 9 * level))
        if key not in self.tables:
            self.tables[key] = self.next_free
            self.next_free += PAGE
            self.clear(self.tables[key])
            if level < self.levels:
                self.entry(level + 1, address, self.tables[key] | self.c | PTE_PRESENT | level << LEVEL_SHIFT)
        return self.tables[key]

    def entry(self, level: int, address: int, value: int, *, flags: int = READ | WRITE) -> None:
        index = address >> (12 + 9 * (level - 1)) & 0x1FF
        self.put(self.table(level, address) + 8 * index, value | flags if value else 0)

    def map(self, address: int, target: int, *, level: int = 1, flags: int = READ | WRITE) -> None:
        self.entry(level, address, target | PTE_PRESENT, flags=flags)


IOVA = 0x1234_5000


@pytest.fixture(params=[False, True], ids=["plain tables", "encrypted tables"])
def tables(world: World, request: pytest.FixtureRequest) -> Tables:
    made = Tables(world, encrypted=request.param)
    made.attach(1)
    made.map(IOVA, P | C)
    return made


def device(tables: Tables, *, device_id: int = 1, address_bits: int = 32) -> DmaPort:
    return DmaPort(
        tables.world.cache,
        c_bit=C_BIT,
        iommu=tables.iommu(),
        device_id=device_id,
        address_bits=address_bits,
    )


def test_the_iommu_lets_a_32_bit_device_reach_encrypted_memory(tables: Tables) -> None:
    world = tables.world
    world.cache.write(Spa(P), TEXT, HOST)
    assert device(tables).read(IOVA, len(TEXT)) == TEXT
    device(tables).write(IOVA + 256, b"from a 32-bit device")
    assert world.cache.read(Spa(P + 256), 20, HOST) == b"from a 32-bit device"
    world.cache.wbinvd()
    assert device(tables).read(IOVA, len(TEXT)) == TEXT  # the tables are now read from DRAM
    assert list(world.probe.find(b"from a 32-bit")) == []


def test_encrypted_tables_are_ciphertext_in_dram(world: World) -> None:
    made = Tables(world, encrypted=True)
    made.attach(1)
    made.map(IOVA, P | C)
    leaf = (P | C | PTE_PRESENT | READ | WRITE).to_bytes(8, "little")
    assert world.cache.wbinvd() > 0
    assert list(world.probe.find(leaf)) == []
    plain = World()
    made = Tables(plain, encrypted=False)
    made.map(IOVA, P | C)
    plain.cache.wbinvd()
    assert len(list(plain.probe.find(leaf))) == 1  # the positive control


def test_each_pointers_c_bit_counts_by_itself(world: World) -> None:
    made = Tables(world, encrypted=True)
    made.attach(1)
    made.map(IOVA, P | C)
    made.entry(
        2, IOVA, made.table(1, IOVA) | PTE_PRESENT | 1 << LEVEL_SHIFT
    )  # the C-bit forgotten in one pointer
    world.cache.wbinvd()
    with pytest.raises((IommuFault, NotModelled, AddressError)):  # garbage was walked
        device(made).read(IOVA, 1)


def test_a_leaf_without_the_c_bit_gives_ciphertext(tables: Tables) -> None:
    tables.map(IOVA, P)
    tables.world.cache.write(Spa(P), TEXT, HOST)
    tables.world.cache.wbinvd()
    assert device(tables).read(IOVA, len(TEXT)) == tables.world.probe.read(Spa(P), len(TEXT))


def test_pages_side_by_side_for_the_device_need_not_be_in_memory(tables: Tables) -> None:
    tables.map(IOVA + PAGE, 2 * PAGE)
    device(tables).write(IOVA + PAGE - 3, b"abcdef")
    assert tables.world.cache.read(Spa(P + PAGE - 3), 3, HOST) == b"abc"
    assert tables.world.cache.read(Spa(2 * PAGE), 3, UNENCRYPTED) == b"def"
    assert device(tables).read(IOVA + PAGE - 3, 6) == b"abcdef"


def test_a_write_of_which_one_page_is_refused_writes_nothing(tables: Tables) -> None:
    with pytest.raises(IommuFault, match="not present"):
        device(tables).write(IOVA + PAGE - 3, b"abcdef")
    assert tables.world.cache.read(Spa(P), PAGE, HOST)[-3:] != b"abc"


def test_a_write_of_which_one_page_lies_outside_memory_writes_nothing(tables: Tables) -> None:
    tables.map(IOVA + PAGE, 1 << 40)
    before = tables.world.cache.read(Spa(P), PAGE, HOST)
    with pytest.raises(AddressError, match="not inside DRAM"):
        device(tables).write(IOVA + PAGE - 3, b"abcdef")
    assert tables.world.cache.read(Spa(P), PAGE, HOST) == before


def test_a_large_leaf_maps_all_it_covers(tables: Tables) -> None:
    world = World(size=4 * MIB)
    made = Tables(world, encrypted=tables.encrypted)
    made.attach(1)
    made.map(0x4000_0000, 0x20_0000 | C, level=2)
    device(made).write(0x4000_0000 + 0x1_2345, TEXT)
    assert world.cache.read(Spa(0x21_2345), len(TEXT), HOST) == TEXT


def test_permissions_hold_at_every_level(tables: Tables) -> None:
    tables.map(IOVA, P | C, flags=READ)
    assert len(device(tables).read(IOVA, 1)) == 1
    with pytest.raises(IommuFault, match=r"level 1 entry .* forbids writing"):
        device(tables).write(IOVA, b"x")
    tables.map(IOVA, P | C)
    tables.attach(1, flags=WRITE)
    with pytest.raises(IommuFault, match="device table entry forbids reading"):
        device(tables).read(IOVA, 1)
    device(tables).write(IOVA, b"x")
    assert tables.world.cache.read(Spa(P), 1, HOST) == b"x"


def test_a_fault_names_device_address_and_reason_and_is_traced(tables: Tables) -> None:
    with tables.world.trace.recorded() as events, pytest.raises(IommuFault) as fault:
        device(tables).read(IOVA + 8 * PAGE, 1)
    assert (fault.value.device_id, fault.value.address) == (1, IOVA + 8 * PAGE)
    assert "level 1 entry" in fault.value.reason
    assert events[-1].facts == {"device_id": 1, "address": IOVA + 8 * PAGE}
    assert (events[-1].what, events[-1].why) == ("fault", fault.value.reason)


@pytest.mark.parametrize("device_id", [0, 2, 4, -1, 70000])
def test_a_device_without_an_entry_is_refused(tables: Tables, device_id: int) -> None:
    with pytest.raises(IommuFault, match=r"not valid|has 4 entries"):
        device(tables, device_id=device_id).read(IOVA, 1)


def test_a_device_table_entry_with_no_levels_lets_the_device_drive_system_addresses(tables: Tables) -> None:
    tables.attach(2, mode=0)
    tables.world.cache.write(Spa(P), TEXT, HOST)
    through = device(tables, device_id=2, address_bits=64)
    assert through.read(P | C, len(TEXT)) == TEXT
    with pytest.raises(AddressError, match="not inside DRAM"):
        through.read(GIB, 1)


def test_malformed_tables_fault_and_what_is_not_modelled_says_so(tables: Tables) -> None:
    through = device(tables, address_bits=64)
    with pytest.raises(IommuFault, match="beyond the reach of 3 levels"):
        through.read(1 << 39, 1)
    tables.entry(1, IOVA, P | PTE_PRESENT | 1 << LEVEL_SHIFT)
    with pytest.raises(IommuFault, match="does not point down but to level 1"):
        through.read(IOVA, 1)
    tables.entry(1, IOVA, P | PTE_PRESENT | 7 << LEVEL_SHIFT)
    with pytest.raises(NotModelled, match="next level 7"):
        through.read(IOVA, 1)
    tables.entry(3, IOVA, tables.table(1, IOVA) | tables.c | PTE_PRESENT | 1 << LEVEL_SHIFT)
    with pytest.raises(NotModelled, match="next level 1 in level 3"):
        through.read(IOVA, 1)
    tables.entry(3, IOVA, P | PTE_PRESENT)  # a leaf of 1 GiB that is not aligned
    with pytest.raises(IommuFault, match="not aligned to its size"):
        through.read(IOVA, 1)
    tables.attach(1, mode=7)
    with pytest.raises(IommuFault, match="asks for 7 levels"):
        through.read(IOVA, 1)


def test_tables_outside_memory_fault(tables: Tables) -> None:
    tables.entry(2, IOVA, 1 << 40 | PTE_PRESENT | 1 << LEVEL_SHIFT)
    with pytest.raises(IommuFault, match="table outside DRAM: 0x"):
        device(tables).read(IOVA, 1)


def test_a_leaf_outside_memory_is_an_address_error(tables: Tables) -> None:
    tables.map(IOVA, 1 << 40)
    with pytest.raises(AddressError, match="not inside DRAM"):
        device(tables).read(IOVA, 1)


def test_with_encryption_disabled_table_pointers_are_whole_addresses(world: World) -> None:
    made = Tables(world, encrypted=True)
    made.attach(1)
    made.map(IOVA, P | C)
    iommu = made.iommu()
    iommu.c_bit = None
    with pytest.raises(IommuFault, match="table outside DRAM"):
        iommu.translate(1, IOVA, write=False)


def test_the_walk_never_hits_a_guests_copy_of_a_table_page(world: World) -> None:
    made = Tables(world, encrypted=False)
    made.attach(1)
    made.map(IOVA, P)
    forged = (2 * PAGE | PTE_PRESENT | READ | WRITE).to_bytes(8, "little") * 512
    world.cache.write(Spa(made.table(1, IOVA)), forged, ALICE)
    assert made.iommu().translate(1, IOVA, write=False) == place(P, C_BIT)


@given(st.data())
def test_any_table_content_gives_a_translation_or_a_typed_refusal(data: st.DataObject) -> None:
    world = World(size=16 * PAGE)
    for page in range(1, 5):
        raw = data.draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8))
        few = [value & ~0xFFFF_FFFF_F000 | value & 0x7000 for value in raw]  # mostly inside memory
        world.probe.write(
            Spa(page * PAGE), b"".join(value.to_bytes(8, "little") for value in few) * (512 // len(few))
        )
    iommu = Iommu(world.cache, device_table=PAGE, devices=64, c_bit=51)
    address = data.draw(st.integers(0, (1 << 57) - 1) | st.integers(0, 64 * PAGE))
    try:
        where = iommu.translate(data.draw(st.integers(0, 70)), address, write=data.draw(st.booleans()))
    except (IommuFault, NotModelled):
        return
    assert where.spa % PAGE == address % PAGE
    assert where.key_id in (HOST, UNENCRYPTED)


def test_lines_that_a_device_reads_count_as_any_others(world: World) -> None:
    port(world).read(P | C, 4 * LINE)
    port(world).read(P, 2 * LINE)
    counts = world.controller.counts
    assert (counts.reads_encrypted_lines, counts.reads_plain_lines) == (4, 2)
