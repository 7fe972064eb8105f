"""The engine and its key slots.

Checklist of memory-encryption.md §12: items 1 and 2, with the algebra of §9.2 and §9.3.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import types
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Mode, Tweak
from cbit.memory.bus import BusOp
from cbit.memory.errors import AddressError
from cbit.memory.latency import SOURCE
from cbit.spec.address import LINE, MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from memory.worlds import ALICE, BOB, World

TEXT = b"sixteen byte blk" * (PAGE // 16)


# ---- what is in DRAM, and who reads what


def test_item_1_without_the_key_it_is_ciphertext_and_with_it_plaintext_again(any_mode: World) -> None:
    controller, probe = any_mode.controller, any_mode.probe
    controller.write(Spa(PAGE), TEXT, HOST)
    raw = controller.read(Spa(PAGE), PAGE, UNENCRYPTED)
    assert raw == probe.read(Spa(PAGE), PAGE)
    assert TEXT[:16] not in raw
    assert controller.read(Spa(PAGE), PAGE, HOST) == TEXT


def test_item_2_two_pages_differ_and_one_place_repeats(any_mode: World) -> None:
    controller, probe = any_mode.controller, any_mode.probe
    controller.write(Spa(PAGE), TEXT, ALICE)
    controller.write(Spa(2 * PAGE), TEXT, ALICE)
    first, second = probe.read(Spa(PAGE), PAGE), probe.read(Spa(2 * PAGE), PAGE)
    assert first != second
    assert len({first[at : at + 16] for at in range(0, PAGE, 16)}) == PAGE // 16  # nor within a page
    controller.write(Spa(PAGE), bytes(PAGE), ALICE)
    controller.write(Spa(PAGE), TEXT, ALICE)
    assert probe.read(Spa(PAGE), PAGE) == first


def test_two_guests_have_different_ciphertext_and_read_each_other_as_garbage(any_mode: World) -> None:
    controller = any_mode.controller
    controller.write(Spa(0), TEXT, ALICE)
    alices = any_mode.probe.read(Spa(0), PAGE)
    assert controller.read(Spa(0), PAGE, BOB) not in (TEXT, alices)
    controller.write(Spa(0), TEXT, BOB)
    assert any_mode.probe.read(Spa(0), PAGE) != alices


def test_unencrypted_is_unencrypted(any_mode: World) -> None:
    any_mode.controller.write(Spa(0), TEXT, UNENCRYPTED)
    assert any_mode.probe.read(Spa(0), PAGE) == TEXT


def test_what_was_stored_plain_reads_as_garbage_under_a_key(any_mode: World) -> None:
    any_mode.controller.write(Spa(0), TEXT, UNENCRYPTED)
    assert TEXT[:16] not in any_mode.controller.read(Spa(0), PAGE, ALICE)


def test_a_moved_block_decrypts_to_the_tweak_difference_under_xe() -> None:
    world, tweak = World(mode=Mode.XE), Tweak.zen1()
    p, q = Spa(3 * PAGE + 16), Spa(9 * PAGE + 48)
    world.controller.write(p, TEXT[:16], ALICE)
    world.probe.write(q, world.probe.read(p, 16))
    shift = xor(tweak.at(p), tweak.at(q))
    assert world.controller.read(q, 16, ALICE) == xor(TEXT[:16], shift)


def test_a_moved_block_needs_its_ciphertext_corrected_under_xex() -> None:
    world, tweak = World(mode=Mode.XEX), Tweak.zen1()
    p, q = Spa(3 * PAGE + 16), Spa(9 * PAGE + 48)
    world.controller.write(p, TEXT[:16], ALICE)
    shift = xor(tweak.at(p), tweak.at(q))
    world.probe.write(q, xor(world.probe.read(p, 16), shift))
    assert world.controller.read(q, 16, ALICE) == xor(TEXT[:16], shift)


# ---- any alignment


@given(st.data())
def test_any_range_reads_back_and_its_neighbours_stay(data: st.DataObject) -> None:
    world = World(size=4 * PAGE, mode=data.draw(st.sampled_from(list(Mode))))
    mirror = bytearray(b"\x5a" * world.size)
    world.controller.write(Spa(0), bytes(mirror), ALICE)
    for _ in range(3):
        start = data.draw(st.integers(0, world.size))
        length = data.draw(st.integers(0, min(3 * LINE, world.size - start)))
        new = data.draw(st.binary(min_size=length, max_size=length))
        world.controller.write(Spa(start), new, ALICE)
        mirror[start : start + length] = new
        assert world.controller.read(Spa(start), length, ALICE) == new
    assert world.controller.read(Spa(0), world.size, ALICE) == mirror
    out = memoryview(bytearray(100))
    world.controller.read_into(Spa(7), out, ALICE)
    assert out == mirror[7:107]


def test_megabytes_at_once_are_the_same_as_pages_one_by_one(any_mode: World) -> None:
    contents = SeededEntropy("bulk").draw(MIB)
    any_mode.controller.write(Spa(0), contents, ALICE)
    at_once = any_mode.probe.read(Spa(0), MIB)
    for at in range(0, MIB, PAGE):
        any_mode.controller.write(Spa(at), contents[at : at + PAGE], ALICE)
    assert any_mode.probe.read(Spa(0), MIB) == at_once
    assert any_mode.controller.read(Spa(0), MIB, ALICE) == contents


@pytest.mark.parametrize("data", [bytearray(TEXT), memoryview(TEXT)], ids=["bytearray", "memoryview"])
def test_any_buffer_can_be_written(world: World, data: bytearray | memoryview) -> None:
    world.controller.write(Spa(5), data, ALICE)
    assert world.controller.read(Spa(5), PAGE, ALICE) == TEXT


@pytest.mark.parametrize(("spa", "length"), [(MIB, 1), (MIB - 1, 2), (-1, 1), (1 << 60, 16)])
@pytest.mark.parametrize("key_id", [UNENCRYPTED, ALICE], ids=["plain", "guest"])
def test_outside_dram_is_an_address_error_and_writes_nothing(
    world: World, key_id: KeyId, spa: int, length: int
) -> None:
    before = world.probe.read(Spa(0), MIB)
    with pytest.raises(AddressError, match="not inside DRAM of 0x100000 bytes"):
        world.controller.read(Spa(spa), length, key_id)
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.controller.write(Spa(spa), b"x" * length, key_id)
    assert world.probe.read(Spa(0), MIB) == before


@pytest.mark.parametrize("key_id", [-1, HOST + 1, 1 << 20])
def test_there_are_only_so_many_slots(world: World, key_id: int) -> None:
    with pytest.raises(ValueError, match="slots 0 … 1023"):
        world.controller.read(Spa(0), 16, KeyId(key_id))
    with pytest.raises(ValueError, match="slots 0 … 1023"):
        world.controller.load_key(KeyId(key_id), world.key(ALICE))


# ---- keys


def test_a_slot_that_nobody_loaded_is_an_unknown_key_and_stays_the_same_until_reset(any_mode: World) -> None:
    stranger = guest(77)
    assert not any_mode.controller.has_key(stranger)
    any_mode.controller.write(Spa(0), TEXT, stranger)
    assert any_mode.controller.read(Spa(0), PAGE, stranger) == TEXT
    assert any_mode.probe.read(Spa(0), PAGE) != TEXT
    any_mode.controller.reset()
    assert any_mode.controller.read(Spa(0), PAGE, stranger) != TEXT


def test_a_reset_loses_every_key_and_keeps_every_cell(any_mode: World) -> None:
    controller = any_mode.controller
    controller.write(Spa(0), TEXT, HOST)
    raw = any_mode.probe.read(Spa(0), PAGE)
    controller.reset()
    assert not controller.has_key(HOST)
    assert any_mode.probe.read(Spa(0), PAGE) == raw
    assert TEXT[:16] not in controller.read(Spa(0), PAGE, HOST)
    controller.load_key(HOST, any_mode.key(HOST))  # had somebody kept the key, it would still open the door
    assert controller.read(Spa(0), PAGE, HOST) == TEXT


def test_a_reset_may_bring_fresh_tweak_constants(world: World) -> None:
    world.controller.write(Spa(PAGE), TEXT, HOST)
    world.controller.reset(tweak=Tweak.random(SeededEntropy("next boot")))
    world.controller.load_key(HOST, world.key(HOST))
    assert world.controller.read(Spa(PAGE), PAGE, HOST) != TEXT


def test_loading_a_key_over_another_changes_what_is_read(world: World) -> None:
    world.controller.write(Spa(0), TEXT, ALICE)
    world.controller.load_key(ALICE, world.key(BOB))
    assert TEXT[:16] not in world.controller.read(Spa(0), PAGE, ALICE)
    world.controller.load_key(ALICE, world.key(ALICE))
    assert world.controller.read(Spa(0), PAGE, ALICE) == TEXT


def test_two_slots_with_one_key_are_one_key(world: World) -> None:
    world.controller.load_key(guest(9), world.key(ALICE))
    world.controller.write(Spa(0), TEXT, ALICE)
    assert world.controller.read(Spa(0), PAGE, guest(9)) == TEXT


def test_a_key_of_the_wrong_size_or_for_no_slot_is_refused_and_the_old_one_stays(any_mode: World) -> None:
    any_mode.controller.write(Spa(0), TEXT, ALICE)
    for size in (0, 15, 17, 48):
        with pytest.raises(ValueError, match=f"bits of key, not {8 * size}"):
            any_mode.controller.load_key(ALICE, Key(bytes(size)))
    with pytest.raises(ValueError, match="unencrypted"):
        any_mode.controller.load_key(UNENCRYPTED, any_mode.key(ALICE))
    assert any_mode.controller.read(Spa(0), PAGE, ALICE) == TEXT
    assert any_mode.controller.read(Spa(0), PAGE, UNENCRYPTED) != TEXT


def test_no_key_byte_is_reachable_from_controller_cache_or_port(any_mode: World) -> None:
    material = [any_mode.key(key_id).material() for key_id in (HOST, ALICE, BOB)]
    halves = [piece for key in material for piece in (key[:16], key[-16:], key[:16][::-1])]
    any_mode.cache.write(Spa(0), TEXT, ALICE)
    any_mode.cache.wbinvd()
    reached = 0
    for thing in reachable(any_mode.controller, any_mode.cache, any_mode.fabric):
        reached += 1
        shown = contents(thing)
        assert not any(half in shown or half.hex().encode() in shown for half in halves)
    assert reached > 50  # the walk went somewhere


def test_the_walk_would_have_found_a_key(world: World) -> None:
    world.controller.kept = world.key(ALICE)  # type: ignore[attr-defined]  # the mistake that the test above looks for
    assert world.key(ALICE).material() in [
        thing for thing in reachable(world.controller) if isinstance(thing, bytes)
    ]


def test_neither_controller_nor_cache_can_be_pickled_or_copied(world: World) -> None:
    for thing in (world.controller, world.cache, world.fabric):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.deepcopy(thing)


def test_the_trace_hears_of_a_key_by_its_fingerprint_only(world: World) -> None:
    key = world.key(BOB)
    with world.trace.recorded() as events:
        world.controller.load_key(BOB, key)
    assert [str(event) for event in events] == [
        f"memory.controller: key loaded key_id=2 fingerprint={key.fingerprint()}"
    ]


# ---- TSME


def test_under_tsme_what_would_be_plain_has_the_hosts_key_and_guests_keep_theirs() -> None:
    world = World(tsme=True)
    world.controller.write(Spa(0), TEXT, UNENCRYPTED)
    assert TEXT[:16] not in world.probe.read(Spa(0), PAGE)
    assert world.controller.read(Spa(0), PAGE, UNENCRYPTED) == TEXT
    assert world.controller.read(Spa(0), PAGE, HOST) == TEXT
    world.controller.write(Spa(0), TEXT, ALICE)
    assert world.controller.read(Spa(0), PAGE, ALICE) == TEXT
    assert TEXT[:16] not in world.controller.read(Spa(0), PAGE, UNENCRYPTED)
    assert world.bus.read(Spa(0), PAGE) == world.probe.read(Spa(0), PAGE) != TEXT


# ---- latency


def test_only_encrypted_reads_from_dram_cost_time(world: World) -> None:
    world.controller.write(Spa(0), TEXT, ALICE)
    world.controller.write(Spa(PAGE), TEXT, UNENCRYPTED)
    world.controller.read(Spa(PAGE), PAGE, UNENCRYPTED)
    assert world.controller.counts.report().extra_ns == 0
    world.controller.read(Spa(0), PAGE, ALICE)
    report = world.controller.counts.report()
    lines = PAGE // LINE
    assert (report.reads_encrypted_lines, report.reads_plain_lines) == (lines, lines)
    assert (report.writes_encrypted_lines, report.writes_plain_lines) == (lines, lines)
    assert report.extra_ns == lines * 8
    assert report.source == SOURCE
    assert "§2.1" in SOURCE


def test_a_cache_hit_costs_nothing(world: World) -> None:
    world.cache.write(Spa(0), TEXT, ALICE)  # covers the page: no fill either
    for _ in range(5):
        world.cache.read(Spa(0), PAGE, ALICE)
    assert world.controller.counts.report().extra_ns == 0
    world.cache.wbinvd()
    for _ in range(5):
        world.cache.read(Spa(0), 1, ALICE)
    assert world.controller.counts.report().extra_ns == PAGE // LINE * 8


def test_a_partial_line_costs_a_read_and_under_tsme_the_plain_ones_count_as_encrypted() -> None:
    world = World(tsme=True)
    world.controller.write(Spa(1), b"x", UNENCRYPTED)
    counts = world.controller.counts
    assert (counts.reads_encrypted_lines, counts.writes_encrypted_lines) == (1, 1)
    assert (counts.reads_plain_lines, counts.writes_plain_lines) == (0, 0)


def contents(thing: object) -> bytes:
    """Return what a thing holds: a buffer's contents, a number's bytes, and how it prints itself."""
    shown = (hex(thing) if isinstance(thing, int) else repr(thing)).encode()  # a number may be very long
    if isinstance(thing, int):
        shown += thing.to_bytes(thing.bit_length() // 8 + 1, "little", signed=True)
    with contextlib.suppress(TypeError, ValueError, BufferError):
        shown += bytes(memoryview(thing))  # type: ignore[arg-type]  # whatever is a buffer
    return shown


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def reachable(*roots: object) -> Iterator[object]:
    """Walk everything that the roots hold, short of code, which leads to the whole process."""
    code = (
        type,
        types.ModuleType,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.CodeType,
        SeededEntropy,
    )
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, code):
            continue
        seen.add(id(thing))
        yield thing
        waiting += gc.get_referents(thing)


def test_key_sizes_are_what_the_tests_assume() -> None:
    assert {mode: KEY_BYTES[mode] for mode in Mode} == {Mode.XE: 16, Mode.XEX: 16, Mode.XTS: 32}


# ---- parts of a page


class Recorder:
    """A bus probe that keeps what passes."""

    def __init__(self, passed: list[tuple[BusOp, int, bytes]]) -> None:
        self.passed = passed

    def __call__(self, op: BusOp, spa: Spa, data: bytes) -> None:
        self.passed.append((op, spa, data))


@given(
    dirty=st.integers(1, (1 << PAGE // LINE) - 1),
    key_id=st.sampled_from([UNENCRYPTED, HOST, ALICE]),
    seed=st.integers(0, 255),
)
def test_parts_of_a_page_are_written_as_if_each_were_alone(dirty: int, key_id: KeyId, seed: int) -> None:
    """The same cells, the same on the wires, the same counts; and no other line moves."""
    lines = [line for line in range(PAGE // LINE) if dirty >> line & 1]
    parts = [(line * LINE, (line + 1) * LINE) for line in lines]
    data = bytes((seed + at) % 256 for at in range(PAGE))
    for mode in Mode:
        seen = []
        for at_once in (True, False):
            world = World(mode=mode)
            before = world.probe.read(Spa(PAGE), PAGE)
            wires: list[tuple[BusOp, int, bytes]] = []
            with world.bus.tap(Recorder(wires)):
                if at_once:
                    world.controller.write_parts(Spa(PAGE), memoryview(data), parts, key_id)
                else:
                    for start, stop in parts:
                        world.controller.write(Spa(PAGE + start), data[start:stop], key_id)
            cells, written = world.probe.read(Spa(PAGE), PAGE), world.controller.counts.report()
            for line in set(range(PAGE // LINE)) - set(lines):
                assert before[line * LINE :][:LINE] == cells[line * LINE :][:LINE]
            for start, stop in parts:
                assert data[start:stop] == world.controller.read(Spa(PAGE + start), stop - start, key_id)
            seen.append((cells, written, wires))
        assert seen[0] == seen[1]


@pytest.mark.parametrize(("spa", "key_id"), [(Spa(1 << 40), HOST), (Spa(0), KeyId(5000))])
def test_parts_that_cannot_be_written_move_nothing(any_mode: World, spa: Spa, key_id: KeyId) -> None:
    before = any_mode.probe.read(Spa(0), PAGE)
    with pytest.raises((AddressError, ValueError)):
        any_mode.controller.write_parts(spa, memoryview(TEXT), [(0, LINE)], key_id)
    assert before == any_mode.probe.read(Spa(0), PAGE)
