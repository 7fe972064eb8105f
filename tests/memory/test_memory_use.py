"""Memory is DRAM that was touched, plus the cache, plus a fixed part: nobody keeps a copy of DRAM."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from pathlib import Path

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.memory.dram import anonymous
from cbit.spec.address import GIB, KIB, MIB, PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED, guest
from memory.worlds import ALICE, World

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm, which only Linux has")

TOUCHED = 96 * MIB
CAPACITY = 8 * MIB
FIXED = 24 * MIB


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def use(world: World) -> None:
    """Do everything that might be tempted to keep a copy, over all of the touched range."""
    block = bytes(range(256)) * (MIB // 256)
    for at in range(0, TOUCHED, MIB):
        world.cache.write(Spa(at), block, ALICE)
    for at in range(0, TOUCHED, PAGE):
        world.cache.write(Spa(at), b"dirty", guest(1 + at // PAGE % 2))
    for at in range(0, TOUCHED, MIB):
        assert world.cache.read(Spa(at), MIB, UNENCRYPTED) != block
    world.fabric.encrypt_in_place(Spa(0), TOUCHED, key_id=ALICE, show=len)
    world.cache.wbinvd()


@linux
def test_the_process_grows_by_dram_touched_and_cache_and_a_fixed_part() -> None:
    before = resident()
    world = World(size=GIB, capacity=CAPACITY)
    use(world)
    grown = resident() - before
    assert 0.9 * TOUCHED < grown < TOUCHED + CAPACITY + FIXED


@linux
def test_the_bound_would_catch_a_copy() -> None:
    assert CAPACITY + FIXED < TOUCHED  # a copy is TOUCHED more
    before = resident()
    copy = bytearray(b"x") * TOUCHED
    assert resident() - before > CAPACITY + FIXED
    del copy


@linux
def test_dram_that_nobody_touched_costs_nothing_even_when_it_is_dumped(tmp_path: Path) -> None:
    before = resident()
    world = World(size=GIB)
    world.cache.write(Spa(GIB - PAGE), b"one page", ALICE)
    world.cache.wbinvd()
    world.probe.dump(tmp_path / "dram")
    frozen = world.probe.freeze(SeededEntropy(1))
    assert list(world.probe.find(b"one page")) == []
    assert resident() - before < FIXED
    assert frozen.size == (tmp_path / "dram").stat().st_size == GIB
    assert (tmp_path / "dram").stat().st_blocks * 512 < 4 * MIB


@linux
@pytest.mark.skipif(
    not hasattr(mmap, "MADV_DONTDUMP"), reason="the platform cannot leave memory out of a dump"
)
def test_plaintext_is_left_out_of_core_dumps_and_dram_is_not() -> None:
    def flags_of(area: mmap.mmap) -> list[str]:
        area[0] = 0x5A  # touched, so that it has a line of its own
        start = memory_address(area)
        found = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first, *rest = line.split()
            if "-" in first and not first.endswith(":"):
                low, high = (int(end, 16) for end in first.split("-"))
                found = low <= start < high
            elif found and first == "VmFlags:":
                return rest
        pytest.skip("this kernel does not tell the flags of a mapping (no VmFlags in /proc/self/smaps)")

    assert "dd" in flags_of(anonymous(64 * KIB, dumpable=False))
    assert "dd" not in flags_of(anonymous(64 * KIB))


def memory_address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
