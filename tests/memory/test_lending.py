"""Slots that are lent stay the cache's: it reads through them, takes them back, and knows what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from cbit.memory.errors import AddressError
from cbit.memory.lending import cluster
from cbit.memory.pool import Slot
from cbit.spec.address import LINE, PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED, KeyId
from memory.worlds import ALICE, BOB, World

AT = Spa(0x5000)


@dataclass
class Engine:
    """A borrower that remembers what it was told."""

    world: World
    heard: list[tuple[str, list[Slot]]] = field(default_factory=list)
    lines: dict[Slot, int] = field(default_factory=dict)
    asked: list[Slot] = field(default_factory=list)
    in_use: set[Slot] = field(default_factory=set)

    def borrow(self, page: Spa = AT, key: KeyId = ALICE, *, write: bool = True) -> Slot:
        return self.world.cache.lend(page, key, self, write=write)

    def store(self, slot: Slot, start: int, data: bytes) -> None:
        self.world.cache.window[slot + start : slot + start + len(data)] = data
        self.lines[slot] = self.lines.get(slot, 0) | 1 << start // LINE

    def recall(self, slots: Sequence[Slot]) -> list[int]:
        self.heard.append(("recall", list(slots)))
        return [self.lines.pop(slot, 0) for slot in slots]

    def clean(self, slots: Sequence[Slot]) -> list[int]:
        self.heard.append(("clean", list(slots)))
        return [self.lines.pop(slot, 0) for slot in slots]

    def stored(self, slot: Slot) -> int:
        return self.lines.get(slot, 0)

    def was_used(self, slot: Slot) -> bool:
        self.asked.append(slot)
        return slot in self.in_use

    def overwritten(self, slot: Slot) -> None:
        self.heard.append(("overwritten", [slot]))


def test_a_borrowed_slot_holds_the_page_and_what_is_stored_there_is_read_by_its_tag() -> None:
    world = World()
    world.cache.write(AT, b"before", ALICE)
    engine = Engine(world)
    slot = engine.borrow()
    assert b"before" == bytes(world.cache.window[slot : slot + 6])
    engine.store(slot, 0, b"after!")
    assert b"after!" == world.cache.read(AT, 6, ALICE)
    assert b"after!" != world.cache.read(AT, 6, UNENCRYPTED)
    assert [] == engine.heard
    assert {1} == {copy.dirty_lines for copy in world.cache.snapshot() if copy.key_id == ALICE}


@pytest.mark.parametrize("way", ["wbinvd", "clflush", "vmpage_flush", "flush", "snoop_write"])
def test_what_lets_a_copy_leave_recalls_it_first_and_writes_its_lines_back(way: str) -> None:
    world = World()
    engine = Engine(world)
    slot = engine.borrow()
    engine.store(slot, 0, b"stored")
    match way:
        case "wbinvd":
            world.cache.wbinvd()
        case "clflush":
            world.cache.clflush(AT, ALICE)
        case "vmpage_flush":
            world.cache.vmpage_flush(AT, int(ALICE))
        case "flush":
            world.cache.flush(AT, PAGE)
        case _:
            world.cache.snoop_write(Spa(AT + 128), b"x", ALICE)
    assert [("recall", [slot])] == engine.heard
    assert bytes(PAGE) == bytes(world.cache.window[slot : slot + PAGE])  # wiped
    assert b"stored" == world.controller.read(AT, 6, ALICE)


def test_invd_recalls_too_and_loses_what_was_stored() -> None:
    world = World()
    engine = Engine(world)
    before = world.controller.read(AT, 6, ALICE)
    engine.store(engine.borrow(), 0, b"stored")
    world.cache.invd()
    assert "recall" == engine.heard[0][0]
    assert before == world.controller.read(AT, 6, ALICE)


def test_only_lines_that_were_stored_to_are_written() -> None:
    world = World()
    engine = Engine(world)
    slot = engine.borrow()
    engine.store(slot, 3 * LINE, b"mine")
    world.controller.write(Spa(AT + 5 * LINE), b"another's", ALICE)
    world.cache.wbinvd()
    assert b"mine" == world.cache.read(Spa(AT + 3 * LINE), 4, ALICE)
    assert b"another's" == world.cache.read(Spa(AT + 5 * LINE), 9, ALICE)


def test_room_is_made_by_recalling_several_at_once_oldest_first() -> None:
    world = World(size=1 << 20, capacity=64 * PAGE)
    engine = Engine(world)
    slots = [engine.borrow(Spa(number * PAGE)) for number in range(64)]
    engine.borrow(Spa(100 * PAGE))
    assert [("recall", slots[:2])] == engine.heard
    assert 2 == world.cache.evictions
    assert len(world.cache.snapshot()) <= 64


def test_what_is_in_use_stays_and_is_asked_for_again_only_when_its_turn_comes() -> None:
    world = World(size=1 << 20, capacity=64 * PAGE)
    engine = Engine(world)
    slots = [engine.borrow(Spa(number * PAGE)) for number in range(64)]
    engine.in_use = {slots[0], slots[2]}
    engine.borrow(Spa(100 * PAGE))
    assert [("recall", [slots[1], slots[3]])] == engine.heard
    assert slots[:4] == engine.asked
    kept = [copy.page for copy in world.cache.snapshot()]
    assert [Spa(0), Spa(2 * PAGE)] == kept[-3:-1]


def test_room_is_made_although_everything_is_in_use() -> None:
    world = World(size=1 << 20, capacity=64 * PAGE)
    engine = Engine(world)
    engine.in_use = set(slots := [engine.borrow(Spa(number * PAGE)) for number in range(64)])
    engine.borrow(Spa(100 * PAGE))
    assert [("recall", slots[:2])] == engine.heard


def test_neighbours_are_written_back_as_one_by_one() -> None:
    """Whole pages, single lines, clean pages and another tag between them."""
    world = World(size=1 << 20, capacity=64 * PAGE)
    engine = Engine(world)
    dram, expected = world.cache, {}
    for number in range(12):
        key = BOB if number == 5 else ALICE
        at = Spa(number * PAGE)
        slot = engine.borrow(at, key)
        for line in {0: range(64), 3: range(0), 4: (0, 1, 63), 7: (17,)}.get(number % 8, (2, number)):
            engine.store(slot, line * LINE, bytes([number + 1]) * LINE)
        expected[at, key] = dram.read(at, PAGE, key)
    world.cache.wbinvd()
    assert bytes(64 * PAGE) == bytes(world.cache.window)
    assert expected == {(at, key): dram.read(at, PAGE, key) for at, key in expected}


def test_a_store_by_somebody_else_is_told() -> None:
    world = World()
    engine = Engine(world)
    slot = engine.borrow(write=False)
    world.cache.write(AT, b"host", ALICE)
    assert [("overwritten", [slot])] == engine.heard
    assert b"host" == bytes(world.cache.window[slot : slot + 4])
    world.cache.wbinvd()
    assert b"host" == world.cache.read(AT, 4, ALICE)


def test_a_copy_has_one_borrower_at_a_time() -> None:
    world = World()
    first, second = Engine(world), Engine(world)
    slot = first.borrow()
    first.store(slot, 0, b"first")
    assert slot == second.borrow()
    assert [("recall", [slot])] == first.heard
    assert [] == second.heard
    world.cache.wbinvd()
    assert b"first" == world.controller.read(AT, 5, ALICE)


def test_a_borrower_can_have_all_or_some_taken_back_and_the_copies_stay() -> None:
    world = World()
    engine, other = Engine(world), Engine(world)
    slots = [engine.borrow(Spa(number * PAGE)) for number in range(3)]
    other.borrow(Spa(9 * PAGE))
    engine.store(slots[0], 0, b"kept")
    world.cache.recall_from(engine, slots[:1])
    assert [("recall", slots[:1])] == engine.heard
    world.cache.recall_from(engine)
    assert slots[1:] == engine.heard[1][1]
    assert [] == other.heard
    assert 4 == len(world.cache.snapshot())
    assert b"kept" == world.cache.read(Spa(0), 4, ALICE)


def test_coherent_hardware_shares_clean_copies_and_lets_one_tag_store() -> None:
    world = World(coherent=True)
    engine = Engine(world)
    mine = engine.borrow(key=ALICE)
    engine.store(mine, 0, b"by alice")
    theirs = engine.borrow(key=BOB, write=False)
    assert [("clean", [mine])] == engine.heard  # written back, and still lent
    assert world.controller.read(AT, 8, BOB) == bytes(world.cache.window[theirs : theirs + 8])
    engine.borrow(key=ALICE, write=False)
    assert 1 == len(engine.heard)  # nothing to clean: nobody stores
    engine.borrow(key=BOB, write=True)
    assert ("recall", [mine]) == engine.heard[1]
    assert b"by alice" == world.controller.read(AT, 8, ALICE)


def test_coherent_hardware_lets_a_shared_clean_copy_leave_when_the_host_stores() -> None:
    world = World(coherent=True)
    engine = Engine(world)
    mine, theirs = engine.borrow(key=ALICE, write=False), engine.borrow(key=BOB, write=False)
    world.cache.write(AT, b"host", ALICE)
    assert [("recall", [theirs]), ("overwritten", [mine])] == engine.heard
    assert world.cache.read(AT, 4, ALICE) == b"host"
    world.cache.wbinvd()
    assert b"host" == world.cache.read(AT, 4, ALICE)


def test_what_is_not_there_is_not_lent() -> None:
    world = World()
    with pytest.raises(AddressError):
        Engine(world).borrow(Spa(world.size))
    with pytest.raises(ValueError, match="key id"):
        Engine(world).borrow(key=KeyId(4000))
    assert () == world.cache.snapshot()


def test_neighbours_are_lent_together_and_decrypted_as_one_by_one() -> None:
    world = World()
    for number in range(4):
        world.cache.write(Spa(AT + number * PAGE), bytes([number + 1]) * 100, ALICE)
    world.cache.wbinvd()
    engine = Engine(world)
    slots = world.cache.lend_along(AT, 4, ALICE, engine, write=False)
    assert [bytes([n + 1]) * 100 for n in range(4)] == [
        bytes(world.cache.window[slot : slot + 100]) for slot in slots if slot is not None
    ]
    assert engine.borrow(write=False) == slots[0]  # the same copies
    assert [] == engine.heard


def test_neighbours_go_where_slots_are_free_and_nowhere_else() -> None:
    world = World(capacity=4 * PAGE)
    for number in range(3):
        world.cache.write(Spa(AT + number * PAGE), bytes([number + 1]) * 100, ALICE)
    world.cache.wbinvd()
    others = [Spa((32 + number) * PAGE) for number in range(4)]
    for page in others:
        world.cache.write(page, b"another", ALICE)
    for number in (2, 3, 0):  # free now: the first slot, the last, the third, to be taken in this order
        world.cache.clflush(others[number], ALICE)
    slots = world.cache.lend_along(AT, 3, ALICE, Engine(world), write=False)
    assert [bytes([n + 1]) * 100 for n in range(3)] == [
        bytes(world.cache.window[slot : slot + 100]) for slot in slots if slot is not None
    ]
    assert b"another" == world.cache.read(others[1], 7, ALICE)


def test_a_neighbour_that_somebody_else_has_is_left_to_them() -> None:
    world = World()
    first, second = Engine(world), Engine(world)
    mine = first.borrow(Spa(AT + PAGE))
    world.cache.read(Spa(AT + 2 * PAGE), 1, BOB)
    slots = world.cache.lend_along(AT, 4, ALICE, second, write=True)
    assert [slot is None for slot in slots] == [False, True, True, False]
    assert [] == first.heard
    assert mine == first.borrow(Spa(AT + PAGE))


@pytest.mark.parametrize(("pages", "along"), [(16, 1), (31, 1), (32, 8), (63, 8), (64, 16), (1024, 16)])
def test_a_full_cache_brings_along_what_it_holds_four_times(pages: int, along: int) -> None:
    world = World(size=16 << 20, capacity=pages * PAGE)
    engine, at = Engine(world), Spa(8 << 20)
    for number in range(pages):
        engine.borrow(Spa(number * PAGE))
    assert along == cluster(pages * PAGE)
    assert [None] * 2 * along == world.cache.lend_along(at, 2 * along, ALICE, engine, write=False)
    lent = world.cache.lend_along(at, along, ALICE, engine, write=False)
    assert along == len(set(lent) - {None})
    assert len(world.cache.snapshot()) <= pages


def test_memory_that_is_not_there_is_not_lent_along() -> None:
    world = World(size=1 << 20)
    with pytest.raises(AddressError):
        world.cache.lend_along(Spa((1 << 20) - PAGE), 2, ALICE, Engine(world), write=False)


@pytest.mark.parametrize(
    ("order", "recalls"), [(range(40), 4), (range(39, -1, -1), 40), (range(0, 40, 2), 20)]
)
def test_where_page_after_page_changes_its_tag_those_that_follow_leave_together(
    order: range, recalls: int
) -> None:
    world = World(size=1 << 20, capacity=128 * PAGE, coherent=True)
    first, second = Engine(world), Engine(world)
    pages = [Spa(AT + number * PAGE) for number in range(40)]
    for page in pages:
        first.store(first.borrow(page), 64, page.to_bytes(8, "little"))
    for number in order:
        second.borrow(pages[number], UNENCRYPTED)
    assert recalls == len([word for word, _ in first.heard if word == "recall"])
    left = {copy.page for copy in world.cache.snapshot() if copy.key_id == ALICE}
    assert left == {page for number, page in enumerate(pages) if number not in order}
    world.cache.wbinvd()
    assert pages == [int.from_bytes(world.cache.read(Spa(page + 64), 8, ALICE), "little") for page in pages]


def test_nothing_of_the_plaintext_stays_behind_on_the_way_in() -> None:
    world = World()
    world.cache.write(AT, b"passing through", ALICE)
    world.cache.wbinvd()
    world.cache.lend_along(AT, 2, ALICE, Engine(world), write=False)
    assert not any(world.cache._pool._passage)
