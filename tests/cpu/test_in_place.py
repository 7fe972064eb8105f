"""The in-place sequence, on the stand-in memory and the machine's own; and what each missing step costs."""

from __future__ import annotations

import pytest

from cbit.cpu.core import Core
from cbit.cpu.faults import PageFault
from cbit.cpu.in_place import Windows, change_encryption
from cbit.cpu.msr import Msr, Syscfg
from cbit.cpu.page_tables import PageTables
from cbit.cpu.paging import Pte, Step
from cbit.cpu.physical import CachedMemory
from cbit.spec.address import MIB, PAGE, Hva, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cpu.fake_memory import FakeMemory
from cpu.real_memory import real_cache
from cpu.worlds import SIZE, World

LIVE, FRAME = Hva(64 * MIB), Spa(0x2000)
WINDOWS = Windows(Hva(65 * MIB), Hva(65 * MIB + PAGE))
TEXT = b"what the page holds, all along"


@pytest.fixture(params=["fake", "real", "fake coherent", "real coherent"])
def memory(request: pytest.FixtureRequest) -> CachedMemory:
    kind, _, coherent = request.param.partition(" ")
    made: CachedMemory = (FakeMemory if kind == "fake" else real_cache)(SIZE, coherent=bool(coherent))
    return made


def host(memory: CachedMemory, *, c: bool = False) -> tuple[Core, PageTables]:
    """A core on tables that the room's own editor made, with one live page."""
    world = World(memory=memory)
    core = world.core
    core.wrmsr(Msr.SYSCFG, Syscfg.MEM_ENCRYPTION_MOD_EN)
    tables = PageTables(core.host_tables(), world.new_page(), rules=core.rules, new_table=world.new_page)
    tables.map(LIVE, FRAME, c=c)
    core.enter_long_mode(tables.root)
    core.write(LIVE, TEXT)
    return core, tables


def dram(memory: CachedMemory) -> bytes:
    """What is on the wire: flush everything, then read without a key."""
    memory.wbinvd()
    return memory.read(FRAME, len(TEXT), UNENCRYPTED)


@pytest.mark.parametrize("private", [True, False])
def test_a_live_page_changes_and_keeps_what_it_holds(memory: CachedMemory, *, private: bool) -> None:
    core, tables = host(memory, c=not private)
    if not private:
        core.wbinvd()
    change_encryption(core, tables, LIVE, private=private, windows=WINDOWS)
    assert TEXT == core.read(LIVE, len(TEXT))
    assert private is core.walk(LIVE).leaf.c
    core.write(LIVE, TEXT.upper())
    assert TEXT.upper() == core.read(LIVE, len(TEXT))
    wire = dram(memory)
    assert private is (wire != TEXT.upper())
    assert TEXT.upper() == memory.read(FRAME, len(TEXT), HOST if private else UNENCRYPTED)
    for window in WINDOWS:  # nothing is left of them, in the tables or the TLB
        with pytest.raises(PageFault):
            core.read(window, 1)


def test_nothing_of_the_old_form_is_left_in_a_cache(memory: CachedMemory) -> None:
    core, tables = host(memory)
    change_encryption(core, tables, LIVE, private=True, windows=WINDOWS)
    assert TEXT != memory.read(FRAME, len(TEXT), UNENCRYPTED)  # no flush in between


def test_there_and_back_again(memory: CachedMemory) -> None:
    core, tables = host(memory)
    before = tables.leaf(LIVE)
    for private in (True, False, True, False):
        change_encryption(core, tables, LIVE, private=private, windows=WINDOWS)
    assert before is not None
    after = tables.leaf(LIVE)
    assert after is not None
    assert before.value == after.value
    assert TEXT == dram(memory)


def test_a_page_that_is_already_so_is_left_alone(memory: CachedMemory) -> None:
    core, tables = host(memory, c=True)
    change_encryption(core, tables, LIVE, private=True, windows=WINDOWS)
    assert TEXT == core.read(LIVE, len(TEXT))
    assert None is tables.leaf(WINDOWS.source)


def test_pages_that_are_absent_or_large_are_refused(memory: CachedMemory) -> None:
    core, tables = host(memory)
    with pytest.raises(PageFault):
        change_encryption(core, tables, Hva(LIVE + PAGE), private=True, windows=WINDOWS)
    tables.map(128 * MIB, 0, size=2 * MIB)
    with pytest.raises(ValueError, match="4 KiB leaf"):
        change_encryption(core, tables, Hva(128 * MIB), private=True, windows=WINDOWS)


# --- what each step is for


def test_the_old_form_is_in_dram_and_write_protected_before_the_new_one_is_written() -> None:
    """Otherwise whoever is evicted last wins (§6.3), and a stray store would be lost."""
    tag = FRAME, UNENCRYPTED

    class Watchful(FakeMemory):
        dirty_when_converted: bool | None = None
        source: Step | None = None

        def write(self, spa: Spa, data: bytes | bytearray | memoryview, key_id: KeyId) -> None:
            if spa & -PAGE == FRAME and key_id == HOST:
                self.dirty_when_converted = bool(self.dirty.get(tag))
                self.source = tables.leaf(WINDOWS.source)
            super().write(spa, data, key_id)

    memory = Watchful(SIZE)
    core, tables = host(memory)
    assert memory.dirty[tag]
    change_encryption(core, tables, LIVE, private=True, windows=WINDOWS)
    assert False is memory.dirty_when_converted
    assert memory.source is not None
    assert Pte.P == memory.source.value & (Pte.P | Pte.W)


@pytest.mark.parametrize("make", [FakeMemory, real_cache])
def test_changing_only_the_leaf_turns_the_page_into_garbage(make: type[FakeMemory]) -> None:
    core, tables = host(make(SIZE))
    core.wbinvd()
    leaf = tables.leaf(LIVE)
    assert leaf is not None
    tables.set_leaf(leaf, leaf.value | 1 << core.features.c_bit)
    assert TEXT == core.read(LIVE, len(TEXT))  # the TLB has not noticed
    core.invlpg(LIVE)
    assert TEXT != core.read(LIVE, len(TEXT))


@pytest.mark.parametrize("make", [FakeMemory, real_cache])
def test_without_the_flush_the_last_writes_are_not_what_is_encrypted(make: type[FakeMemory]) -> None:
    """Hazard of §6.3: a dirty C=0 copy, and a conversion that reads DRAM under another tag."""
    memory = make(SIZE)
    core, tables = host(memory)
    tables.map(WINDOWS.destination, FRAME, c=True)
    core.write(WINDOWS.destination, core.read(LIVE, PAGE))  # no CLFLUSH before, none after
    tables.map(LIVE, FRAME, c=True)
    core.invlpg(LIVE)
    assert TEXT == core.read(LIVE, len(TEXT))  # so far it looks well …
    core.read(Hva(WINDOWS.destination), 1)
    memory.clflush(FRAME, HOST)
    memory.clflush(FRAME, UNENCRYPTED)  # … until the forgotten dirty copy goes out last
    assert TEXT != core.read(LIVE, len(TEXT))


@pytest.mark.parametrize("make", [FakeMemory, real_cache])
def test_without_the_tlb_flush_plaintext_is_written_into_the_private_page(make: type[FakeMemory]) -> None:
    memory = make(SIZE)
    core, tables = host(memory)
    core.read(LIVE, 1)
    stale = core.tlb.snapshot()
    change_encryption(core, tables, LIVE, private=True, windows=WINDOWS)
    for (tag, page), translation in stale.items():
        core.tlb.fill(tag, page, translation)  # as if the flush had been withheld
    core.write(LIVE, b"leak")
    assert b"leak" == dram(memory)[:4]


# --- the editor


def test_the_editor_refuses_what_does_not_fit() -> None:
    core, tables = host(FakeMemory(SIZE))
    before = tables.leaf(LIVE)
    for linear, physical, size in ((1, 0, PAGE), (0, 1, PAGE), (PAGE, 0, 2 * MIB), (0, 0, 8192)):
        with pytest.raises(ValueError, match="not multiples"):
            tables.map(linear, physical, size=size)
    for physical in (1 << 43, 1 << 47):
        with pytest.raises(ValueError, match="not a physical address"):
            tables.map(0, physical)
    tables.map(128 * MIB, 0, size=2 * MIB)
    with pytest.raises(ValueError, match="larger page"):
        tables.map(128 * MIB + PAGE, 0)
    tables.unmap(Hva(256 * MIB))
    assert before == tables.leaf(LIVE)
    assert None is tables.leaf(256 * MIB)
    assert core.features.c_bit == 47


def test_encrypted_tables_are_ciphertext_in_dram_and_still_walked() -> None:
    memory = FakeMemory(SIZE)
    world = World(memory=memory)
    world.encrypt()
    root = world.new_page() | 1 << 47
    tables = PageTables(world.core.host_tables(), root, rules=world.core.rules, new_table=world.new_page)
    tables.map(1 << 30, 0x4000_0000, size=1 << 30, flags=Pte.W)
    tables.map(LIVE, FRAME, c=True)
    world.core.enter_long_mode(root)
    world.core.write(LIVE, TEXT)
    found = world.core.walk(LIVE)
    assert [True] * 4 == [step.c for step in found.leaf.steps]
    assert 0x4000_0000 == world.core.walk(Hva(1 << 30)).page
    leaf = tables.leaf(LIVE)
    assert leaf is not None
    memory.wbinvd()
    raw = int.from_bytes(memory.read(Spa(leaf.address), 8, UNENCRYPTED), "little")
    assert leaf.value != raw
