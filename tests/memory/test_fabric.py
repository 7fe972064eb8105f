"""The secure processor's accesses: past the caches, with any key, and in place."""

from __future__ import annotations

import hashlib

import pytest

from cbit.memory.errors import AddressError
from cbit.memory.fabric import CHUNK
from cbit.spec.address import LINE, MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from memory.worlds import ALICE, BOB, World

IMAGE = hashlib.shake_256(b"firmware").digest(2 * CHUNK + 3 * PAGE)


def encrypt(world: World, spa: int, length: int, *, source: KeyId = UNENCRYPTED) -> bytes:
    shown: list[bytes] = []
    world.fabric.encrypt_in_place(
        Spa(spa), length, key_id=ALICE, source=source, show=lambda chunk: shown.append(bytes(chunk))
    )
    return b"".join(shown)


def test_what_was_plain_is_encrypted_where_it_lies_and_shown_once_for_hashing(any_mode: World) -> None:
    any_mode.cache.write(Spa(PAGE), IMAGE, UNENCRYPTED)
    assert encrypt(any_mode, PAGE, len(IMAGE)) == IMAGE
    raw = any_mode.cache.read(Spa(PAGE), len(IMAGE), UNENCRYPTED)
    assert raw == any_mode.probe.read(Spa(PAGE), len(IMAGE))
    assert not any(IMAGE[at : at + 16] in raw for at in range(0, len(IMAGE), PAGE))
    assert any_mode.cache.read(Spa(PAGE), len(IMAGE), ALICE) == IMAGE
    assert any_mode.cache.read(Spa(PAGE), len(IMAGE), BOB) != IMAGE


@pytest.mark.parametrize(("spa", "length"), [(PAGE + 16, 16), (PAGE + 48, 32), (PAGE + 16, PAGE + 16)])
def test_single_blocks_are_encrypted_and_their_neighbours_stay(world: World, spa: int, length: int) -> None:
    world.controller.write(Spa(0), IMAGE[: 4 * PAGE], UNENCRYPTED)
    assert encrypt(world, spa, length) == IMAGE[spa : spa + length]
    raw = world.probe.read(Spa(0), 4 * PAGE)
    assert raw[:spa] == IMAGE[:spa]
    assert raw[spa + length :] == IMAGE[spa + length : 4 * PAGE]
    assert world.controller.read(Spa(spa), length, ALICE) == IMAGE[spa : spa + length]


def test_dirty_data_in_the_caches_is_what_gets_encrypted(world: World) -> None:
    world.cache.write(Spa(PAGE), IMAGE[:100], UNENCRYPTED)  # not yet in DRAM
    assert encrypt(world, PAGE, PAGE)[:100] == IMAGE[:100]
    assert world.cache.read(Spa(PAGE), 100, ALICE) == IMAGE[:100]
    assert world.cache.wbinvd() == 0  # no stale copy is left that could overwrite it


def test_a_source_stored_under_the_hosts_key_is_read_with_it(world: World) -> None:
    world.cache.write(Spa(PAGE), IMAGE[:PAGE], HOST)
    assert encrypt(world, PAGE, PAGE, source=HOST) == IMAGE[:PAGE]
    assert world.cache.read(Spa(PAGE), PAGE, ALICE) == IMAGE[:PAGE]


def test_under_tsme_the_plain_source_is_the_hosts() -> None:
    world = World(tsme=True)
    world.cache.write(Spa(PAGE), IMAGE[:PAGE], UNENCRYPTED)
    assert encrypt(world, PAGE, PAGE) == IMAGE[:PAGE]
    assert world.cache.read(Spa(PAGE), PAGE, ALICE) == IMAGE[:PAGE]


@pytest.mark.parametrize(
    ("spa", "length", "why"),
    [
        (PAGE + 1, 16, "whole blocks"),
        (PAGE, 17, "whole blocks"),
        (PAGE, 8, "whole blocks"),
        (MIB - 16, 32, "not inside DRAM"),
        (MIB, 16, "not inside DRAM"),
        (-16, 16, "not inside DRAM"),
    ],
)
def test_a_bad_range_is_refused_at_the_call_and_changes_nothing(
    world: World, spa: int, length: int, why: str
) -> None:
    world.cache.write(Spa(PAGE), b"dirty", UNENCRYPTED)
    before = world.probe.read(Spa(0), MIB)
    with pytest.raises(AddressError, match=why):
        encrypt(world, spa, length)
    assert world.probe.read(Spa(0), MIB) == before
    assert len(world.cache.snapshot()) == 1


def test_nothing_to_encrypt_shows_nothing(world: World) -> None:
    assert encrypt(world, PAGE, 0) == b""


@pytest.mark.parametrize("source", [UNENCRYPTED, HOST])
def test_a_chunk_is_read_only_and_gone_after_the_last_one(world: World, source: KeyId) -> None:
    world.controller.write(Spa(0), IMAGE[:PAGE], source)
    shown: list[memoryview] = []

    def look(chunk: memoryview) -> None:
        with pytest.raises(TypeError):
            chunk[0] = 0
        assert chunk == IMAGE[:PAGE]
        shown.append(chunk)

    world.fabric.encrypt_in_place(Spa(0), PAGE, key_id=ALICE, source=source, show=look)
    assert len(shown) == 1
    # It was a window onto the wire, which shows ciphertext now, or the secure processor's memory, now wiped.
    assert bytes(shown[0]) == (world.probe.read(Spa(0), PAGE) if source == UNENCRYPTED else bytes(PAGE))


@pytest.mark.parametrize("source", [UNENCRYPTED, HOST])
def test_whoever_stops_half_way_leaves_whole_chunks_and_no_plaintext_in_hand(
    world: World, source: KeyId
) -> None:
    world.controller.write(Spa(0), IMAGE, source)
    before, shown = world.probe.read(Spa(0), len(IMAGE)), []

    def stop(chunk: memoryview) -> None:
        shown.append(chunk)
        if len(shown) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        world.fabric.encrypt_in_place(Spa(0), len(IMAGE), key_id=ALICE, source=source, show=stop)
    assert world.controller.read(Spa(0), CHUNK, ALICE) == IMAGE[:CHUNK]
    assert world.probe.read(Spa(CHUNK), len(IMAGE) - CHUNK) == before[CHUNK:]
    assert source == UNENCRYPTED or not any(shown[1])


def test_reading_and_writing_take_what_the_caches_hold_under_every_tag(world: World) -> None:
    world.cache.write(Spa(PAGE), b"A" * LINE, ALICE)
    world.cache.write(Spa(PAGE + LINE), b"B" * LINE, BOB)
    assert world.fabric.read(Spa(PAGE), LINE, ALICE) == b"A" * LINE
    assert world.cache.snapshot() == ()
    world.cache.write(Spa(PAGE), b"old" * 10, ALICE)
    world.fabric.write(Spa(PAGE), b"new" * 10, ALICE)
    assert world.cache.wbinvd() == 0
    assert world.cache.read(Spa(PAGE), 30, ALICE) == b"new" * 10
    assert world.cache.read(Spa(PAGE + LINE), LINE, BOB) == b"B" * LINE
    out = memoryview(bytearray(PAGE))
    world.fabric.read_into(Spa(PAGE), out, ALICE)
    assert out[:30] == b"new" * 10


def test_keys_enter_here(world: World) -> None:
    fresh = guest(40)
    assert not world.fabric.has_key(fresh)
    world.fabric.load_key(fresh, world.key(ALICE))
    assert world.fabric.has_key(fresh)
    assert world.controller.has_key(fresh)
    assert world.fabric.size == MIB


def test_outside_dram_is_refused(world: World) -> None:
    for access in (
        lambda: world.fabric.read(Spa(MIB), 1, ALICE),
        lambda: world.fabric.write(Spa(MIB - 1), b"ab", ALICE),
        lambda: world.fabric.read_into(Spa(MIB), memoryview(bytearray(1)), ALICE),
    ):
        with pytest.raises(AddressError, match="not inside DRAM"):
            access()
