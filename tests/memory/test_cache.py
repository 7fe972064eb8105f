"""Tags, coherence, write-back and the instructions that maintain caches.

Checklist of memory-encryption.md §12: items 9 and 10; the hazard of §6.3; INVD and WBINVD of §6.5; §6.6.
"""

from __future__ import annotations

import gc

import pytest

from cbit.memory.cache import STREAM
from cbit.memory.errors import AddressError
from cbit.memory.pool import Pool
from cbit.spec.address import KIB, LINE, MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from memory.worlds import ALICE, BOB, World

P = Spa(3 * PAGE)
A, B = b"A" * LINE, b"B" * LINE


def dirty(world: World) -> dict[tuple[int, int], int]:
    return {(info.page, info.key_id): info.dirty_lines for info in world.cache.snapshot()}


# ---- copies


def test_plaintext_stays_inside_until_it_is_written_back_as_ciphertext(any_mode: World) -> None:
    any_mode.cache.write(P, A, ALICE)
    assert any_mode.probe.read(P, LINE) == bytes(LINE)
    assert any_mode.cache.wbinvd() == 1
    assert any_mode.probe.read(P, LINE) not in (A, bytes(LINE))
    assert any_mode.cache.read(P, LINE, ALICE) == A


def test_only_dirty_lines_are_written_back(world: World) -> None:
    world.probe.write(P, b"\x11" * PAGE)
    world.cache.write(Spa(P + 2 * LINE - 1), b"xy", ALICE)  # the second and third line
    world.cache.write(Spa(P + 63 * LINE), b"z", ALICE)
    assert dirty(world) == {(P, ALICE): 3}
    world.cache.wbinvd()
    raw = world.probe.read(P, PAGE)
    untouched = [line for line in range(64) if raw[line * LINE : (line + 1) * LINE] == b"\x11" * LINE]
    assert untouched == [line for line in range(64) if line not in (1, 2, 63)]


def test_a_clean_copy_is_never_written_back(world: World) -> None:
    world.cache.read(P, LINE, ALICE)
    world.probe.write(P, A)
    assert world.cache.wbinvd() == 0
    assert world.probe.read(P, LINE) == A


def test_a_store_that_covers_a_page_reads_nothing_from_dram(world: World) -> None:
    world.cache.write(P, b"x" * PAGE, ALICE)
    assert world.cache.fills == 0
    assert world.controller.counts.reads_encrypted_lines == 0
    world.cache.write(Spa(P + PAGE), b"x" * (PAGE - 1), ALICE)
    assert world.cache.fills == 1


def test_a_range_over_pages_is_one_range(world: World) -> None:
    data = bytes(range(256)) * 48
    world.cache.write(Spa(P + 100), data, ALICE)
    assert world.cache.read(Spa(P + 100), len(data), ALICE) == data
    world.cache.wbinvd()
    assert world.cache.read(Spa(P + 100), len(data), ALICE) == data


def test_zero_bytes_anywhere_up_to_the_end_move_nothing(world: World) -> None:
    for at in (0, 5, MIB):
        assert world.cache.read(Spa(at), 0, ALICE) == b""
        world.cache.write(Spa(at), b"", ALICE)
        assert world.cache.flush(Spa(at), 0) == 0
    assert world.cache.snapshot() == ()


# ---- capacity


def test_plaintext_is_bounded_and_the_least_recently_used_copy_leaves() -> None:
    world = World(capacity=3 * PAGE)
    for n in range(3):
        world.cache.write(Spa(n * PAGE), A, ALICE)
    world.cache.read(Spa(0), 1, ALICE)  # page 1 is now the oldest
    world.cache.write(Spa(3 * PAGE), A, BOB)
    assert list(dirty(world)) == [(2 * PAGE, ALICE), (0, ALICE), (3 * PAGE, BOB)]
    assert world.cache.evictions == 1


def test_eviction_encrypts_with_the_key_of_the_tag_not_of_who_needs_the_room() -> None:
    world = World(capacity=PAGE)
    world.cache.write(P, A, ALICE)
    world.cache.read(Spa(0), 1, BOB)
    assert world.controller.read(P, LINE, ALICE) == A
    assert world.controller.read(P, LINE, BOB) != A


def test_a_slot_is_wiped_when_its_copy_leaves() -> None:
    world = World(capacity=4 * PAGE)
    pool = world.cache._pool  # there is no other way in, which is the point
    held = [pool.page(slot) for slot in pool._free]
    world.cache.write(P, A * 64, ALICE)
    assert sum(any(page) for page in held) == 1
    world.cache.clflush(P, ALICE)
    assert not any(any(page) for page in held)
    for leave in (world.cache.wbinvd, world.cache.invd):
        for n in range(6):
            world.cache.write(Spa(n * PAGE), B, ALICE)
        leave()
        assert not any(any(page) for page in held)


def test_slots_in_use_before_equal_slots_after() -> None:
    world = World(capacity=4 * PAGE)
    for _ in range(3):
        for n in range(9):
            world.cache.write(Spa(n * PAGE), A, guest(1 + n % 3))
            world.cache.vmpage_flush(Spa(n * PAGE), 2)
        assert len(world.cache.snapshot()) <= 4
        world.cache.wbinvd()
        assert world.cache.snapshot() == ()


@pytest.mark.parametrize("capacity", [0, -PAGE, PAGE - 1, PAGE + 1])
def test_a_cache_is_whole_pages(capacity: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4096"):
        World(capacity=capacity)


def test_the_pool_is_not_reachable_from_dram_bus_or_probe(world: World) -> None:
    world.cache.write(P, b"plaintext inside", ALICE)
    seen: set[int] = set()
    waiting: list[object] = [world.dram, world.bus, world.probe]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert not isinstance(thing, Pool | type(world.cache) | type(world.controller))
        waiting += gc.get_referents(thing)


# ---- tags


def test_an_access_hits_only_its_own_tag(world: World) -> None:
    tags = (UNENCRYPTED, HOST, ALICE, BOB)
    for key_id in tags:
        world.cache.write(P, bytes([0x41 + tags.index(key_id)]) * LINE, key_id)
    for key_id in tags:
        assert world.cache.read(P, LINE, key_id) == bytes([0x41 + tags.index(key_id)]) * LINE
    assert dirty(world) == {(P, key_id): 1 for key_id in tags}


def test_another_asid_never_hits_a_guests_copy(any_mode: World) -> None:
    any_mode.cache.write(P, A, ALICE)
    for other in (UNENCRYPTED, HOST, BOB, guest(7)):
        assert any_mode.cache.read(P, LINE, other) != A


def test_two_tags_dirtying_different_lines_of_a_page_do_not_clobber_each_other(world: World) -> None:
    world.cache.write(P, A, ALICE)
    world.cache.write(Spa(P + LINE), B, BOB)
    world.cache.wbinvd()
    assert world.cache.read(P, LINE, ALICE) == A
    assert world.cache.read(Spa(P + LINE), LINE, BOB) == B


def test_item_9_incoherent_aliases_until_flushed(world: World) -> None:
    world.cache.write(P, A, HOST)
    assert world.cache.read(P, LINE, UNENCRYPTED) == bytes(LINE)  # what DRAM held, now cached under C=0
    world.cache.clflush(P, HOST)
    assert world.cache.read(P, LINE, UNENCRYPTED) == bytes(LINE)  # still its own old copy
    world.cache.clflush(P, UNENCRYPTED)
    seen = world.cache.read(P, LINE, UNENCRYPTED)
    assert seen == world.probe.read(P, LINE)
    assert seen not in (A, bytes(LINE))


def test_item_9_coherent_hardware_shows_ciphertext_at_once_and_never_two_copies() -> None:
    world = World(coherent=True)
    world.cache.write(P, A, HOST)
    seen = world.cache.read(P, LINE, UNENCRYPTED)
    assert seen == world.probe.read(P, LINE)
    assert seen not in (A, bytes(LINE))
    assert world.cache.read(P, LINE, HOST) == A
    world.cache.write(P, B, ALICE)
    assert dirty(world) == {(P, ALICE): 1}
    assert world.cache.read(P, LINE, HOST) not in (A, B)


@pytest.mark.parametrize("coherent", [False, True])
@pytest.mark.parametrize("last", [UNENCRYPTED, HOST], ids=["C=0 last", "C=1 last"])
def test_with_two_dirty_copies_the_order_of_eviction_decides(last: KeyId, *, coherent: bool) -> None:
    world = World(coherent=coherent)
    written = {UNENCRYPTED: A, HOST: B}
    first = HOST if last == UNENCRYPTED else UNENCRYPTED
    for key_id in (first, last):
        world.cache.write(P, written[key_id], key_id)
    world.cache.clflush(P, last)  # on incoherent hardware the first writer's copy now leaves last, and wins
    world.cache.clflush(P, first)
    winner = last if coherent else first
    assert world.cache.read(P, LINE, winner) == written[winner]
    assert world.controller.read(P, LINE, last if winner == first else first) not in (A, B)


def test_wbinvd_writes_the_oldest_copy_first(world: World) -> None:
    world.cache.write(P, A, UNENCRYPTED)
    world.cache.write(P, B, HOST)
    world.cache.read(P, 1, UNENCRYPTED)  # used last, so written last
    assert world.cache.wbinvd() == 2
    assert world.probe.read(P, LINE) == A


# ---- instructions


def test_wbinvd_writes_back_every_tag_counts_pages_and_empties(world: World) -> None:
    with world.trace.recorded() as events:
        world.cache.write(P, A, ALICE)
        world.cache.write(P, B, BOB)
        world.cache.read(Spa(0), 1, HOST)
        assert world.cache.wbinvd() == 2
        assert world.cache.wbinvd() == 0
    assert world.cache.snapshot() == ()
    assert [str(event) for event in events] == [
        "memory.cache: WBINVD written_back=2",
        "memory.cache: WBINVD written_back=0",
    ]


def test_invd_loses_what_was_not_written_back_and_old_dram_reappears(world: World) -> None:
    world.cache.write(P, A, ALICE)
    world.cache.wbinvd()
    world.cache.write(P, B, ALICE)
    world.cache.read(Spa(0), 1, HOST)
    with world.trace.recorded() as events:
        assert world.cache.invd() == 2
    assert world.cache.read(P, LINE, ALICE) == A
    assert str(events[0]) == "memory.cache: INVD dropped=2 lost=1"


def test_clflush_through_a_host_mapping_does_not_reach_a_guests_copy(world: World) -> None:
    world.cache.write(P, A, ALICE)
    for mapped in (UNENCRYPTED, HOST):
        assert world.cache.clflush(Spa(P + 5), mapped) == 0
    assert dirty(world) == {(P, ALICE): 1}


def test_clflush_reaches_every_tag_on_coherent_hardware() -> None:
    world = World(coherent=True)
    world.cache.write(P, A, ALICE)
    assert world.cache.clflush(P, UNENCRYPTED) == 1
    assert dirty(world) == {}
    assert world.controller.read(P, LINE, ALICE) == A


def test_item_10_vmpage_flush_hits_only_private_copies_of_that_asid_in_that_page(world: World) -> None:
    for key_id in (UNENCRYPTED, HOST, ALICE, BOB):
        world.cache.write(P, A, key_id)
    world.cache.write(Spa(P + PAGE), A, ALICE)
    world.cache.write(Spa(P - PAGE), A, ALICE)
    assert world.cache.vmpage_flush(Spa(P + 0x123), 1) == 1
    left = {(P, UNENCRYPTED), (P, HOST), (P, BOB), (P + PAGE, ALICE), (P - PAGE, ALICE)}
    assert set(dirty(world)) == left
    assert world.controller.read(P, LINE, ALICE) == A
    assert world.cache.vmpage_flush(P, 1) == 0


@pytest.mark.parametrize("asid", [0, -1, 1023, 5000])
def test_vmpage_flush_needs_an_asid(world: World, asid: int) -> None:
    world.cache.write(P, A, HOST)
    with pytest.raises(ValueError, match="selects no guest key"):
        world.cache.vmpage_flush(P, asid)
    assert dirty(world) == {(P, HOST): 1}


def test_flush_takes_every_tag_of_a_range_and_nothing_beside_it(world: World) -> None:
    for page in (1, 2, 3, 4):
        for key_id in (HOST, ALICE):
            world.cache.write(Spa(page * PAGE), A, key_id)
    assert world.cache.flush(Spa(2 * PAGE + 4000), 97) == 4
    assert set(dirty(world)) == {(page * PAGE, key_id) for page in (1, 4) for key_id in (HOST, ALICE)}


def test_a_live_page_is_encrypted_in_place_the_way_linux_does(world: World) -> None:
    """§6.6: clflush the range, convert through a buffer, change the C-bit."""
    text = b"live data of the kernel" * 100
    world.cache.write(P, text, UNENCRYPTED)
    world.cache.clflush(P, UNENCRYPTED)
    buffer = world.cache.read(P, PAGE, UNENCRYPTED)
    world.cache.clflush(P, UNENCRYPTED)
    world.cache.write(P, buffer, HOST)
    assert world.cache.read(P, len(text), HOST) == text
    world.cache.wbinvd()
    assert text[:16] not in world.probe.read(P, PAGE)


# ---- errors


@pytest.mark.parametrize(
    ("spa", "length"), [(MIB, 1), (MIB - 1, 2), (-1, 1), (0, MIB + 1), (MIB - 8, STREAM)]
)
def test_outside_dram_is_refused_before_anything_moves(world: World, spa: int, length: int) -> None:
    world.cache.write(P, A, ALICE)
    before = (world.cache.snapshot(), world.probe.read(Spa(0), MIB))
    for access in (
        lambda: world.cache.read(Spa(spa), length, ALICE),
        lambda: world.cache.write(Spa(spa), bytes(length), ALICE),
        lambda: world.cache.snoop_read(Spa(spa), length, ALICE),
        lambda: world.cache.snoop_write(Spa(spa), bytes(length), ALICE),
        lambda: world.cache.flush(Spa(spa), length),
    ):
        with pytest.raises(AddressError, match="not inside DRAM of 0x100000 bytes"):
            access()
    assert (world.cache.snapshot(), world.probe.read(Spa(0), MIB)) == before


@pytest.mark.parametrize("spa", [-1, MIB, 1 << 47])
def test_flush_instructions_outside_dram_are_refused(world: World, spa: int) -> None:
    with pytest.raises(AddressError):
        world.cache.clflush(Spa(spa), HOST)
    with pytest.raises(AddressError):
        world.cache.vmpage_flush(Spa(spa), 1)


def test_a_key_id_without_a_slot_is_refused_before_a_copy_leaves() -> None:
    world = World(capacity=PAGE)
    world.cache.write(P, A, ALICE)
    with pytest.raises(ValueError, match="slots 0 … 1023"):
        world.cache.read(Spa(0), 1, KeyId(5000))
    assert dirty(world) == {(P, ALICE): 1}


# ---- transfers that are not cached


def test_a_long_transfer_leaves_the_cache_alone(any_mode: World) -> None:
    any_mode.cache.write(Spa(MIB - PAGE), A, ALICE)
    data = bytes(range(256)) * (512 * KIB // 256)
    any_mode.cache.write(Spa(3), data, ALICE)
    assert any_mode.cache.read(Spa(3), len(data), ALICE) == data
    assert dirty(any_mode) == {(MIB - PAGE, ALICE): 1}
    assert data[:32] not in any_mode.probe.read(Spa(0), MIB)


def test_a_long_read_sees_what_is_cached_under_its_tag_and_nothing_else(world: World) -> None:
    world.cache.write(Spa(0), bytes(STREAM), ALICE)
    world.cache.write(P, A, ALICE)
    world.cache.write(Spa(P + PAGE), B, BOB)
    read = world.cache.read(Spa(10), STREAM - 10 + 0x40, ALICE)
    assert read[: STREAM - 10] == bytes(P - 10) + A + bytes(STREAM - P - LINE)
    assert dirty(world) == {(P, ALICE): 1, (P + PAGE, BOB): 1}


def test_a_long_write_merges_with_dirty_copies_that_it_covers_only_in_part(world: World) -> None:
    world.cache.write(Spa(0), b"keep", ALICE)
    world.cache.write(P, b"overwritten", ALICE)
    world.cache.write(Spa(STREAM + 100), b"keep too", ALICE)
    world.cache.write(Spa(8), b"x" * STREAM, ALICE)
    assert world.cache.read(Spa(0), 8, ALICE)[:4] == b"keep"
    assert world.cache.read(P, 16, ALICE) == b"x" * 16
    assert world.cache.read(Spa(STREAM + 100), 8, ALICE) == b"keep too"


def test_a_dirty_copy_that_a_long_write_covers_never_reaches_the_bus(world: World) -> None:
    world.cache.write(P, A, ALICE)
    world.cache.write(Spa(0), bytes(STREAM), ALICE)
    assert world.controller.counts.writes_encrypted_lines == STREAM // LINE


def test_reading_into_a_buffer_is_reading(world: World) -> None:
    world.cache.write(Spa(0), bytes(STREAM), ALICE)
    world.cache.write(P, A, ALICE)
    world.cache.write(Spa(P + PAGE), B, BOB)
    buffer = bytearray(4 * PAGE - 7)
    world.cache.read_into(Spa(7), memoryview(buffer), ALICE)
    assert buffer == bytes(P - 7) + A + bytes(PAGE - LINE)
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.cache.read_into(Spa(MIB - 1), memoryview(buffer), ALICE)


def test_a_long_write_leaves_other_tags_stale_unless_hardware_is_coherent() -> None:
    for coherent, seen in ((False, A), (True, None)):
        world = World(coherent=coherent)
        world.cache.write(P, A, BOB)
        world.cache.write(Spa(0), bytes(STREAM), ALICE)
        assert (world.cache.read(P, LINE, BOB) == A) is (seen == A)
        if coherent:
            assert world.cache.read(P, LINE, ALICE) == bytes(LINE)


def test_a_transfer_larger_than_the_cache_and_short_ones_that_fill_it_both_work() -> None:
    world = World(capacity=2 * PAGE)
    data = bytes(range(256)) * (STREAM // 256)
    world.cache.write(
        Spa(0), data[: STREAM - 1], ALICE
    )  # just too short to be streamed: sixteen fills, two slots
    assert world.cache.read(Spa(0), STREAM - 1, ALICE) == data[: STREAM - 1]
    assert len(world.cache.snapshot()) == 2
