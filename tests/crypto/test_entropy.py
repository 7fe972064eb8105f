from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import Entropy, SeededEntropy, SystemEntropy

lengths = st.lists(st.integers(16, 200), min_size=1, max_size=5)


def drawn(entropy: Entropy, sizes: list[int]) -> list[bytes]:
    return [entropy.draw(size) for size in sizes]


@given(st.integers() | st.text(), lengths)
def test_a_seed_repeats(seed: int | str, sizes: list[int]) -> None:
    assert drawn(SeededEntropy(seed), sizes) == drawn(SeededEntropy(seed), sizes)


@given(st.integers(), st.integers(), lengths)
def test_different_seeds_differ(one: int, other: int, sizes: list[int]) -> None:
    if one != other:
        assert not set(drawn(SeededEntropy(one), sizes)) & set(drawn(SeededEntropy(other), sizes))


@given(st.integers(), lengths)
def test_no_two_draws_of_one_seed_begin_alike(seed: int, sizes: list[int]) -> None:
    starts = [piece[:16] for piece in drawn(SeededEntropy(seed), [*sizes, *sizes])]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("entropy", [SystemEntropy(), SeededEntropy(1)])
@pytest.mark.parametrize("length", [0, 1, 16, 48, 4096])
def test_as_many_bytes_as_asked_for(entropy: Entropy, length: int) -> None:
    assert len(entropy.draw(length)) == length


def test_the_system_is_asked_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([b"first", b"other"])
    monkeypatch.setattr(os, "urandom", lambda length: next(answers)[:length])
    entropy = SystemEntropy()
    assert [entropy.draw(5), entropy.draw(5)] == [b"first", b"other"]
