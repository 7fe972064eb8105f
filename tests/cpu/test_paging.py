"""One set of tables: what was built is what is found, and everything else faults with the right code."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.control import AddressRules, Controls, Cr0, Cr4, Efer, PagingMode
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.faults import GeneralProtection, PageFault, PageFaultCode
from cbit.cpu.msr import Msr
from cbit.cpu.paging import Access, Kind, walk
from cbit.spec.address import MIB, PAGE, Hva, Spa
from cbit.spec.errors import CbitError, NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED
from cpu.fake_memory import FakeMemory
from cpu.tables import NX, PAGES, PS, SHIFTS, A, Builder, D, G, P, U, W
from cpu.worlds import MODES, PARTS, SIZE, World, host_tables

DATA = Hva(0x5000)
C_MODES = [PagingMode.PAE, PagingMode.LONG]
Code = PageFaultCode


@pytest.fixture
def world() -> World:
    return World()


def fault_of(world: World, kind: Kind = Kind.READ, *, user: bool = False, at: int = DATA) -> PageFault:
    core = world.core
    acts: dict[Kind, Callable[[], object]] = {
        Kind.READ: lambda: core.read(Hva(at), 1, user=user),
        Kind.WRITE: lambda: core.write(Hva(at), b"x", user=user),
        Kind.FETCH: lambda: core.fetch(Hva(at), 1, user=user),
    }
    with pytest.raises(PageFault) as caught:
        acts[kind]()
    assert at == caught.value.address
    return caught.value


# --- what was built is what is found


@st.composite
def layouts(draw: st.DrawFn, mode: PagingMode) -> list[tuple[int, int, int, int, bool, bool]]:
    """Pages that do not overlap: (linear, size as power of two, physical, flags, C, C of new tables)."""
    pages: list[tuple[int, int, int, int, bool, bool]] = []
    top = {PagingMode.LONG: 48, PagingMode.PAE: 32, PagingMode.LEGACY: 32}[mode]
    for _ in range(draw(st.integers(1, 6))):
        shift = draw(st.sampled_from(PAGES[mode]))
        # Few indices at each level, so that tables are shared.
        linear = 0
        for level in SHIFTS[mode]:
            if level >= shift:
                linear |= draw(st.sampled_from([0, 1, 2, 3])) << level
        linear |= draw(st.sampled_from([0, 1])) << (top - 1)
        if mode is PagingMode.LONG and linear >> 47:
            linear |= 0xFFFF << 48
        width = {PagingMode.LEGACY: 32}.get(mode, 43)
        if mode is PagingMode.LEGACY and shift == 22:
            width = 40
        physical = draw(st.integers(0, (1 << width - shift) - 1)) << shift
        flags = P | sum(bit for bit in (W, U, G) if draw(st.booleans()))
        if mode is not PagingMode.LEGACY and draw(st.booleans()):
            flags |= NX
        if all(linear + (1 << shift) <= start or start + (1 << s) <= linear for start, s, *_ in pages):
            pages.append((linear, shift, physical, flags, draw(st.booleans()), draw(st.booleans())))
    return pages


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_a_walk_finds_what_was_built(mode: PagingMode, data: st.DataObject) -> None:
    memory = FakeMemory(SIZE)
    fresh = itertools.count(0x1000, PAGE)
    has_c = mode is not PagingMode.LEGACY
    root_c = mode is PagingMode.LONG and data.draw(st.booleans())
    builder = Builder(
        mode, host_tables(memory), new_table=lambda: next(fresh), c_bit=47 if has_c else None, root_c=root_c
    )
    pages = data.draw(layouts(mode))
    for linear, shift, physical, flags, c, tables_c in pages:
        builder.map(linear, physical, shift=shift, flags=flags, c=c and has_c, tables_c=tables_c and has_c)
    controls = Controls(
        cr0=Cr0.PE | Cr0.PG | Cr0.WP,
        cr3=builder.cr3,
        cr4=Cr4.PSE | Cr4.PGE | (Cr4.PAE if has_c else 0),
        efer=Efer.NXE | (Efer.LME if mode is PagingMode.LONG else 0),
    )
    rules = AddressRules(43, 47)
    for linear, shift, physical, flags, c, _ in pages:
        inside = linear + data.draw(st.integers(0, (1 << shift) - 1))
        leaf = walk(inside, Access(Kind.READ), controls=controls, rules=rules, tables=host_tables(memory))
        found = (leaf.base, leaf.size, leaf.c, leaf.writable, leaf.user, leaf.no_execute, leaf.global_page)
        wanted = bool(flags & W), bool(flags & U), bool(flags & NX), bool(flags & G)
        assert (physical, 1 << shift, c and has_c, *wanted) == found
        assert physical + inside - linear == leaf.at(inside)
    elsewhere = data.draw(st.integers(0, (1 << 32) - 1))
    if not any(linear <= elsewhere < linear + (1 << shift) for linear, shift, *_ in pages):
        with pytest.raises(PageFault) as caught:
            walk(elsewhere, Access(Kind.READ), controls=controls, rules=rules, tables=host_tables(memory))
        assert Code(0) == caught.value.code


def test_paging_off_is_the_identity(world: World) -> None:
    world.core.write(Hva(0x1FFE), b"four")
    assert b"four" == world.memory.read(Spa(0x1FFE), 4, UNENCRYPTED)


def test_accesses_cross_pages_that_are_not_neighbours(world: World) -> None:
    host = world.host_builder()
    host.map(0x5000, 0x9000)
    host.map(0x6000, 0x2000)
    world.enter(host)
    world.core.write(Hva(0x5FFE), b"four")
    assert b"fo" == world.memory.read(Spa(0x9FFE), 2, UNENCRYPTED)
    assert b"ur" == world.memory.read(Spa(0x2000), 2, UNENCRYPTED)
    assert b"four" == world.core.read(Hva(0x5FFE), 4)


def test_a_write_that_faults_in_its_second_page_writes_nothing(world: World) -> None:
    host = world.host_builder()
    host.map(0x5000, 0x9000)
    world.enter(host)
    with pytest.raises(PageFault) as caught:
        world.core.write(Hva(0x5FFE), b"four")
    assert (0x6000, Code.W) == (caught.value.address, caught.value.code)
    assert b"\0\0" == world.core.read(Hva(0x5FFE), 2)


# --- faults


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", list(Kind))
def test_each_level_that_is_absent_faults_as_not_present(world: World, mode: PagingMode, kind: Kind) -> None:
    host = world.host_builder(mode)
    host.map(DATA, 0x2000)
    world.enter(host)
    code = {Kind.READ: Code(0), Kind.WRITE: Code.W, Kind.FETCH: Code.ID}[kind]
    if mode is PagingMode.LEGACY and kind is Kind.FETCH:
        code = Code(0)  # where no page can be no-execute, the bit does not exist
    for shift in SHIFTS[mode]:
        host.patch(DATA, shift, clear=P)
        assert code == fault_of(world, kind).code
        assert code | Code.U == fault_of(world, kind, user=True).code
        host.patch(DATA, shift, set_bits=P)
    world.core.read(DATA, 1)


def bits(low: int, high: int) -> range:
    return range(low, high + 1)


#: (mode, level, size of the page mapped, bits that must be zero there), from the manual's figures.
MUST_BE_ZERO = [
    (PagingMode.LONG, 39, 12, [7, 8]),
    (PagingMode.LONG, 30, 12, [8]),
    (PagingMode.LONG, 30, 30, bits(13, 29)),
    (PagingMode.LONG, 21, 21, bits(13, 20)),
    (PagingMode.PAE, 30, 12, [1, 2, 5, 6, 7, 8, *bits(52, 63)]),
    (PagingMode.PAE, 21, 12, bits(52, 62)),
    (PagingMode.PAE, 21, 21, [*bits(13, 20), *bits(52, 62)]),
    (PagingMode.PAE, 12, 12, bits(52, 62)),
    (PagingMode.LEGACY, 22, 22, [21]),
]


@pytest.mark.parametrize(
    ("mode", "level", "size", "bit"),
    [(mode, level, size, bit) for mode, level, size, all_bits in MUST_BE_ZERO for bit in all_bits],
)
def test_a_bit_that_must_be_zero_faults(
    world: World, mode: PagingMode, level: int, size: int, bit: int
) -> None:
    world.encrypt()
    host = world.host_builder(mode)
    host.map(DATA & -(1 << size), 0, shift=size)
    world.enter(host)
    world.core.read(DATA, 1)  # its good twin
    world.core.invlpg(DATA)
    host.patch(DATA, level, set_bits=1 << bit)
    assert Code.P | Code.RSVD == fault_of(world).code
    host.patch(DATA, level, clear=1 << bit)
    world.core.read(DATA, 1)


LOST = [
    (name, mode, shift, bit)
    for name, part in PARTS.items()
    for mode in C_MODES
    for shift in SHIFTS[mode]
    for bit in range(part.reduced_bits, 52)
]


@pytest.mark.parametrize(("part", "mode", "shift", "bit"), LOST)
def test_checklist_8_reserved_bit_faults_for_reduced_address_bits(
    part: str, mode: PagingMode, shift: int, bit: int
) -> None:
    """Every lost address bit is reserved at every level; the C-bit, even if one of them, is not (§3)."""
    features = PARTS[part]
    world = World(features=features, memory=FakeMemory(SIZE, coherent=features.coherent))
    world.encrypt()
    host = world.host_builder(mode)
    host.map(DATA, 0x2000)
    world.enter(host)
    host.patch(DATA, shift, set_bits=1 << bit)
    if bit != features.c_bit:
        assert Code.P | Code.RSVD | Code.W == fault_of(world, Kind.WRITE).code
        return
    # The C-bit is taken for what it is: what the entry points to is read with the host's key from now on.
    below = Spa(host.entry(DATA, shift) & ~(1 << bit) & -PAGE)
    world.memory.write(below, world.memory.read(below, PAGE, UNENCRYPTED), HOST)
    leaf = world.core.walk(DATA).leaf
    assert (0x2000, shift == 12) == (leaf.base, leaf.c)
    above = [None, *SHIFTS[mode]]  # a table is read as the entry above it says
    assert [level == shift for level in above[:-1]] == [step.c for step in leaf.steps]


def test_without_encryption_the_same_bits_are_addresses_or_reserved_for_good() -> None:
    world = World()
    host = world.host_builder()
    host.map(DATA, 0x2000)
    world.enter(host)
    host.patch(DATA, 12, set_bits=1 << 45)  # inside the 48 bits of this part
    assert 1 << 45 | 0x2000 == world.core.walk(DATA).page
    host.patch(DATA, 12, clear=1 << 45, set_bits=1 << 48)
    assert Code.P | Code.RSVD == fault_of(world).code


@pytest.mark.parametrize("mode", C_MODES)
def test_no_execute_is_reserved_while_it_is_switched_off(world: World, mode: PagingMode) -> None:
    host = world.host_builder(mode)
    host.map(DATA, 0x2000, flags=P | W | NX)
    world.enter(host)
    assert Code.P | Code.ID == fault_of(world, Kind.FETCH).code
    world.core.read(DATA, 1)
    world.core.wrmsr(Msr.EFER, world.core.rdmsr(Msr.EFER) & ~Efer.NXE)
    world.core.invlpg(DATA)
    assert Code.P | Code.RSVD == fault_of(world).code


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shift_index", [0, 1, 2, 3])
def test_every_level_can_take_a_permission_away(world: World, mode: PagingMode, shift_index: int) -> None:
    shifts = [s for s in SHIFTS[mode] if not (mode is PagingMode.PAE and s == 30)]
    if shift_index >= len(shifts):
        shift_index = -1
    host = world.host_builder(mode)
    host.map(DATA, 0x2000)
    world.enter(host)
    host.patch(DATA, shifts[shift_index], clear=W)
    assert Code.P | Code.W == fault_of(world, Kind.WRITE).code
    host.patch(DATA, shifts[shift_index], set_bits=W, clear=U)
    assert Code.P | Code.U == fault_of(world, user=True).code
    world.core.write(DATA, b"supervisor")


def test_a_supervisor_writes_read_only_pages_while_wp_is_off(world: World) -> None:
    host = world.host_builder()
    host.map(DATA, 0x2000, flags=P | U)
    world.enter(host)
    assert Code.P | Code.W == fault_of(world, Kind.WRITE).code
    world.core.mov_cr0(world.core.controls.cr0 & ~Cr0.WP)
    world.core.write(DATA, b"x")
    assert Code.P | Code.W | Code.U == fault_of(world, Kind.WRITE, user=True).code


def test_smep_and_smap_keep_the_supervisor_out_of_user_pages(world: World) -> None:
    host = world.host_builder()
    host.map(DATA, 0x2000)
    world.enter(host)
    world.core.mov_cr4(world.core.controls.cr4 | Cr4.SMEP | Cr4.SMAP)
    assert Code.P | Code.ID == fault_of(world, Kind.FETCH).code
    assert Code.P == fault_of(world).code
    world.core.fetch(DATA, 1, user=True)
    world.core.set_alignment_check(on=True)
    world.core.write(DATA, b"explicitly")
    world.core.set_alignment_check(on=False)
    assert Code.P | Code.W == fault_of(world, Kind.WRITE).code


@pytest.mark.parametrize("bad", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
def test_a_non_canonical_address_is_a_general_protection_fault(world: World, bad: int) -> None:
    host = world.host_builder()
    host.map(0xFFFF_8000_0000_0000, 0x2000)
    world.enter(host)
    with pytest.raises(GeneralProtection, match="non-canonical"):
        world.core.read(Hva(bad), 1)
    world.core.read(Hva(0xFFFF_8000_0000_0000), 1)


def test_there_is_no_address_above_4_gib_outside_long_mode(world: World) -> None:
    world.enter(world.host_builder(PagingMode.PAE))
    with pytest.raises(ValueError, match="32 bits"):
        world.core.read(Hva(1 << 32), 1)


@pytest.mark.parametrize("bit", [Cr4.LA57, Cr4.PKE, Cr4.CET, Cr4.PKS, Cr4.PCIDE])
def test_paging_features_that_are_not_modelled_say_so(world: World, bit: Cr4) -> None:
    world.enter(world.host_builder())
    before = world.core.controls
    with pytest.raises(NotModelled, match=bit.name):
        world.core.mov_cr4(before.cr4 | bit)
    assert before == world.core.controls


# --- accessed and dirty


@pytest.mark.parametrize("mode", MODES)
def test_accessed_and_dirty_are_set_when_the_access_succeeds(world: World, mode: PagingMode) -> None:
    host = world.host_builder(mode)
    host.map(DATA, 0x2000, flags=P)
    world.enter(host)
    fault_of(world, Kind.WRITE)
    marked = [s for s in SHIFTS[mode] if not (mode is PagingMode.PAE and s == 30)]
    assert [0] * len(marked) == [host.entry(DATA, s) & (A | D) for s in marked]
    world.core.read(DATA, 1)
    assert [A] * len(marked) == [host.entry(DATA, s) & (A | D) for s in marked]
    host.patch(DATA, 12, set_bits=W)
    world.core.write(DATA, b"x")  # a cached clean translation must not hide the first write
    assert [*[A] * (len(marked) - 1), A | D] == [host.entry(DATA, s) & (A | D) for s in marked]
    if mode is PagingMode.PAE:
        assert 0 == host.entry(DATA, 30) & (A | D)  # it has no such bits


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_clean_translation_does_not_hide_the_first_write(world: World, mode: PagingMode) -> None:
    host = world.host_builder(mode)
    host.map(DATA, 0x2000)
    world.enter(host)
    world.core.read(DATA, 1)
    assert A == host.entry(DATA, 12) & (A | D)
    world.core.write(DATA, b"x")
    assert A | D == host.entry(DATA, 12) & (A | D)


def test_accessed_and_dirty_go_back_through_the_key_they_came_with() -> None:
    world = World()
    world.encrypt()
    host = world.host_builder(root_c=True)
    host.map(DATA, 0x2000, c=True)
    world.enter(host)
    world.core.write(DATA, b"x")
    where, c = host.find(DATA, 12)
    assert c
    assert A | D == int.from_bytes(world.memory.read(Spa(where), 8, HOST), "little") & (A | D)
    world.memory.wbinvd()
    plain = int.from_bytes(world.memory.read(Spa(where), 8, UNENCRYPTED), "little")
    assert host.entry(DATA, 12) != plain  # in DRAM it is ciphertext


# --- control registers


def test_cr3_cannot_hold_address_bits_that_encryption_took(world: World) -> None:
    host = world.boot()
    with pytest.raises(GeneralProtection, match="CR3"):
        world.core.mov_cr3(host.cr3 | 1 << 43)
    assert host.cr3 == world.core.controls.cr3
    world.core.mov_cr3(host.cr3 | 1 << 47)  # the C-bit is one of them, and legal


def test_switching_encryption_leaves_no_translation_of_the_old_kind() -> None:
    """What was address bit 47 is the C-bit now."""
    world = World()
    host = world.boot(encrypted=False)
    page = Hva(64 * MIB)
    host.map(page, 0x2000 | 1 << 47)
    with pytest.raises(CbitError, match="no memory"):
        world.core.read(page, 1)
    world.encrypt()
    world.memory.write(Spa(0x2000), b"x", HOST)
    assert b"x" == world.core.read(page, 1)


def test_switching_encryption_under_software_that_uses_the_bits_is_refused() -> None:
    """Software must stand on addresses whose to-be-reserved bits are 0 (§2.2)."""
    world = World()
    world.boot(encrypted=False)
    world.core.mov_cr3(world.core.controls.cr3 | 1 << 44)
    with pytest.raises(NotModelled, match="CR3"):
        world.encrypt()
    assert not world.core.encryption_on


def test_long_mode_needs_pae(world: World) -> None:
    world.enter(world.host_builder())
    with pytest.raises(GeneralProtection, match="without PAE"):
        world.core.mov_cr4(0)
    with pytest.raises(GeneralProtection, match="LME"):
        world.core.wrmsr(Msr.EFER, 0)


def test_paging_needs_protected_mode(world: World) -> None:
    with pytest.raises(GeneralProtection, match="protected mode"):
        world.core.mov_cr0(int(Cr0.PG))
    with pytest.raises(GeneralProtection, match="above 31"):
        world.core.mov_cr0(1 << 32)


def test_long_mode_active_is_the_processors_answer(world: World) -> None:
    assert 0 == world.core.rdmsr(Msr.EFER) & Efer.LMA
    world.enter(world.host_builder())
    assert Efer.LMA == world.core.rdmsr(Msr.EFER) & Efer.LMA
    world.core.mov_cr0(int(Cr0.PE))
    assert 0 == world.core.rdmsr(Msr.EFER) & Efer.LMA


def test_a_large_page_bit_means_nothing_without_pse(world: World) -> None:
    host = world.host_builder(PagingMode.LEGACY)
    host.map(DATA, 0x2000)
    host.patch(DATA, 22, set_bits=PS)
    world.enter(host)
    world.core.mov_cr4(0)
    assert 0x2000 == world.core.walk(DATA).page


def test_the_wider_part_has_more_addresses_left() -> None:
    assert (43, 43, 46) == tuple(part.reduced_bits for part in PARTS.values())
    assert isinstance(PARTS["naples"], EncryptionFeatures)


def test_registers_are_32_bits_wide_outside_long_mode(world: World) -> None:
    world.enter(world.host_builder(PagingMode.PAE))
    before = world.core.controls
    with pytest.raises(ValueError, match="32 bits"):
        world.core.mov_cr3(1 << 32)
    assert before == world.core.controls


def test_a_linear_address_has_64_bits(world: World) -> None:
    world.enter(world.host_builder())
    with pytest.raises(ValueError, match="64 bits"):
        world.core.read(Hva(1 << 64), 1)
