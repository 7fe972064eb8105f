"""Checksums of save areas: the formula, its words' place, and how many there are.

The expected words were computed with the CRC32 instruction of an x86-64 processor (SSE4.2), lane by lane.
Paper: memory-encryption.md §10.2.
"""

from __future__ import annotations

import pytest

from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.vmsa_pool import VmsaPool, checksum, crc32c
from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.command import Command
from cbit.spec.key_id import HOST, guest
from cbit.spec.status import Status
from secure_processor.es_faults import es_start
from secure_processor.worlds import TMR, World, flipped

FIRST_WORD = TMR + MIB // 2  #: the lower half of the region is the index pool
COUNTING = bytes(range(256)) * 16
MIXED = bytes((i * i * 7 + (i >> 5) * 13 + 3) & 0xFF for i in range(PAGE))


def sealed(page: bytes) -> bytes:
    return page[:0x380] + bytes(8) + FIRST_WORD.to_bytes(8, "little") + page[0x390:]


def test_the_crc_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@pytest.mark.parametrize(("page", "word"), [(COUNTING, 0xDB193E982C6E1C4B), (MIXED, 0x4DC90B2BAED75249)])
def test_the_word_of_a_page(page: bytes, word: int) -> None:
    assert checksum(sealed(page)) == word.to_bytes(8, "little")


@pytest.mark.parametrize("byte", [0, 8, 16, 24, 0xFB8, 0xFBF])
def test_every_lane_counts_to_its_end(byte: int) -> None:
    assert checksum(MIXED) != checksum(flipped(MIXED, 8 * byte))


def test_what_lies_behind_the_covered_part_does_not_count() -> None:
    assert checksum(MIXED) == checksum(flipped(MIXED, 8 * 0xFC0))


def test_the_first_save_area_has_the_first_word_of_the_upper_half(world: World) -> None:
    handle = es_start(world.init(es=True), asid=1)
    at = world.desk.put(COUNTING)
    world.desk.do(Command.LAUNCH_UPDATE_VMSA, buffers.LaunchUpdateVmsa(handle=handle, paddr=at))
    fabric = world.firmware.memory.fabric
    assert fabric.read(Spa(FIRST_WORD), 8, HOST) == (0xDB193E982C6E1C4B).to_bytes(8, "little")
    assert fabric.read(Spa(at), PAGE, guest(1)) == sealed(COUNTING)


def test_there_are_as_many_words_as_the_upper_half_holds(world: World) -> None:
    pool = VmsaPool(world.firmware.memory.fabric, (TMR, TMR + MIB))
    words = [pool.take() for _ in range(65536)]
    assert (FIRST_WORD, TMR + MIB - 8) == (words[0], words[-1])
    with pytest.raises(Refused) as refused:
        pool.take()
    assert Status.RESOURCE_LIMIT == refused.value.status
    pool.give_back(words[7:8])
    assert words[7] == pool.take()
