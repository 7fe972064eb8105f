"""A core's privileged instructions, on the stand-in memory and on the machine's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cbit.cpu.control import Cr4, PagingMode
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.faults import ExitCode, GeneralProtection, PageFault, WrongCoreMode
from cbit.cpu.msr import Hwcr, Msr
from cbit.cpu.physical import CachedMemory
from cbit.spec.address import MIB, Gva, Hva, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED, guest
from cpu.fake_memory import FakeMemory
from cpu.real_memory import real_cache
from cpu.worlds import ALICE, BOB, SIZE, World

MEMORIES: dict[str, Callable[..., CachedMemory]] = {"fake": FakeMemory, "real": real_cache}
PLAIN_VIEW, PRIVATE_VIEW = Hva(64 * MIB), Hva(65 * MIB)
PAGE_OF_INTEREST = Spa(0x2000)


@pytest.fixture(params=MEMORIES)
def memory(request: pytest.FixtureRequest) -> CachedMemory:
    return MEMORIES[request.param](SIZE)


@pytest.fixture(params=MEMORIES)
def coherent(request: pytest.FixtureRequest) -> CachedMemory:
    return MEMORIES[request.param](SIZE, coherent=True)


def two_views(memory: CachedMemory) -> World:
    """One physical page, mapped with C=0 and with C=1."""
    world = World(memory=memory)
    host = world.boot()
    host.map(PLAIN_VIEW, PAGE_OF_INTEREST, c=False)
    host.map(PRIVATE_VIEW, PAGE_OF_INTEREST, c=True)
    return world


# --- what the memory below promises (both must, or these tests prove nothing)


def test_tags_are_incoherent_copies(memory: CachedMemory) -> None:
    memory.write(PAGE_OF_INTEREST, b"host", HOST)
    assert b"host" == memory.read(PAGE_OF_INTEREST, 4, HOST)
    assert b"\0\0\0\0" == memory.read(PAGE_OF_INTEREST, 4, UNENCRYPTED)
    assert 1 == memory.clflush(PAGE_OF_INTEREST, HOST)
    assert b"\0\0\0\0" == memory.read(PAGE_OF_INTEREST, 4, UNENCRYPTED)  # still the old copy
    memory.wbinvd()
    assert b"host" != memory.read(PAGE_OF_INTEREST, 4, UNENCRYPTED)
    assert b"\0\0\0\0" != memory.read(PAGE_OF_INTEREST, 4, UNENCRYPTED)
    assert b"host" == memory.read(PAGE_OF_INTEREST, 4, HOST)


def test_a_coherent_memory_shows_ciphertext_at_once(coherent: CachedMemory) -> None:
    coherent.write(PAGE_OF_INTEREST, b"host", HOST)
    assert b"host" != coherent.read(PAGE_OF_INTEREST, 4, UNENCRYPTED)
    assert b"host" == coherent.read(PAGE_OF_INTEREST, 4, HOST)


# --- checklist §12


def test_checklist_1_and_9_a_plain_view_of_a_private_page(memory: CachedMemory) -> None:
    world = two_views(memory)
    world.core.read(PLAIN_VIEW, 8)  # an old copy under C=0 …
    world.core.write(PRIVATE_VIEW, b"secret")
    assert b"\0" * 6 == world.core.read(PLAIN_VIEW, 6)  # … hides the change until it is flushed
    world.core.clflush(PRIVATE_VIEW)
    assert b"\0" * 6 == world.core.read(PLAIN_VIEW, 6)
    world.core.clflush(PLAIN_VIEW)
    assert world.core.read(PLAIN_VIEW, 6) not in (b"\0" * 6, b"secret")
    assert b"secret" == world.core.read(PRIVATE_VIEW, 6)


def test_checklist_9_coherent_parts_need_no_flush(coherent: CachedMemory) -> None:
    world = two_views(coherent)
    world.core.read(PLAIN_VIEW, 8)
    world.core.write(PRIVATE_VIEW, b"secret")
    assert world.core.read(PLAIN_VIEW, 6) not in (b"\0" * 6, b"secret")


def guest_writes(world: World, *, private: bool, asid: int = ALICE) -> None:
    nested = world.nested()
    nested.map(0x7000, PAGE_OF_INTEREST)
    with world.run(nested, asid=asid) as view:
        view.write_physical(0x7000 | (1 << 47 if private else 0), b"guest")


def in_dram(memory: CachedMemory, asid: int = ALICE) -> bool:
    """Whether the guest's text reached DRAM: a look past every cached copy."""
    memory.invd()
    return b"guest" == memory.read(PAGE_OF_INTEREST, 5, guest(asid))


def test_checklist_10_vmpage_flush_reaches_the_private_lines_of_that_asid(memory: CachedMemory) -> None:
    world = two_views(memory)
    guest_writes(world, private=True)
    world.core.wbinvd()
    guest_writes(world, private=True)
    world.core.wrmsr(Msr.VMPAGE_FLUSH, PLAIN_VIEW | ALICE)
    assert in_dram(memory)


@pytest.mark.parametrize("how", ["nothing", "VMPAGE_FLUSH of another ASID", "CLFLUSH", "of another page"])
def test_checklist_10_nothing_else_reaches_them(memory: CachedMemory, how: str) -> None:
    world = two_views(memory)
    world.core.read(PRIVATE_VIEW, 1)
    guest_writes(world, private=True)
    if how == "VMPAGE_FLUSH of another ASID":
        world.core.wrmsr(Msr.VMPAGE_FLUSH, PLAIN_VIEW | BOB)
    elif how == "CLFLUSH":  # through the host's mappings: only the host's tags (§6.2)
        world.core.clflush(PLAIN_VIEW)
        world.core.clflush(PRIVATE_VIEW)
    elif how == "of another page":
        world.core.wrmsr(Msr.VMPAGE_FLUSH, 0x3000 | ALICE)
    assert not in_dram(memory)


def test_checklist_10_vmpage_flush_does_not_reach_what_the_guest_shares(memory: CachedMemory) -> None:
    world = two_views(memory)
    world.core.wbinvd()
    guest_writes(world, private=False)
    world.core.wrmsr(Msr.VMPAGE_FLUSH, PLAIN_VIEW | ALICE)
    memory.invd()
    assert b"guest" != memory.read(PAGE_OF_INTEREST, 5, UNENCRYPTED)


def test_on_coherent_parts_clflush_evicts_guest_lines(coherent: CachedMemory) -> None:
    world = two_views(coherent)
    guest_writes(world, private=True)
    world.core.clflush(PLAIN_VIEW)
    assert in_dram(coherent)


def test_shared_pages_are_one_copy_for_guest_and_host(memory: CachedMemory) -> None:
    """MODEL CHOICE of §6.1 rule 4: shared accesses carry the host's tag."""
    world = two_views(memory)
    guest_writes(world, private=False)
    assert b"guest" == world.core.read(PLAIN_VIEW, 5)


# --- VMPAGE_FLUSH's own rules


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (PLAIN_VIEW | 0, "ASID 0"),
        (0x7F00_0000 | ALICE, "not present"),
        (1 << 47 | ALICE, "non-canonical"),
    ],
)
def test_vmpage_flush_refuses(value: int, why: str) -> None:
    world = two_views(FakeMemory(SIZE))
    with pytest.raises(GeneralProtection, match=why):
        world.core.wrmsr(Msr.VMPAGE_FLUSH, value)


def test_vmpage_flush_of_an_asid_that_no_guest_has_is_not_guessed_at() -> None:
    world = two_views(FakeMemory(SIZE))
    with pytest.raises(NotModelled, match="ASID 16"):
        world.core.wrmsr(Msr.VMPAGE_FLUSH, PLAIN_VIEW | 16)


def test_with_smap_vmpage_flush_wants_a_supervisors_mapping() -> None:
    world = two_views(FakeMemory(SIZE))
    host = world.host_builder()
    host.map(0x5000, PAGE_OF_INTEREST, flags=3)
    host.map(0x6000, PAGE_OF_INTEREST)
    world.core.mov_cr3(host.cr3)
    world.core.wrmsr(Msr.VMPAGE_FLUSH, 0x6000 | ALICE)
    world.core.mov_cr4(world.core.controls.cr4 | Cr4.SMAP)
    world.core.wrmsr(Msr.VMPAGE_FLUSH, 0x5000 | ALICE)
    for ac in (False, True):
        world.core.set_alignment_check(on=ac)
        with pytest.raises(GeneralProtection):
            world.core.wrmsr(Msr.VMPAGE_FLUSH, 0x6000 | ALICE)


# --- WBINVD and INVD


def test_wbinvd_writes_back_and_says_that_it_did(memory: CachedMemory) -> None:
    world = two_views(memory)
    guest_writes(world, private=True)
    assert not world.core.wbinvd_done
    assert world.core.wbinvd() > 0
    assert world.core.wbinvd_done
    assert in_dram(memory)
    world.core.clear_wbinvd_done()
    assert not world.core.wbinvd_done
    other = world.another_core(1)
    other.wbinvd()
    assert (False, True) == (world.core.wbinvd_done, other.wbinvd_done)  # one flag a thread


@pytest.mark.parametrize("converted", [True, False])
def test_invd_loses_the_last_writes_unless_it_is_converted(memory: CachedMemory, *, converted: bool) -> None:
    world = two_views(memory)
    world.core.wrmsr(Msr.HWCR, Hwcr.SMM_LOCK | (Hwcr.INVD_TO_WBINVD if converted else 0))
    world.core.wbinvd()
    world.core.clear_wbinvd_done()
    guest_writes(world, private=True)
    assert world.core.invd() > 0
    assert converted is world.core.wbinvd_done
    assert converted is in_dram(memory)


def test_clflush_faults_like_a_load() -> None:
    world = two_views(FakeMemory(SIZE))
    with pytest.raises(PageFault):
        world.core.clflush(Hva(0x7F00_0000))


# --- host mode and guest mode


def test_while_a_guest_runs_the_host_does_not() -> None:
    world = two_views(FakeMemory(SIZE))
    view = world.run(world.nested())
    core = world.core
    for act in (
        lambda: core.read(PLAIN_VIEW, 1),
        lambda: core.write(PLAIN_VIEW, b"x"),
        lambda: core.fetch(PLAIN_VIEW, 1),
        lambda: core.walk(PLAIN_VIEW),
        core.wbinvd,
        core.invd,
        lambda: core.clflush(PLAIN_VIEW),
        lambda: core.invlpg(PLAIN_VIEW),
        lambda: core.invlpga(0, 1),
        lambda: core.mov_cr0(0),
        lambda: core.mov_cr3(0),
        lambda: core.mov_cr4(0),
        lambda: core.rdmsr(Msr.EFER),
        lambda: core.wrmsr(Msr.EFER, 0),
        lambda: core.vmrun(0x3000),
    ):
        with pytest.raises(WrongCoreMode, match="runs a guest"):
            act()
    assert not core.wbinvd_done
    with view:
        pass
    core.read(PLAIN_VIEW, 1)


def test_a_reset_ends_the_guests_turn() -> None:
    world = two_views(FakeMemory(SIZE))
    view = world.run(world.nested())
    world.core.reset()
    assert (False, 0) == (view.running, world.core.asid)
    with pytest.raises(WrongCoreMode):
        view.read(Gva(0), 1)
    with pytest.raises(WrongCoreMode):
        view.vmexit(ExitCode.HLT)


def test_reset_forgets_registers_and_translations(memory: CachedMemory) -> None:
    world = two_views(memory)
    world.core.write(PRIVATE_VIEW, b"x")
    world.core.wbinvd()
    world.core.reset()
    assert not world.core.encryption_on
    assert not world.core.wbinvd_done
    assert 0 == len(world.tlb)
    assert PagingMode.OFF is world.core.controls.mode
    assert b"x" != world.core.read(Hva(PAGE_OF_INTEREST), 1)  # paging off: ciphertext


# --- checklist 4 to 7, once more on real memory: what each party reads


def test_checklist_4_to_6_on_real_memory() -> None:
    memory = real_cache()
    world = World(memory=memory)
    world.boot()
    for guest_c, nested_c in ((False, False), (False, True), (True, False), (True, True)):
        nested = world.nested()
        tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
        frame = 0x2_0000 + 0x1000 * (2 * guest_c + nested_c)
        tables.map(0x5000, 0x7000, c=guest_c)
        nested.map(0x7000, frame, c=nested_c)
        with world.run(nested, tables, tlb_control=3) as view:
            view.write(Gva(0x5000), b"sixteen bytes ok")
            private = guest_c  # a fetch is always with the guest's key
            assert private is (b"sixteen bytes ok" == view.fetch(Gva(0x5000), 16))
        world.core.wbinvd()
        readable = {
            key
            for key in (UNENCRYPTED, HOST, guest(ALICE), guest(BOB))
            if b"sixteen bytes ok" == memory.read(Spa(frame), 16, key)
        }
        expected = guest(ALICE) if guest_c else HOST if nested_c else UNENCRYPTED
        assert {expected} == readable
        assert (expected == UNENCRYPTED) is (b"sixteen bytes ok" == memory.wire(Spa(frame), 16))


def test_the_core_reports_its_part() -> None:
    world = World(features=EncryptionFeatures(c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5))
    assert 47 == world.core.cpuid(0x8000_001F).ebx & 63
