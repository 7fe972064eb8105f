"""What hands on the modules find."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.memory.errors import AddressError
from cbit.memory.probe import Probe
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from memory.worlds import ALICE, World

PLANTED = b"the disk key of the tenant: 0123456789abcdef"


def test_the_planted_secret_is_found_in_plain_dram_only(world: World) -> None:
    for at, key_id in ((PAGE, HOST), (2 * PAGE, ALICE), (3 * PAGE + 5, UNENCRYPTED)):
        world.cache.write(Spa(at), PLANTED, key_id)
    assert list(world.probe.find(PLANTED)) == []  # all of it still inside the SoC
    assert world.cache.wbinvd() == 3
    assert list(world.probe.find(PLANTED)) == [3 * PAGE + 5]  # the positive control
    assert list(world.probe.find(PLANTED[:16])) == [3 * PAGE + 5]


def test_find_sees_every_place_also_where_chunks_meet_and_where_hits_overlap(world: World) -> None:
    world = World(size=2 * MIB)
    for at in (0, MIB - 3, MIB + 7, 2 * MIB - 6):
        world.probe.write(Spa(at), b"needle")
    assert list(world.probe.find(b"needle")) == [0, MIB - 3, MIB + 7, 2 * MIB - 6]
    world.probe.write(Spa(100), b"aaa")
    assert list(world.probe.find(b"aa")) == [100, 101]
    with pytest.raises(ValueError, match="everywhere"):
        list(world.probe.find(b""))


def test_a_dump_is_the_cells_byte_for_byte_and_holes_read_as_zeros(world: World, tmp_path: Path) -> None:
    world = World(size=4 * MIB)
    world.cache.write(Spa(MIB + 1), PLANTED, UNENCRYPTED)
    world.cache.write(Spa(2 * MIB), PLANTED, ALICE)
    world.cache.wbinvd()
    world.probe.dump(tmp_path / "dram")
    image = (tmp_path / "dram").read_bytes()
    assert image == world.probe.read(Spa(0), 4 * MIB)
    assert image.count(PLANTED) == 1


def test_a_dump_of_nothing_has_the_size_of_dram_and_replaces_an_older_file(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "dram").write_bytes(b"x" * 3 * MIB)
    world.probe.dump(tmp_path / "dram")
    assert (tmp_path / "dram").read_bytes() == bytes(MIB)


def test_a_dump_that_cannot_be_written_says_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        world.probe.dump(tmp_path / "no such folder" / "dram")


def test_frozen_dram_is_the_moment_and_no_longer_the_machine(world: World) -> None:
    world.cache.write(Spa(0), PLANTED, UNENCRYPTED)
    world.cache.wbinvd()
    frozen = world.probe.freeze(SeededEntropy("winter"))
    world.probe.write(Spa(0), bytes(len(PLANTED)))
    elsewhere = Probe(frozen)
    assert elsewhere.read(Spa(0), len(PLANTED)) == PLANTED
    assert (frozen.size, frozen.decayed_bits) == (world.dram.size, 0)


def test_decay_on_the_way_flips_some_bits_of_the_copy_and_none_of_the_machine(world: World) -> None:
    world.probe.write(Spa(0), SeededEntropy("contents").draw(MIB))
    before = world.probe.read(Spa(0), MIB)
    frozen = world.probe.freeze(SeededEntropy("winter"), decay=0.01)
    after = Probe(frozen).read(Spa(0), MIB)
    differing = (int.from_bytes(before, "little") ^ int.from_bytes(after, "little")).bit_count()
    assert frozen.decayed_bits == differing
    assert 0.9 < differing / (MIB * 4 * 0.01) < 1.1  # half of random cells are at ground already
    assert world.probe.read(Spa(0), MIB) == before


def test_a_decayed_bit_of_ciphertext_costs_its_whole_block_and_no_other(world: World) -> None:
    world.controller.write(Spa(0), bytes(range(64)), ALICE)
    cells = bytearray(world.probe.read(Spa(16), 1))
    cells[0] ^= 1
    world.probe.write(Spa(16), cells)
    read = world.controller.read(Spa(0), 64, ALICE)
    assert (read[:16], read[32:]) == (bytes(range(16)), bytes(range(32, 64)))
    assert sum(a != b for a, b in zip(read[16:32], range(16, 32), strict=True)) > 8


@pytest.mark.parametrize("key_id", [HOST, ALICE], ids=["host", "guest"])
def test_old_ciphertext_put_back_is_accepted_for_there_is_no_freshness(world: World, key_id: KeyId) -> None:
    world.controller.write(Spa(0), b"balance: 100 EUR" * 4, key_id)
    old = world.probe.read(Spa(0), 64)
    world.controller.write(Spa(0), b"balance:   0 EUR" * 4, key_id)
    world.probe.write(Spa(0), old)
    assert world.controller.read(Spa(0), 16, key_id) == b"balance: 100 EUR"


def test_the_probe_ends_where_the_modules_end(world: World) -> None:
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.probe.read(Spa(MIB), 1)
    with pytest.raises(AddressError, match="not inside DRAM"):
        world.probe.write(Spa(MIB - 1), b"ab")
