"""The wire carries whole lines, and a tap on it sees what the modules store."""

from __future__ import annotations

import pytest

from cbit.memory.bus import BusOp
from cbit.memory.errors import AddressError
from cbit.spec.address import LINE, MIB, PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED
from memory.worlds import ALICE, World

SECRET = b"nobody may see it on a wire....." * 4


def test_what_passes_is_what_is_stored(world: World) -> None:
    world.bus.write(Spa(LINE), b"x" * LINE)
    assert world.bus.read(Spa(LINE), LINE) == world.probe.read(Spa(LINE), LINE) == b"x" * LINE


@pytest.mark.parametrize(("spa", "length"), [(1, LINE), (LINE, 1), (16, 16), (LINE, LINE + 16)])
def test_the_bus_knows_whole_lines_only(world: World, spa: int, length: int) -> None:
    with pytest.raises(AddressError, match="not whole lines of 64 bytes"):
        world.bus.read(Spa(spa), length)
    with pytest.raises(AddressError, match="not whole lines of 64 bytes"):
        world.bus.write(Spa(spa), bytes(length))


@pytest.mark.parametrize("part", [(1, LINE), (0, 1), (16, LINE + 16), (LINE, 2 * LINE - 1)])
def test_parts_are_whole_lines_too_and_otherwise_none_is_written(world: World, part: tuple[int, int]) -> None:
    with pytest.raises(AddressError, match="not whole lines"):
        world.bus.write_parts(Spa(PAGE), memoryview(b"x" * PAGE), [(0, LINE), part])
    assert bytes(PAGE) == world.bus.read(Spa(PAGE), PAGE)


def test_the_end_of_dram_is_the_end_of_the_bus(world: World) -> None:
    world.bus.write(Spa(MIB - LINE), bytes(LINE))
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.bus.write(Spa(MIB), bytes(LINE))


def test_the_window_onto_the_wire_is_read_only(world: World) -> None:
    with pytest.raises(TypeError):
        world.bus.lines(Spa(0), LINE)[0] = 1


def test_a_tap_sees_ciphertext_pass_and_nothing_while_the_cache_answers(world: World) -> None:
    seen: list[tuple[BusOp, Spa, bytes]] = []
    world.cache.write(Spa(PAGE), SECRET, ALICE)
    with world.bus.tap(lambda op, spa, data: seen.append((op, spa, data))):
        assert world.cache.read(Spa(PAGE), len(SECRET), ALICE) == SECRET
        assert seen == []  # a cache hit never leaves the chip
        world.cache.wbinvd()
        assert world.cache.read(Spa(PAGE), len(SECRET), ALICE) == SECRET
    # Two of the page's lines are dirty; then the whole page comes back in.
    assert [(op, spa, len(data)) for op, spa, data in seen] == [
        (BusOp.WRITE, PAGE, 2 * LINE),
        (BusOp.READ, PAGE, PAGE),
    ]
    assert seen[0][2] == seen[1][2][: 2 * LINE] == world.probe.read(Spa(PAGE), 2 * LINE)
    assert all(SECRET[:16] not in data for _, _, data in seen)
    world.cache.wbinvd()
    assert len(seen) == 2  # unclipped


def test_the_same_tap_does_see_what_is_not_encrypted(world: World) -> None:
    seen = bytearray()
    with world.bus.tap(lambda op, spa, data: seen.extend(data)):
        world.controller.write(Spa(0), SECRET, UNENCRYPTED)
    assert SECRET in seen
