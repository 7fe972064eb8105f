"""The tweak function T(p) and its constants (memory-encryption.md §9.1)."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Tweak
from crypto.slow_modes import slow_t, xor

ADDRESSES = st.integers(0, (1 << 52) - 1)
FRESH = Tweak.random(SeededEntropy("one boot"))
TWEAKS = {"zen1": Tweak.zen1(), "random": FRESH}

# The table of §9.1, row by row as it is printed: bits 4-10, 11-17, 18-24 and 25-31 side by side.
PUBLISHED = """
    4  82 25 38 38    11  15 68 ee 53    18  a5 0d 37 44    25  00 db 04 07
    5  ec 09 07 9c    12  b0 92 30 c2    19  f4 31 d8 4c    26  7f 00 04 04
    6  40 00 00 18    13  96 70 ff 8e    20  02 04 31 81    27  70 fa 01 be
    7  81 02 a2 3a    14  36 1b 90 d5    21  b3 71 32 a1    28  bb 3d 28 90
    8  77 d9 10 77    15  04 00 c2 36    22  50 8a c0 6c    29  bd 2d d5 26
    9  b0 10 b2 c0    16  e8 18 29 85    23  16 8a 80 20    30  1c 5d 6c e2
    10 53 6d 54 4d    17  bd 31 f9 2a    24  7f 9b c0 07    31  4f 5c e7 27
"""


def published() -> dict[int, bytes]:
    words = PUBLISHED.split()
    rows = [words[at : at + 5] for at in range(0, len(words), 5)]
    return {int(bit): 4 * bytes.fromhex("".join(pattern)) for bit, *pattern in rows}


def rank(vectors: list[int]) -> int:
    """Rank over GF(2)."""
    basis: list[int] = []
    for vector in vectors:
        rest = vector
        for known in basis:
            rest = min(rest, rest ^ known)
        if rest:
            basis.append(rest)
    return len(basis)


@pytest.fixture(params=sorted(TWEAKS))
def tweak(request: pytest.FixtureRequest) -> Tweak:
    return TWEAKS[request.param]


def test_zen1_has_the_published_constants() -> None:
    assert published() == dict(Tweak.zen1().constants)
    assert list(range(4, 32)) == list(Tweak.zen1().constants)


def test_zen1_constants_repeat_with_period_four() -> None:
    assert all(constant == 4 * constant[:4] for constant in Tweak.zen1().constants.values())


def test_zen1_constants_are_independent_over_gf2() -> None:
    numbers = [int.from_bytes(constant, "big") for constant in Tweak.zen1().constants.values()]
    assert rank(numbers) == 28
    assert rank([*numbers, numbers[3] ^ numbers[17]]) == 28  # the ruler itself: a sum adds nothing


def test_a_fresh_tweak_has_sixteen_bytes_for_every_address_bit() -> None:
    assert list(range(4, 52)) == list(FRESH.constants)
    assert {16} == {len(constant) for constant in FRESH.constants.values()}
    assert len(set(FRESH.constants.values())) == 48
    assert not any(constant == 4 * constant[:4] for constant in FRESH.constants.values())


def test_each_boot_draws_other_constants_and_a_seed_repeats_them() -> None:
    assert Tweak.random(SeededEntropy("one boot")) == FRESH
    assert hash(Tweak.random(SeededEntropy("one boot"))) == hash(FRESH)
    assert Tweak.random(SeededEntropy("the next")) != FRESH
    assert Tweak.zen1() != FRESH


@given(st.data())
def test_t_is_the_xor_of_the_constants_of_the_set_bits(data: st.DataObject) -> None:
    tweak = TWEAKS[data.draw(st.sampled_from(sorted(TWEAKS)))]
    spa = data.draw(ADDRESSES)
    assert slow_t(tweak.constants, spa) == tweak.at(spa)


@given(ADDRESSES, ADDRESSES)
def test_t_is_linear(p: int, q: int) -> None:
    assert FRESH.at(p ^ q) == xor(FRESH.at(p), FRESH.at(q))


def test_t_of_a_single_bit_is_its_constant(tweak: Tweak) -> None:
    for bit in range(4, 52):
        assert tweak.constants.get(bit, bytes(16)) == tweak.at(1 << bit)


def test_all_bytes_of_a_block_have_the_tweak_of_the_block(tweak: Tweak) -> None:
    assert {tweak.at(0x12340)} == {tweak.at(0x12340 + byte) for byte in range(16)}
    assert tweak.at(0x12340) != tweak.at(0x12350)


def test_the_block_table_is_t_of_the_first_piece(tweak: Tweak) -> None:
    assert b"".join(tweak.at(spa) for spa in range(0, 1 << 17, 16)) == tweak.block_table


def test_addresses_that_differ_only_above_bit_31_share_a_zen1_tweak() -> None:
    # The stated MODEL CHOICE: nobody published these constants.
    assert Tweak.zen1().at(0x1000) == Tweak.zen1().at(0x1000 | 1 << 32)
    assert FRESH.at(0x1000) != FRESH.at(0x1000 | 1 << 32)


def test_the_constants_of_a_machine_with_old_firmware_can_be_built() -> None:
    # §9.2: t_8 = t_9 = 0 on an early 1950X.
    old = Tweak({bit: constant for bit, constant in Tweak.zen1().constants.items() if bit not in {8, 9}})
    assert old.at(0x300) == bytes(16)


@pytest.mark.parametrize("spa", [-1, 1 << 52, 1 << 64])
def test_what_is_no_physical_address_has_no_tweak(spa: int) -> None:
    with pytest.raises(ValueError, match="no physical address"):
        FRESH.at(spa)


@pytest.mark.parametrize("bit", [-1, 0, 3, 52, 63])
def test_a_constant_for_a_bit_that_selects_no_block_is_refused(bit: int) -> None:
    with pytest.raises(ValueError, match=f"address bit {bit} has no tweak constant"):
        Tweak({bit: bytes(16)})


@pytest.mark.parametrize("size", [0, 4, 15, 17])
def test_a_constant_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"bit 4 has {size} bytes"):
        Tweak({4: bytes(size)})


def test_a_tweak_does_not_change() -> None:
    given_constants = {4: b"\x01" * 16}
    tweak = Tweak(given_constants)
    given_constants[4] = bytes(16)
    assert tweak.at(16) == b"\x01" * 16
    with pytest.raises(FrozenInstanceError):
        tweak.constants = {}  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        tweak.constants[4] = bytes(16)  # type: ignore[index]  # that is the point


def test_repr_does_not_print_the_constants() -> None:
    assert repr(FRESH) == "Tweak(48 constants)"
