"""The two-level walk: both sets of tables as built, and each fault with the information it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.control import PagingMode
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.faults import (
    ExitCode,
    GeneralProtection,
    NestedPageFault,
    PageFault,
    PageFaultCode,
    WrongCoreMode,
)
from cbit.cpu.guest_view import GuestView
from cbit.cpu.vmcb import Enable
from cbit.spec.address import PAGE, Gva, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, guest
from cpu.fake_memory import FakeMemory
from cpu.tables import NX, A, D, G, P, U, W
from cpu.worlds import ALICE, BOB, GENOA, MILAN, MODES, NAPLES, SIZE, World, guest_vmcb

Code = PageFaultCode
DATA = Gva(0x5000)
PLAIN = Enable.NP_ENABLE
SEV = Enable.NP_ENABLE | Enable.SEV


@pytest.fixture
def world() -> World:
    world = World()
    world.boot()
    return world


# --- what was built is what is found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sev", [True, False])
@given(data=st.data())
def test_a_two_level_walk_finds_what_was_built(mode: PagingMode, data: st.DataObject, *, sev: bool) -> None:
    world = World()
    world.boot()
    nested = world.nested(root_c=data.draw(st.booleans()))
    frames = data.draw(st.permutations(range(0x20_0000, 0x20_0000 + 24 * PAGE, PAGE)))
    gpas = data.draw(st.permutations(range(0x40_0000, 0x40_0000 + 24 * PAGE, PAGE)))
    can_choose = sev and mode is not PagingMode.LEGACY
    tables = world.guest_tables(
        mode,
        nested=nested,
        asid=ALICE if sev else None,
        frames=list(zip(gpas[:16], frames[:16], strict=True)),
        root_c=can_choose and mode is PagingMode.LONG and data.draw(st.booleans()),
        nested_c=data.draw(st.booleans()),
    )
    wanted = {}
    for gpa, spa in zip(gpas[16:], frames[16:], strict=True):
        gva = data.draw(st.integers(0, 3)) << 30 | data.draw(st.integers(0, 2)) << 22
        gva |= data.draw(st.integers(0, 3)) << 12
        guest_c, nested_c = can_choose and data.draw(st.booleans()), data.draw(st.booleans())
        tables.map(gva, gpa, c=guest_c, tables_c=can_choose and data.draw(st.booleans()))
        nested.map(gpa, spa, c=nested_c, tables_c=data.draw(st.booleans()))
        wanted[gva] = spa, guest_c, nested_c
    with world.run(nested, tables, enable=SEV if sev else PLAIN) as view:
        for gva, (spa, guest_c, nested_c) in wanted.items():
            found = view.walk(Gva(gva))
            assert (spa, guest_c, nested_c) == (found.page, found.leaf.c, found.nested_c)
            text = f"page {spa:#x}".encode()
            view.write(Gva(gva + 100), text)
            private = sev and (guest_c or mode is PagingMode.LEGACY)
            key = guest(ALICE) if private else HOST if nested_c else UNENCRYPTED
            assert text == world.memory.read(Spa(spa + 100), len(text), key)


@pytest.mark.parametrize("shift", [12, 21, 30])
@pytest.mark.parametrize("nested_shift", [12, 21, 30])
def test_pages_of_any_two_sizes_meet(shift: int, nested_shift: int) -> None:
    world = World(features=MILAN)
    world.boot()
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=BOB + 100)
    gva, gpa, spa = 1 << 40 | 0x3_2000, 1 << 41 | 0x3_2000, 0x2000
    tables.map(gva & -(1 << shift), gpa & -(1 << shift), shift=shift, c=True)
    base = gpa & -(1 << nested_shift)
    nested.map(base, spa if nested_shift == 12 else 0, shift=nested_shift)
    with world.run(nested, tables, asid=BOB + 100) as view:
        found = view.walk(Gva(gva + 5))
    expected = spa if nested_shift == 12 else gpa - base
    assert (expected, 1 << shift) == (found.page, found.leaf.size)


# --- §3: the C-bit and the guest's physical addresses


def test_the_example_of_section_3_and_checklist_7(world: World) -> None:
    """C-bit 47: 0x54321 -> 0x8000_00AB_C321 -> nested walk on 0xAB_C321 -> result with C."""
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(0x5_4000, 0xAB_C000, c=True)
    assert 0x8000_00AB_C000 == tables.entry(0x5_4000, 12) & ~0xFFF
    nested.map(0xAB_C000, 0x2000)
    with world.run(nested, tables) as view:
        found = view.walk(Gva(0x5_4321))
        assert (0x2321, True, False) == (found.spa(0x5_4321), found.leaf.c, found.nested_c)
        view.write(Gva(0x5_4321), b"private")
    assert b"private" == world.memory.read(Spa(0x2321), 7, guest(ALICE))
    # The bad twin: mapped at the address that still has its C-bit, nothing is found.
    nested.patch(0xAB_C000, 12, clear=P)
    nested.map(0x8000_00AB_C000, 0x2000)
    with pytest.raises(NestedPageFault) as caught:
        world.run(nested, tables).walk(Gva(0x5_4321))
    assert 0x8000_00AB_C321 == caught.value.exit_info_2


@pytest.mark.parametrize("part", [NAPLES, MILAN])
def test_a_guest_loses_only_the_c_bit_of_its_addresses(part: EncryptionFeatures) -> None:
    """The reduction is for system addresses; a guest's use all the part's bits but one (§3 rule 6)."""
    world = World(features=part)
    world.boot()
    asid = part.guests
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=asid)
    high = 1 << 46 | 0x7000  # far above the 43 bits of a system address
    tables.map(DATA, high, c=True)
    nested.map(high, 0x2000)
    with world.run(nested, tables, asid=asid) as view:
        view.write(DATA, b"high")
    assert b"high" == world.memory.read(Spa(0x2000), 4, guest(asid))
    tables.patch(DATA, 12, set_bits=1 << 48)
    with pytest.raises(PageFault) as caught:
        world.run(nested, tables, asid=asid).walk(DATA)
    assert Code.P | Code.RSVD == caught.value.code


def test_without_sev_the_c_bit_is_an_ordinary_address_bit(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=None)
    tables.map(DATA, 1 << 47 | 0x7000)
    nested.map(1 << 47 | 0x7000, 0x2000)
    with world.run(nested, tables, enable=PLAIN) as view:
        view.write(DATA, b"bit 47")
    assert b"bit 47" == world.memory.read(Spa(0x2000), 6, UNENCRYPTED)


def test_an_address_beyond_the_nested_tables_is_absent() -> None:
    world = World(features=GENOA, memory=FakeMemory(SIZE, coherent=True))
    world.boot()
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=1006)
    tables.map(DATA, 1 << 48)
    with pytest.raises(NestedPageFault) as caught:
        world.run(nested, tables, asid=1006).write(DATA, b"x")
    assert (Code.U | Code.W | Code.FINAL, 1 << 48) == (caught.value.code, caught.value.exit_info_2)


# --- nested faults


Act = Callable[[GuestView], object]
ACTS: dict[str, tuple[Act, PageFaultCode]] = {
    "read": (lambda view: view.read(DATA, 1), Code(0)),
    "write": (lambda view: view.write(DATA, b"x"), Code.W),
    "fetch": (lambda view: view.fetch(DATA, 1), Code.ID),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("guest_c", [True, False])
def test_an_absent_final_page_is_reported_with_bit_32_and_the_c_bit(
    world: World, act: str, *, guest_c: bool
) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000, c=guest_c)
    do, kind = ACTS[act]
    view = world.run(nested, tables)
    with pytest.raises(NestedPageFault) as caught:
        do(view)
    assert kind | Code.U | Code.FINAL == caught.value.exit_info_1
    assert 0x7000 | (1 << 47 if guest_c else 0) == caught.value.exit_info_2
    assert ExitCode.NPF == caught.value.exit_code


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shift", [12, 21, 30, 39])
def test_an_absent_table_page_is_reported_with_bit_33_as_a_write(world: World, act: str, shift: int) -> None:
    """Table walks are writes to the nested tables, even for a fetch: the walker may have to set A."""
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000, c=True)
    nested.map(0x7000, 0x2000)
    where, _ = tables.find(DATA, shift)
    nested.patch(where, 12, clear=P)
    with pytest.raises(NestedPageFault) as caught:
        ACTS[act][0](world.run(nested, tables))
    assert Code.W | Code.U | Code.TABLE == caught.value.exit_info_1
    assert where == caught.value.exit_info_2


def test_guest_tables_cannot_lie_in_read_only_nested_pages(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000)
    nested.map(0x7000, 0x2000)
    nested.patch(tables.root, 12, clear=W)
    with pytest.raises(NestedPageFault) as caught:
        world.run(nested, tables).read(DATA, 1)
    assert Code.P | Code.W | Code.U | Code.TABLE == caught.value.exit_info_1


@pytest.mark.parametrize(
    ("act", "flags", "code"),
    [
        ("write", P | U, Code.P | Code.W | Code.U),
        ("fetch", P | W | U | NX, Code.P | Code.ID | Code.U),
        ("read", P | W, Code.P | Code.U),  # every guest access is a user access there
    ],
)
def test_nested_permissions_are_checked(world: World, act: str, flags: int, code: PageFaultCode) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000)
    nested.map(0x7000, 0x2000, flags=flags)
    with pytest.raises(NestedPageFault) as caught:
        ACTS[act][0](world.run(nested, tables))
    assert code | Code.FINAL == caught.value.exit_info_1


@pytest.mark.parametrize("bit", range(43, 47))
@pytest.mark.parametrize("shift", [12, 21, 30, 39])
def test_checklist_8_lost_bits_are_reserved_in_nested_tables(world: World, shift: int, bit: int) -> None:
    nested = world.nested()
    nested.map(1 << 40, 0x2000)
    view = world.run(nested)
    nested.patch(1 << 40, shift, set_bits=1 << bit)
    with pytest.raises(NestedPageFault) as caught:
        view.read_physical(1 << 40, 1)
    assert Code.P | Code.RSVD | Code.U | Code.FINAL == caught.value.exit_info_1


def test_the_hosts_lost_bits_are_free_in_guest_tables_and_the_guests_faults_are_its_own(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    view = world.run(nested, tables)
    with pytest.raises(PageFault) as caught:
        view.write(DATA, b"x")
    assert Code.W == caught.value.code
    assert view.running  # no #VMEXIT: the guest has a handler for this
    with pytest.raises(GeneralProtection):
        view.read(Gva(1 << 47), 1)
    view.vmexit(ExitCode.HLT)


def test_guest_privilege_is_the_vmcbs(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000, flags=P | W)
    nested.map(0x7000, 0x2000)
    with world.run(nested, tables) as view:
        view.read(DATA, 1)
    with world.run(nested, tables, cpl=3) as view, pytest.raises(PageFault) as caught:
        view.write(DATA, b"x")
    assert Code.P | Code.W | Code.U == caught.value.code


@pytest.mark.parametrize(
    ("act", "flags", "code"), [("write", P | U, Code.W), ("fetch", P | W | U | NX, Code.ID)]
)
def test_a_cached_translation_does_not_hide_what_the_nested_tables_forbid(
    world: World, act: str, flags: int, code: PageFaultCode
) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000)
    nested.map(0x7000, 0x2000, flags=flags)
    view = world.run(nested, tables)
    view.read(DATA, 1)
    with pytest.raises(NestedPageFault) as caught:
        ACTS[act][0](view)
    assert Code.P | Code.U | Code.FINAL | code == caught.value.exit_info_1


def test_nested_tables_are_marked_accessed_and_dirty(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000)
    nested.map(0x7000, 0x2000)
    with world.run(nested, tables) as view:
        view.read(DATA, 1)
        assert A == nested.entry(0x7000, 12) & (A | D)
        assert A | D == nested.entry(tables.root, 12) & (A | D)
        view.write(DATA, b"x")
        assert A | D == nested.entry(0x7000, 12) & (A | D)


def test_a_nested_fault_with_vte_reports_no_c_bit(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000, c=True)
    view = world.run(nested, tables, enable=SEV | Enable.VTE)
    with pytest.raises(NestedPageFault) as caught:
        view.read(DATA, 1)
    assert 0x7000 == caught.value.exit_info_2


# --- #VMEXIT


def test_a_nested_fault_is_a_vmexit_that_the_vmcb_tells(world: World) -> None:
    nested = world.nested()
    page = world.new_page()
    world.vmcb(guest_vmcb(nested, rip=0x1234), at=page)
    view = world.core.vmrun(page)
    assert ALICE == world.core.asid
    with pytest.raises(WrongCoreMode, match="runs a guest"):
        world.core.read(Gva(0), 1)  # type: ignore[arg-type]
    with pytest.raises(NestedPageFault):
        view.write(Gva(0x9000), b"x")
    assert (0, False) == (world.core.asid, view.running)
    stored = world.stored(page)
    assert ExitCode.NPF == stored.exit_code
    assert Code.W | Code.U | Code.FINAL == stored.exit_info_1
    assert (0x9000, 0x1234, ALICE) == (stored.exit_info_2, stored.rip, stored.asid)
    for act in (lambda: view.read(Gva(0), 1), lambda: view.vmexit(ExitCode.HLT), lambda: view.mov_cr3(0)):
        with pytest.raises(WrongCoreMode, match="turn is over"):
            act()
    nested.map(0x9000, 0x2000)  # the hypervisor maps the page, and the same VMCB runs on
    with world.core.vmrun(page) as again:
        again.write(Gva(0x9000), b"x")


def test_a_page_fault_leaves_its_address_in_cr2(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    page = world.vmcb(guest_vmcb(nested, tables))
    with world.core.vmrun(page) as view, pytest.raises(PageFault):
        view.read(Gva(0xDEAD_0000), 1)
    assert (0xDEAD_0000, ExitCode.INTR) == (world.stored(page).cr2, world.stored(page).exit_code)


def test_a_guest_that_turns_paging_off_is_all_private(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LEGACY, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000)
    nested.map(0x7000, 0x2000)
    nested.map(DATA, 0x3000)
    with world.run(nested, tables) as view:
        view.write(DATA, b"paged")
        view.mov_cr0(1)
        view.write(DATA, b"unpaged")  # its old translation is gone with the mode
    assert b"paged" == world.memory.read(Spa(0x2000), 5, guest(ALICE))
    assert b"unpaged" == world.memory.read(Spa(0x3000), 7, guest(ALICE))


def test_physical_accesses_stand_for_leaves(world: World) -> None:
    nested = world.nested()
    nested.map(0x7000, 0x2000)
    nested.map(0x8000, 0x9000)
    with world.run(nested) as view:
        view.write_physical(0x7FFE | 1 << 47, b"priv")
        assert b"priv" == view.read_physical(0x7FFE | 1 << 47, 4)
        view.write_physical(0x7100, b"shared")
    assert b"pr" == world.memory.read(Spa(0x2FFE), 2, guest(ALICE))
    assert b"iv" == world.memory.read(Spa(0x9000), 2, guest(ALICE))
    assert b"shared" == world.memory.read(Spa(0x2100), 6, UNENCRYPTED)


def test_global_pages_count_only_where_they_are_switched_on(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    tables.map(DATA, 0x7000, flags=P | W | U | G)
    nested.map(0x7000, 0x2000)
    with world.run(nested, tables) as view:
        assert view.walk(DATA).leaf.global_page
        view.mov_cr4(1 << 5)
        assert not view.walk(DATA).leaf.global_page
