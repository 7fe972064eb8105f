"""Entropy by the page, and the picture made of it."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cli.page_map import RANDOM, entropies, glyph, rows

PAGE = 4096


@pytest.mark.parametrize(
    ("page", "bits"),
    [(bytes(PAGE), 0.0), (b"\xff" * PAGE, 0.0), (bytes(range(256)) * 16, 8.0), (b"ab" * (PAGE // 2), 1.0)],
)
def test_known_pages(page: bytes, bits: float) -> None:
    assert entropies(page) == [bits]


def test_only_whole_pages_count() -> None:
    assert entropies(b"") == []
    assert entropies(bytes(PAGE - 1)) == []
    assert len(entropies(bytes(3 * PAGE + 5))) == 3


def test_random_pages_are_drawn_as_random() -> None:
    assert all(glyph(bits) == "█" for bits in entropies(os.urandom(64 * PAGE)))


@given(st.binary(min_size=1, max_size=300))
def test_entropy_is_shannons(seed: bytes) -> None:
    page = (seed * PAGE)[:PAGE]
    shares = [page.count(value) / PAGE for value in set(page)]
    assert entropies(page)[0] == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=0.006)


@pytest.mark.parametrize(
    ("bits", "drawn"), [(0.0, "·"), (0.01, "░"), (3.0, "▒"), (7.0, "▓"), (RANDOM, "█"), (8.0, "█")]
)
def test_a_glyph_a_page(bits: float, drawn: str) -> None:
    assert glyph(bits) == drawn


def test_rows_keep_their_order_and_width() -> None:
    assert rows([0.0, 8.0, 8.0], width=2) == ["·█", "█"]
    assert rows([]) == []
