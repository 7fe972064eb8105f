"""Cells, and what time without power does to them."""

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.memory.dram import GROUND_STRIPE, Dram
from cbit.memory.errors import AddressError
from cbit.spec.address import MIB, PAGE, Spa


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE - 1, PAGE + 64])
def test_dram_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        Dram(size)


def test_cells_are_the_memory_itself_and_start_at_zero() -> None:
    dram = Dram(2 * PAGE)
    assert bytes(dram.cells(Spa(0), dram.size)) == bytes(2 * PAGE)
    dram.cells(Spa(PAGE), 4)[:] = b"abcd"
    assert bytes(dram.cells(Spa(PAGE - 1), 6)) == b"\0abcd\0"


@pytest.mark.parametrize(
    ("spa", "length"),
    [(2 * PAGE, 1), (2 * PAGE - 1, 2), (-1, 1), (0, 2 * PAGE + 1), (0, -1), (1 << 47, 1), (1 << 70, 0)],
)
def test_nothing_outside_dram_is_reached_and_the_message_names_both(spa: int, length: int) -> None:
    with pytest.raises(AddressError, match=rf"{spa:#x}: .* inside DRAM of 0x2000 bytes") as refusal:
        Dram(2 * PAGE).cells(Spa(spa), length)
    assert refusal.value.address == spa


def test_no_decay_keeps_every_bit_and_draws_nothing() -> None:
    dram = Dram(PAGE)
    dram.cells(Spa(0), 3)[:] = b"abc"
    entropy = SeededEntropy(1)
    assert dram.lose_power(entropy, decay=0.0) == 0
    assert bytes(dram.cells(Spa(0), 3)) == b"abc"
    assert entropy.draw(8) == SeededEntropy(1).draw(8)


def test_complete_decay_leaves_the_ground_state_and_nothing_of_the_contents() -> None:
    contents = SeededEntropy("contents").draw(MIB)
    dram = Dram(MIB)
    dram.cells(Spa(0), MIB)[:] = contents
    dram.lose_power(SeededEntropy(1), decay=1.0)
    ground = (bytes(GROUND_STRIPE) + b"\xff" * GROUND_STRIPE) * (MIB // GROUND_STRIPE // 2)
    assert bytes(dram.cells(Spa(0), MIB)) == ground


@pytest.mark.parametrize("decay", [0.001, 0.25, 0.9])
def test_a_cell_decays_only_toward_its_ground_state_and_about_as_often_as_asked(decay: float) -> None:
    dram = Dram(MIB)
    dram.cells(Spa(0), MIB)[:] = b"\x0f" * MIB  # half the cells of each stripe are away from ground
    changed = dram.lose_power(SeededEntropy(7), decay=decay)
    assert changed == pytest.approx(MIB * 4 * decay, rel=0.05)
    low, high = dram.cells(Spa(0), GROUND_STRIPE), dram.cells(Spa(GROUND_STRIPE), GROUND_STRIPE)
    assert all(byte & 0xF0 == 0 for byte in low)
    assert all(byte & 0x0F == 0x0F for byte in high)


def test_the_same_seed_decays_the_same_cells_and_another_seed_others() -> None:
    images = []
    for seed in (3, 3, 4):
        dram = Dram(16 * PAGE)
        dram.lose_power(SeededEntropy(seed), decay=0.01)
        images.append(bytes(dram.cells(Spa(0), dram.size)))
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_is_a_probability(decay: float) -> None:
    dram = Dram(PAGE)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        dram.lose_power(SeededEntropy(1), decay=decay)
    assert bytes(dram.cells(Spa(0), PAGE)) == bytes(PAGE)
