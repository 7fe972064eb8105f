"""Who encrypts, row by row: each row by the table, and again by what a core really asks memory for.

Paper                                                     test
memory-encryption.md §4.1
  MemEncryptionModEn=0, anything                          test_host_without_encryption_never_uses_a_key
  host with PAE or long mode: per C-bit of the entry      test_host_accesses_obey_the_leaf,
                                                          test_host_tables_obey_their_parent
  host, paging off or without PAE                         test_host_without_pae_never_uses_a_key
  legacy PAE: the page-directory-pointer table            test_the_pdpt_of_legacy_pae_is_read_unencrypted
  guest mode without SEV: the nested C-bit, host's key    test_without_sev_the_nested_c_bit_decides_alone
  MMIO pages: C must be 0                                 test_a_key_on_device_registers_stops_the_model
  TSME on: everything, host's key                         test_tsme_encrypts_what_nothing_else_does
memory-encryption.md §4.2
  instruction fetch: always                               test_sev_fetches_are_private_whatever_c_says
  guest page-table walk, A/D updates: always              test_sev_table_walks_are_private_whatever_c_says
  data, long mode and legacy PAE: table 4.3               test_sev_data_follows_both_c_bits
  data, paging off or without PAE: always private         test_sev_data_without_pae_is_private
  nested page-table walk: hCR3 and nested entries, host   test_nested_tables_are_read_with_the_hosts_key
  VMSA load and save: always                              not modelled (SEV-ES)
  VTE: all data as C=1                                    test_vte_makes_all_data_private
memory-encryption.md §4.3, all four cells                 test_table_4_3, test_sev_data_follows_both_c_bits
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cbit.cpu.control import PagingMode
from cbit.cpu.encryption_rules import (
    HOST_TABLE,
    SEV_TABLE,
    HostSituation,
    Owner,
    Use,
    host_key,
    sev_key,
    treated_as_private,
)
from cbit.cpu.faults import EncryptedMmio
from cbit.cpu.vmcb import Enable
from cbit.spec.address import PAGE, Gva, Hva, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from cpu.fake_memory import FakeMemory
from cpu.real_memory import real_cache
from cpu.tables import A, Builder, D
from cpu.worlds import ALICE, MODES, SIZE, World

BOTH = [False, True]
DATA, CODE = Hva(0x5000), 0x8000
GUEST = guest(ALICE)
WITH_C = [PagingMode.PAE, PagingMode.LONG]
WITHOUT_C = [PagingMode.OFF, PagingMode.LEGACY]


class Recorder(FakeMemory):
    """Notes which key every request carried."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.requests: list[tuple[str, int, KeyId]] = []

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        self.requests.append(("read", spa, key_id))
        return super().read(spa, length, key_id)

    def write(self, spa: Spa, data: bytes | bytearray | memoryview, key_id: KeyId) -> None:
        self.requests.append(("write", spa, key_id))
        super().write(spa, data, key_id)

    @contextmanager
    def watched(self) -> Iterator[list[tuple[str, int, KeyId]]]:
        self.requests = []
        yield self.requests
        self.requests = list(self.requests)


@pytest.fixture
def memory() -> Recorder:
    return Recorder()


@pytest.fixture
def world(memory: Recorder) -> World:
    return World(memory=memory)


def keys_of(requests: list[tuple[str, int, KeyId]], page: int) -> set[KeyId]:
    return {key for _, spa, key in requests if spa & -PAGE == page}


# --- §4.1


@pytest.mark.parametrize("c", BOTH)
@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (HostSituation.OFF, (UNENCRYPTED, UNENCRYPTED)),
        (HostSituation.WITHOUT_PAE, (UNENCRYPTED, UNENCRYPTED)),
        (HostSituation.WITH_PAE, (UNENCRYPTED, HOST)),
        (HostSituation.GUEST_WITHOUT_SEV, (UNENCRYPTED, HOST)),
    ],
)
def test_table_4_1(situation: HostSituation, expected: tuple[KeyId, KeyId], *, c: bool) -> None:
    assert expected[c] == host_key(situation, c=c)


def test_the_tables_have_a_cell_for_everything() -> None:
    assert set(HostSituation) == set(HOST_TABLE)
    assert {(g, n) for g in BOTH for n in BOTH} == set(SEV_TABLE)


@pytest.mark.parametrize("mode", MODES)
def test_host_without_encryption_never_uses_a_key(memory: Recorder, world: World, mode: PagingMode) -> None:
    host = world.host_builder(mode)
    host.map(DATA, 0x2000)
    world.enter(host)
    with memory.watched() as requests:
        world.core.write(DATA, b"plain")
        world.core.fetch(DATA, 4)
    assert {UNENCRYPTED} == {key for _, _, key in requests}
    assert b"plain" == memory.read(Spa(0x2000), 5, UNENCRYPTED)


@pytest.mark.parametrize("c", BOTH)
@pytest.mark.parametrize("mode", WITH_C)
def test_host_accesses_obey_the_leaf(memory: Recorder, world: World, mode: PagingMode, *, c: bool) -> None:
    world.encrypt()
    host = world.host_builder(mode)
    host.map(DATA, 0x2000, c=c)
    world.enter(host)
    expected = {HOST if c else UNENCRYPTED}
    for act in (
        lambda: world.core.read(DATA, 8),
        lambda: world.core.write(DATA, b"12345678"),
        lambda: world.core.fetch(DATA, 8),
    ):
        with memory.watched() as requests:
            act()
        assert expected == keys_of(requests, 0x2000)


@pytest.mark.parametrize("leaf_c", BOTH)
@pytest.mark.parametrize("table_c", BOTH)
@pytest.mark.parametrize("root_c", BOTH)
def test_host_tables_obey_their_parent(
    memory: Recorder, world: World, *, root_c: bool, table_c: bool, leaf_c: bool
) -> None:
    """Each step is independent (§3 rule 2): top table by CR3, others by the entry above, data by the leaf."""
    world.encrypt()
    host = world.host_builder(root_c=root_c)
    host.map(DATA, 0x2000, c=leaf_c, tables_c=table_c)
    world.enter(host)
    with memory.watched() as requests:
        world.core.write(DATA, b"x")  # sets A and D: the tables are written as they were read
    assert {HOST if root_c else UNENCRYPTED} == keys_of(requests, host.root)
    lower = {spa & -PAGE for _, spa, _ in requests} - {host.root, 0x2000}
    assert 3 == len(lower)
    for table in lower:
        assert {HOST if table_c else UNENCRYPTED} == keys_of(requests, table)
    assert A | D == host.entry(DATA, 12) & (A | D)


@pytest.mark.parametrize("mode", WITHOUT_C)
def test_host_without_pae_never_uses_a_key(memory: Recorder, world: World, mode: PagingMode) -> None:
    world.encrypt()
    if mode is PagingMode.LEGACY:
        host = world.host_builder(mode)
        host.map(DATA, DATA)
        world.enter(host)
    with memory.watched() as requests:
        world.core.write(DATA, b"plain")
        world.core.fetch(DATA, 4)
    assert {UNENCRYPTED} == {key for _, _, key in requests}


def test_the_pdpt_of_legacy_pae_is_read_unencrypted(memory: Recorder, world: World) -> None:
    world.encrypt()
    host = world.host_builder(PagingMode.PAE)
    host.map(DATA, 0x2000, c=True, tables_c=True)  # its entries do carry C
    world.enter(host)
    with memory.watched() as requests:
        world.core.read(DATA, 1)
    assert {UNENCRYPTED} == keys_of(requests, host.root)
    assert {HOST} == {key for _, spa, key in requests if spa & -PAGE != host.root}


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("mode", [PagingMode.OFF, *MODES])
def test_without_sev_the_nested_c_bit_decides_alone(
    memory: Recorder, world: World, mode: PagingMode, *, nested_c: bool
) -> None:
    world.boot()
    nested = world.nested()
    tables = None
    if mode is not PagingMode.OFF:
        tables = world.guest_tables(mode, nested=nested, asid=None, nested_c=nested_c)
        tables.map(DATA, DATA)
    nested.map(DATA, 0x2000, c=nested_c)
    view = world.run(nested, tables, enable=Enable.NP_ENABLE)
    with memory.watched() as requests:
        view.write(Gva(DATA), b"data")
        view.fetch(Gva(DATA), 4)
    assert {HOST if nested_c else UNENCRYPTED} == keys_of(requests, 0x2000)
    assert GUEST not in {key for _, _, key in requests}
    if tables:
        top = nested.entry(tables.root, 12) & ~0xFFF & (1 << 47) - 1
        assert {HOST if nested_c else UNENCRYPTED} == keys_of(requests, top)


@pytest.mark.parametrize("write", BOTH)
def test_a_key_on_device_registers_stops_the_model(memory: Recorder, *, write: bool) -> None:
    world = World(memory=memory, mmio=[range(0x2000, 0x3000)])
    world.encrypt()
    host = world.host_builder()
    host.map(DATA, 0x2000)
    host.map(0x6000, 0x2000, c=True)
    host.map(0x7000, 0x4000, c=True)
    world.enter(host)
    world.core.write(DATA, b"register")  # C=0: the device's own affair
    world.core.write(Hva(0x7000), b"memory")  # C=1 beside the device
    before = memory.read(Spa(0x2000), 16, UNENCRYPTED)
    with pytest.raises(EncryptedMmio, match="device registers at 0x2000"):
        world.core.write(Hva(0x6000), b"lost") if write else world.core.read(Hva(0x6000), 1)
    assert before == memory.read(Spa(0x2000), 16, UNENCRYPTED)
    if write:  # of a write that reaches into the device, not even the half before it moves
        host.map(DATA, 0x1000, c=True)
        world.core.invlpg(DATA)
        before = world.core.read(DATA, PAGE)
        with pytest.raises(EncryptedMmio):
            world.core.write(Hva(0x5FFE), b"half")
        assert before == world.core.read(DATA, PAGE)


def test_tsme_encrypts_what_nothing_else_does() -> None:
    """The core asks for no key; the controller under it puts the host's there, and leaves guests' alone."""
    memory = real_cache(tsme=True)
    world = World(memory=memory)
    world.core.write(Hva(0x2000), b"unaware software")  # encryption off, paging off
    memory.wbinvd()
    wire = memory.wire(Spa(0x2000), 16)
    assert b"unaware software" != wire
    assert b"unaware software" == memory.read(Spa(0x2000), 16, HOST)  # with the host's key
    assert b"unaware software" == world.core.read(Hva(0x2000), 16)
    plain = real_cache(tsme=False)
    World(memory=plain).core.write(Hva(0x2000), b"unaware software")
    plain.wbinvd()
    assert b"unaware software" == plain.wire(Spa(0x2000), 16)


# --- §4.2 and §4.3


@pytest.mark.parametrize(
    ("guest_c", "nested_c", "owner"),
    [
        (False, False, Owner.NOBODY),
        (False, True, Owner.HOST),
        (True, False, Owner.GUEST),
        (True, True, Owner.GUEST),
    ],
)
def test_table_4_3(owner: Owner, *, guest_c: bool, nested_c: bool) -> None:
    assert owner is SEV_TABLE[guest_c, nested_c]
    expected = {Owner.NOBODY: UNENCRYPTED, Owner.HOST: HOST, Owner.GUEST: guest(9)}[owner]
    assert expected == sev_key(9, private=guest_c, nested_c=nested_c)


@pytest.mark.parametrize("guest_c", BOTH)
@pytest.mark.parametrize("has_c_bit", BOTH)
@pytest.mark.parametrize("vte", BOTH)
@pytest.mark.parametrize("use", list(Use))
def test_only_data_of_a_guest_with_a_c_bit_can_be_shared(
    use: Use, *, vte: bool, has_c_bit: bool, guest_c: bool
) -> None:
    shared = use is Use.DATA and not vte and has_c_bit and not guest_c
    assert shared is not treated_as_private(use, guest_c=guest_c, has_c_bit=has_c_bit, vte=vte)


def sev_world(
    world: World, mode: PagingMode, *, guest_c: bool, nested_c: bool, root_c: bool = False
) -> tuple[Builder, Builder]:
    world.boot()
    nested = world.nested()
    tables = world.guest_tables(mode, nested=nested, asid=ALICE, root_c=root_c)
    tables.map(DATA, DATA, c=guest_c)
    nested.map(DATA, 0x2000, c=nested_c)
    return nested, tables


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("guest_c", BOTH)
@pytest.mark.parametrize("mode", WITH_C)
def test_sev_data_follows_both_c_bits(
    memory: Recorder, world: World, mode: PagingMode, *, guest_c: bool, nested_c: bool
) -> None:
    nested, tables = sev_world(world, mode, guest_c=guest_c, nested_c=nested_c)
    expected = {
        (False, False): UNENCRYPTED,
        (False, True): HOST,
        (True, False): GUEST,
        (True, True): GUEST,
    }[guest_c, nested_c]
    with world.run(nested, tables) as view, memory.watched() as requests:
        view.write(Gva(DATA), b"data")
        for _ in range(2):  # the second time from the TLB, which must have kept the C-bits
            assert b"data" == view.read(Gva(DATA), 4)
    assert {expected} == keys_of(requests, 0x2000)
    assert b"data" == memory.read(Spa(0x2000), 4, expected)


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("guest_c", BOTH)
@pytest.mark.parametrize("mode", WITH_C)
def test_sev_fetches_are_private_whatever_c_says(
    memory: Recorder, world: World, mode: PagingMode, *, guest_c: bool, nested_c: bool
) -> None:
    nested, tables = sev_world(world, mode, guest_c=guest_c, nested_c=nested_c)
    with world.run(nested, tables) as view:
        view.read(Gva(DATA), 4)  # the translation is cached by a data access …
        with memory.watched() as requests:
            view.fetch(Gva(DATA), 4)  # … and the fetch still decides for itself
    assert {GUEST} == keys_of(requests, 0x2000)


def test_shared_data_fetched_as_code_is_garbage(world: World) -> None:
    """Consequence of §4.2: what was written with C=0 is not what is executed."""
    nested, tables = sev_world(world, PagingMode.LONG, guest_c=False, nested_c=False)
    tables.map(CODE, CODE, c=True)
    nested.map(CODE, 0x3000)
    with world.run(nested, tables) as view:
        view.write(Gva(DATA), b"\xf4" * 16)
        view.write(Gva(CODE), b"\xf4" * 16)
        assert b"\xf4" * 16 != view.fetch(Gva(DATA), 16)
        assert b"\xf4" * 16 == view.fetch(Gva(CODE), 16)  # private data is private code


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("root_c", BOTH)
@pytest.mark.parametrize("mode", MODES)
def test_sev_table_walks_are_private_whatever_c_says(
    memory: Recorder, world: World, mode: PagingMode, *, root_c: bool, nested_c: bool
) -> None:
    world.boot()
    nested = world.nested()
    tables = world.guest_tables(
        mode, nested=nested, asid=ALICE, root_c=root_c and mode is PagingMode.LONG, nested_c=nested_c
    )
    tables.map(DATA, DATA)
    nested.map(DATA, 0x2000)
    guest_pages = {0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000}
    frames = {nested.entry(gpa, 12) & ~0xFFF & (1 << 47) - 1 for gpa in guest_pages if nested.entry(gpa, 12)}
    with world.run(nested, tables) as view, memory.watched() as requests:
        view.write(Gva(DATA), b"x")  # A and D are set as well
    touched = [(op, key) for op, spa, key in requests if spa & -PAGE in frames]
    assert {GUEST} == {key for _, key in touched}
    assert {"read", "write"} == {op for op, _ in touched}
    assert A | D == tables.entry(DATA, 12) & (A | D)


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("mode", WITHOUT_C)
def test_sev_data_without_pae_is_private(
    memory: Recorder, world: World, mode: PagingMode, *, nested_c: bool
) -> None:
    world.boot()
    nested = world.nested()
    tables = None
    if mode is PagingMode.LEGACY:
        tables = world.guest_tables(mode, nested=nested, asid=ALICE)
        tables.map(DATA, DATA)
    nested.map(DATA, 0x2000, c=nested_c)
    with world.run(nested, tables) as view, memory.watched() as requests:
        view.write(Gva(DATA), b"data")
        view.read(Gva(DATA), 4)
        view.fetch(Gva(DATA), 4)
    assert {GUEST} == keys_of(requests, 0x2000)


@pytest.mark.parametrize("lower_c", BOTH)
@pytest.mark.parametrize("root_c", BOTH)
def test_nested_tables_are_read_with_the_hosts_key(
    memory: Recorder, world: World, *, root_c: bool, lower_c: bool
) -> None:
    """Both sets of tables are encrypted at once, each under its own key."""
    world.boot()
    nested = world.nested(root_c=root_c)
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    nested.map(0x4000_0000, 0x2000, tables_c=lower_c)  # its own lower tables
    tables.map(DATA, 0x4000_0000, c=True)
    with world.run(nested, tables) as view, memory.watched() as requests:
        view.write(Gva(DATA), b"x")
    assert {HOST if root_c else UNENCRYPTED} == keys_of(requests, nested.root)
    where, _ = nested.find(0x4000_0000, 12)
    assert {HOST if lower_c else UNENCRYPTED} == keys_of(requests, where & -PAGE)
    assert {GUEST} == keys_of(requests, 0x2000)


@pytest.mark.parametrize("nested_c", BOTH)
@pytest.mark.parametrize("guest_c", BOTH)
def test_vte_makes_all_data_private(memory: Recorder, world: World, *, guest_c: bool, nested_c: bool) -> None:
    nested, tables = sev_world(world, PagingMode.LONG, guest_c=guest_c, nested_c=nested_c)
    enable = Enable.NP_ENABLE | Enable.SEV | Enable.VTE
    with world.run(nested, tables, enable=enable) as view, memory.watched() as requests:
        view.write(Gva(DATA), b"data")
        view.fetch(Gva(DATA), 4)
    assert {GUEST} == keys_of(requests, 0x2000)
