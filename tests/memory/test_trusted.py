"""The trusted memory region: cores, engines and devices do not reach it; the secure processor and a probe do.

Paper: memory-encryption.md §10.2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cbit.memory.dma import DmaPort
from cbit.memory.errors import AddressError
from cbit.spec.address import KIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from memory.test_lending import Engine
from memory.worlds import ALICE, World

START, END = Spa(0x40000), Spa(0x60000)
WORD = b"a word!!"
C = 1 << 47
KEYS = (UNENCRYPTED, HOST, ALICE)

Access = Callable[[World, Spa, KeyId], object]
ACCESSES: dict[str, Access] = {
    "read": lambda w, at, key: w.cache.read(at, 8, key),
    "long read": lambda w, at, key: w.cache.read(Spa(at - 64 * KIB + 8), 64 * KIB, key),
    "read into": lambda w, at, key: w.cache.read_into(at, memoryview(bytearray(8)), key),
    "write": lambda w, at, key: w.cache.write(at, WORD, key),
    "long write": lambda w, at, key: w.cache.write(Spa(at - 64 * KIB + 8), bytes(64 * KIB), key),
    "lend": lambda w, at, key: Engine(w).borrow(Spa(at & -PAGE), key, write=False),
    "lend for writing": lambda w, at, key: Engine(w).borrow(Spa(at & -PAGE), key),
    "device reads": lambda w, at, key: _port(w).read(at | (C if key else 0), 8),
    "device writes": lambda w, at, key: _port(w).write(at | (C if key else 0), WORD),
}


def _port(world: World) -> DmaPort:
    return DmaPort(world.cache, c_bit=47)


@pytest.fixture(params=[False, True], ids=["incoherent", "coherent"])
def world(request: pytest.FixtureRequest) -> World:
    made = World(coherent=request.param)
    made.fabric.protect(START, END)
    made.fabric.write(START, WORD, HOST)
    return made


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("at", [START, END - 8])
@pytest.mark.parametrize("access", ACCESSES)
def test_nobody_else_reaches_it(world: World, access: str, at: int, key: KeyId) -> None:
    before = bytes(world.dram.cells(Spa(0), world.size))
    with pytest.raises(AddressError, match=r"trusted memory region 0x40000\.\.0x5ffff"):
        ACCESSES[access](world, Spa(at), key)
    world.cache.wbinvd()
    assert before == bytes(world.dram.cells(Spa(0), world.size))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("at", [START - 8, END + 64 * KIB])
@pytest.mark.parametrize("access", ACCESSES)
def test_its_neighbours_are_ordinary_memory(world: World, access: str, at: int, key: KeyId) -> None:
    ACCESSES[access](world, Spa(at), key)


@pytest.mark.parametrize("access", ACCESSES)
def test_a_region_that_was_given_up_is_ordinary_memory(world: World, access: str) -> None:
    world.fabric.protect(0, 0)
    ACCESSES[access](world, START, HOST)


def test_what_was_cached_of_it_is_written_back_and_hit_no_more() -> None:
    world = World()
    engine = Engine(world)
    engine.store(engine.borrow(START), 0, WORD)
    world.fabric.protect(START, END)
    assert WORD == world.fabric.read(START, 8, ALICE)
    with pytest.raises(AddressError):
        world.cache.read(START, 8, ALICE)


def test_neighbours_that_come_along_unasked_do_not(world: World) -> None:
    at = Spa(START - 2 * PAGE)
    assert [None] * 4 == list(world.cache.lend_along(at, 4, ALICE, Engine(world), write=False))
    assert None not in world.cache.lend_along(at, 2, ALICE, Engine(world), write=False)


def test_the_secure_processor_passes_and_a_probe_sees_ciphertext(world: World) -> None:
    assert WORD == world.fabric.read(START, 8, HOST)
    seen = world.probe.read(START, 64)
    assert WORD not in seen
    assert bytes(64) != seen


def test_a_region_outside_dram_is_refused_and_the_one_before_stays(world: World) -> None:
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.fabric.protect(world.size, world.size + PAGE)
    with pytest.raises(AddressError, match="trusted memory region"):
        world.cache.read(START, 8, HOST)
