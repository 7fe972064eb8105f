"""The TLB is invisible to software that flushes, and visible exactly where a flush was withheld."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cbit.cpu.control import PagingMode
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.faults import InvalidOpcode, NestedPageFault
from cbit.cpu.mitigations import Mitigations
from cbit.cpu.paging import Leaf
from cbit.cpu.tlb import LastRuns, Tag, Tlb, TlbControl, VmMode
from cbit.cpu.translation import Translation
from cbit.cpu.vmcb import Enable
from cbit.spec.address import MIB, PAGE, Gva, Hva, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import UNENCRYPTED, guest
from cpu.tables import Builder, G, P, U, W
from cpu.worlds import ALICE, BOB, World, guest_vmcb

DATA = Hva(0x30_0000 + 64 * MIB)
GUEST_DATA = Gva(0x5000)


def entry(page: int = 0x2000, *, size: int = PAGE, global_page: bool = False) -> Translation:
    return Translation(page=Spa(page), leaf=Leaf(base=page, size=size, global_page=global_page))


def tag(asid: int = 1, core: int = 0, mode: VmMode = VmMode.SEV) -> Tag:
    return Tag(asid=asid, core=core, mode=mode)


# --- the tag


@pytest.mark.parametrize("other", [tag(2), tag(core=1), tag(mode=VmMode.PLAIN), tag(mode=VmMode.SEV_ES)])
def test_an_entry_is_found_under_its_own_tag_only(other: Tag) -> None:
    tlb = Tlb()
    tlb.fill(tag(), 0x5123, entry())
    assert tlb.find(tag(), 0x5FFF) is not None
    assert None is tlb.find(other, 0x5123)
    assert None is tlb.find(tag(), 0x6000)


# --- who flushes what


@pytest.fixture
def full() -> Tlb:
    """Two ASIDs, two cores, a global and an ordinary page each."""
    tlb = Tlb()
    for asid in (0, 1, 2):
        for core in (0, 1):
            tlb.fill(tag(asid, core), 0x5000, entry())
            tlb.fill(tag(asid, core), 0x6000, entry(global_page=True))
    return tlb


@pytest.mark.parametrize(
    ("control", "left"),
    [
        (TlbControl.NOTHING, 12),
        (TlbControl.ALL_ASIDS, 6),  # the other logical core keeps its own
        (TlbControl.THIS_ASID, 10),
        (TlbControl.THIS_ASID_NON_GLOBAL, 11),
    ],
)
def test_tlb_control(full: Tlb, control: TlbControl, left: int) -> None:
    full.flush(control, core=0, asid=1)
    assert left == len(full)
    expected = control is TlbControl.NOTHING
    assert expected is (full.find(tag(1), 0x5000) is not None)
    assert (expected or control is TlbControl.THIS_ASID_NON_GLOBAL) is (full.find(tag(1), 0x6000) is not None)
    assert (control is not TlbControl.ALL_ASIDS) is (full.find(tag(2), 0x5000) is not None)
    assert full.find(tag(1, core=1), 0x5000) is not None


def test_mov_cr3_flushes_its_own_address_space_but_for_global_pages(full: Tlb) -> None:
    full.flush_after_mov_cr3(tag(1))
    assert 11 == len(full)
    assert None is full.find(tag(1), 0x5000)
    assert full.find(tag(1), 0x6000) is not None


def test_invalidating_a_page_takes_global_entries_and_all_pieces_of_large_ones(full: Tlb) -> None:
    full.fill(tag(1), 0x20_0000, entry(size=2 * MIB))
    full.fill(tag(1), 0x3F_F000, entry(size=2 * MIB))
    full.fill(tag(1), 0x40_0000, entry(size=2 * MIB))
    full.flush_page(0x30_0000, core=0, asid=1)
    assert [None, None] == [full.find(tag(1), 0x20_0000), full.find(tag(1), 0x3F_F000)]
    assert full.find(tag(1), 0x40_0000) is not None
    full.flush_page(0x6123, core=0, asid=1)
    assert None is full.find(tag(1), 0x6000)
    assert full.find(tag(2), 0x6000) is not None


# --- the host


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("how", ["withheld", "invlpg", "mov_cr3"])
def test_the_host_sees_a_changed_leaf_after_a_flush_and_not_before(world: World, how: str) -> None:
    host = world.boot()
    host.map(DATA, 0x2000)
    world.core.write(DATA, b"old")
    host.map(DATA, 0x3000)
    if how == "invlpg":
        world.core.invlpg(DATA)
    elif how == "mov_cr3":
        world.core.mov_cr3(host.cr3)
    assert (b"old" if how == "withheld" else b"\0\0\0") == world.core.read(DATA, 3)
    assert 0x3000 == world.core.walk(DATA).page


def test_global_pages_outlive_mov_cr3_and_not_a_change_of_cr4(world: World) -> None:
    host = world.boot()
    host.map(DATA, 0x2000, flags=P | W | U | G)
    world.core.write(DATA, b"old")
    host.map(DATA, 0x3000)
    world.core.mov_cr3(host.cr3)
    assert b"old" == world.core.read(DATA, 3)
    world.core.mov_cr4(world.core.controls.cr4 & ~(1 << 7))
    assert b"\0\0\0" == world.core.read(DATA, 3)


def test_a_more_generous_leaf_needs_no_flush_and_a_stricter_one_does(world: World) -> None:
    host = world.boot()
    host.map(DATA, 0x2000, flags=P)
    world.core.read(DATA, 1)
    host.map(DATA, 0x2000, flags=P | W)
    world.core.write(DATA, b"x")
    host.map(DATA, 0x2000, flags=P)
    world.core.write(DATA, b"stale permission")


def test_a_stale_c_bit_keeps_reading_with_the_old_key(world: World) -> None:
    host = world.boot()
    host.map(DATA, 0x2000, c=True)
    world.core.write(DATA, b"secret")
    world.core.wbinvd()
    host.map(DATA, 0x2000, c=False)
    assert b"secret" == world.core.read(DATA, 6)
    world.core.invlpg(DATA)
    assert b"secret" != world.core.read(DATA, 6)


# --- guests


def two_mappings(world: World) -> tuple[Builder, Builder, int]:
    """A SEV guest with one page, and its VMCB; returns nested tables, guest tables, VMCB."""
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(GUEST_DATA, 0x7000, c=True)
    nested.map(0x7000, 0x2000)
    return nested, tables, world.vmcb(guest_vmcb(nested, tables))


@pytest.mark.parametrize("control", list(TlbControl))
def test_the_hypervisors_change_shows_when_the_vmcb_asks_for_a_flush(
    world: World, control: TlbControl
) -> None:
    """Nothing flushes by itself between #VMEXIT and VMRUN: the hypervisor is trusted with it (§7 rule 3)."""
    world.boot()
    nested, tables, page = two_mappings(world)
    with world.core.vmrun(page) as view:
        view.write(GUEST_DATA, b"old")
    nested.map(0x7000, 0x3000)
    world.vmcb(guest_vmcb(nested, tables, tlb_control=control), at=page)
    with world.core.vmrun(page) as view:
        stale = b"old" == view.read(GUEST_DATA, 3)
    assert (control is TlbControl.NOTHING) is stale


def test_another_vmcb_of_the_same_asid_meets_the_old_entries(world: World) -> None:
    """TLB poisoning, as §7 rule 3 allows it: one ASID, two address spaces, a withheld flush."""
    world.boot()
    nested, _, first = two_mappings(world)
    with world.core.vmrun(first) as view:
        view.write(GUEST_DATA, b"victim")
    other = world.nested()
    other.map(0x5000, 0x3000)
    for control, hit in ((TlbControl.NOTHING, True), (TlbControl.THIS_ASID, False)):
        with world.core.vmrun(world.vmcb(guest_vmcb(other, tlb_control=control))) as view:
            assert hit is (b"victim" == view.read(GUEST_DATA, 6))
    assert nested.root != other.root


@pytest.mark.parametrize("flushes", [False, True])
def test_a_core_that_sees_to_it_flushes_for_another_vmcb_of_the_asid_and_for_no_other(
    *, flushes: bool
) -> None:
    world = World(mitigations=Mitigations(flushes_for_another_vcpu=flushes))
    world.boot()
    _, _, first = two_mappings(world)
    with world.core.vmrun(first) as view:
        view.write(GUEST_DATA, b"victim")
    other = world.nested()
    other.map(0x5000, 0x3000)
    with world.core.vmrun(world.vmcb(guest_vmcb(other, asid=BOB))):
        pass  # another guest between the two turns takes nothing away
    held = len(world.core.tlb)
    with world.core.vmrun(first):
        assert held == len(world.core.tlb)
    with world.core.vmrun(world.vmcb(guest_vmcb(other))) as view:
        assert flushes is not (b"victim" == view.read(GUEST_DATA, 6))


def test_who_ran_last_is_kept_for_each_asid() -> None:
    runs, nothing, everything = LastRuns(), TlbControl.NOTHING, TlbControl.ALL_ASIDS
    assert nothing is runs.flush_for(1, 0x1000, nothing)  # nobody ran before
    assert nothing is runs.flush_for(2, 0x2000, nothing)
    assert nothing is runs.flush_for(1, 0x1000, nothing)
    assert TlbControl.THIS_ASID is runs.flush_for(1, 0x2000, nothing)
    assert nothing is runs.flush_for(1, 0x2000, nothing)
    assert TlbControl.THIS_ASID is runs.flush_for(1, 0x1000, nothing)
    assert everything is runs.flush_for(1, 0x2000, everything)  # more than that was asked for


def test_the_guests_own_mov_cr3_flushes_its_asid_and_nobody_elses(world: World) -> None:
    host = world.boot()
    host.map(DATA, 0x9000)
    nested, tables, page = two_mappings(world)
    world.core.write(DATA, b"host")
    host.map(DATA, 0xA000)
    with world.core.vmrun(page) as view:
        view.write(GUEST_DATA, b"old")
        nested.map(0x7000, 0x3000)
        assert b"old" == view.read(GUEST_DATA, 3)
        view.mov_cr3(tables.cr3)
        assert b"old" != view.read(GUEST_DATA, 3)
    assert b"host" == world.core.read(DATA, 4)  # stale still: ASID 0 was not flushed


@pytest.mark.parametrize("instruction", ["invlpg", "invlpga", "invlpga of another ASID"])
def test_single_guest_pages_are_flushed_from_both_sides(world: World, instruction: str) -> None:
    world.boot()
    nested, _, page = two_mappings(world)
    with world.core.vmrun(page) as view:
        view.write(GUEST_DATA, b"old")
        nested.map(0x7000, 0x3000)
        if instruction == "invlpg":
            view.invlpg(GUEST_DATA)
    if instruction != "invlpg":
        world.core.invlpga(GUEST_DATA, ALICE if instruction == "invlpga" else BOB)
    with world.core.vmrun(page) as view:
        assert (instruction == "invlpga of another ASID") is (b"old" == view.read(GUEST_DATA, 3))


def test_invlpga_needs_svm(world: World) -> None:
    with pytest.raises(InvalidOpcode):
        world.core.invlpga(0, 1)


def test_the_same_asid_without_sev_does_not_meet_the_sev_entries(world: World) -> None:
    world.boot()
    nested, _, page = two_mappings(world)
    with world.core.vmrun(page) as view:
        view.write(GUEST_DATA, b"private")
    with world.run(nested, enable=Enable.NP_ENABLE) as view, pytest.raises(NestedPageFault):
        view.read(GUEST_DATA, 7)  # walks: GVA = GPA 0x5000, which is not mapped


def test_two_logical_cores_on_one_tlb_stay_apart(world: World) -> None:
    host = world.boot()
    twin = world.another_core(1)
    world.encrypt(twin)
    world.enter(host, twin)
    host.map(DATA, 0x2000)
    world.core.write(DATA, b"old")
    host.map(DATA, 0x3000)
    assert b"old" == world.core.read(DATA, 3)
    assert b"\0\0\0" == twin.read(DATA, 3)
    twin.invlpg(DATA)
    assert b"old" == world.core.read(DATA, 3)
    twin.read(DATA, 3)
    world.core.reset()
    assert {1} == {tag.core for tag, _ in world.tlb.snapshot()}


def test_an_unknown_tlb_control_is_not_guessed_at(world: World) -> None:
    world.boot()
    nested = world.nested()
    with pytest.raises(NotModelled, match="TLB_CONTROL 5"):
        world.run(nested, tlb_control=5)


# --- properties


@given(data=st.data())
def test_reading_through_the_tlb_is_reading_through_a_walk_when_flushed(data: st.DataObject) -> None:
    world = World()
    host = world.boot()
    pages = [Hva(DATA + n * PAGE) for n in range(3)]
    frames = [0x2000, 0x3000, 0x4000]
    for n, frame in enumerate(frames):
        world.memory.write(Spa(frame), bytes([n + 1]) * 8, UNENCRYPTED)
    for page in pages:
        host.map(page, 0x2000)
    stale: dict[int, int] = {}
    now = dict.fromkeys(pages, 0x2000)
    for _ in range(data.draw(st.integers(1, 20))):
        page = data.draw(st.sampled_from(pages))
        match data.draw(st.sampled_from(["remap", "flushed remap", "read", "mov_cr3"])):
            case "remap":
                now[page] = data.draw(st.sampled_from(frames))
                host.map(page, now[page])
            case "flushed remap":
                now[page] = data.draw(st.sampled_from(frames))
                host.map(page, now[page])
                world.core.invlpg(page)
                stale.pop(page, None)
            case "mov_cr3":
                world.core.mov_cr3(host.cr3)
                stale.clear()
            case _:
                expected = stale.setdefault(page, now[page])  # the first read after a flush is remembered
                assert frames.index(expected) + 1 == world.core.read(page, 1)[0]
        assert now[page] == world.core.walk(page).page


MANY = EncryptionFeatures(c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=1)


class NoAsidHitsAnothers(RuleBasedStateMachine):
    """Whatever runs, moves and is (not) flushed, no ASID ever uses another ASID's translation or key.

    Each guest's page is mapped somewhere else over and over, with and without flush: it may see a stale
    page, but only one that the hypervisor once gave to *it*.
    """

    asids = st.sampled_from([1, 2, 3])
    controls = st.sampled_from(list(TlbControl))

    @initialize()
    def build(self) -> None:
        self.world = World(features=MANY)
        self.world.boot()
        self.nested = {asid: self.world.nested() for asid in (1, 2, 3)}
        self.frame = dict.fromkeys((1, 2, 3), 0)
        self.given: dict[int, set[int]] = {asid: set() for asid in (1, 2, 3)}
        self.seen: dict[int, int | None] = dict.fromkeys((1, 2, 3))
        for asid in (1, 2, 3):
            self.remap(asid)

    @rule(asid=asids)
    def remap(self, asid: int) -> None:
        """The hypervisor gives the guest another page, of the guest's own pool, and flushes nothing."""
        self.frame[asid] = (self.frame[asid] + 1) % 4
        frame = asid * 0x1_0000 + self.frame[asid] * PAGE
        self.nested[asid].map(0x5000, frame)
        self.given[asid].add(frame)

    @rule(asid=asids, control=controls)
    def run(self, asid: int, control: TlbControl) -> None:
        if control is TlbControl.ALL_ASIDS:
            self.seen = dict.fromkeys(self.seen)
        elif control is not TlbControl.NOTHING:
            self.seen[asid] = None
        vmcb = guest_vmcb(self.nested[asid], asid=asid, tlb_control=control)
        with self.world.core.vmrun(self.world.vmcb(vmcb, at=0x8_0000)) as view:
            view.write(GUEST_DATA, bytes([asid]) * 8)
            assert bytes([asid]) * 8 == view.read(GUEST_DATA, 8)
        now = asid * 0x1_0000 + self.frame[asid] * PAGE
        stale = self.seen[asid]
        used = now if stale is None else stale
        self.seen[asid] = used  # stale exactly while the flush is withheld
        assert bytes([asid]) * 8 == self.world.memory.read(Spa(used), 8, guest(asid))

    @rule(asid=asids)
    def invlpga(self, asid: int) -> None:
        self.world.core.invlpga(GUEST_DATA, asid)
        self.seen[asid] = None

    @rule()
    def host_switches(self) -> None:
        self.world.core.mov_cr3(self.world.core.controls.cr3)

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def every_entry_was_given_to_its_asid(self) -> None:
        for tag, translation in self.world.tlb.snapshot().items():
            asid = tag[0].asid
            if asid:
                assert translation.page in self.given[asid]
                assert VmMode.SEV is tag[0].mode
        assert 0 == self.world.core.asid


TestNoAsidHitsAnothers = NoAsidHitsAnothers.TestCase
TestNoAsidHitsAnothers.settings = settings(max_examples=25, stateful_step_count=30)


def test_an_entry_made_by_a_write_answers_reads(world: World) -> None:
    host = world.boot()
    host.map(DATA, 0x2000)
    world.core.write(DATA, b"x")
    before = len(world.tlb)
    world.core.read(DATA, 1)
    assert before == len(world.tlb)
