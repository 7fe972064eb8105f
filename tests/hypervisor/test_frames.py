"""Frames: taken once, given back once, counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.frames import Frames, OutOfMemory
from cbit.machine.address_map import LEGACY_WINDOW
from cbit.spec.address import KIB, MIB, PAGE


def test_page_zero_and_the_legacy_window_are_nobodys() -> None:
    frames = Frames(2 * MIB)
    taken = []
    while frames.free_bytes:
        taken.append(frames.take_page())
    assert 0 not in taken
    assert not any(page in LEGACY_WINDOW for page in taken)
    assert len(taken) == (0xA0000 - PAGE + MIB) // PAGE


@pytest.mark.parametrize("length", [0, -1])
def test_nothing_is_not_a_request(length: int) -> None:
    with pytest.raises(ValueError, match="one byte at least"):
        Frames(MIB).take(length)


def test_more_than_there_is_names_both_numbers() -> None:
    frames = Frames(MIB)
    free = frames.free_bytes
    with pytest.raises(OutOfMemory, match=f"0x100000 contiguous bytes wanted, {free:#x} bytes are free"):
        frames.take(MIB)
    assert free == frames.free_bytes


def test_what_was_not_taken_cannot_come_back() -> None:
    frames = Frames(2 * MIB)
    run = frames.take(4 * PAGE)
    frames.give_back(run)
    with pytest.raises(ValueError, match="was not taken"):
        frames.give_back(run)
    with pytest.raises(ValueError, match="was not taken"):
        frames.give_back(run[1:3])


def test_alignment_is_kept_and_the_gap_stays_free() -> None:
    frames = Frames(4 * MIB)
    before = frames.free_bytes
    run = frames.take(PAGE, align=MIB)
    assert run.start % MIB == 0
    frames.give_back(run)
    assert before == frames.free_bytes


@given(sizes=st.lists(st.integers(1, 64 * KIB), max_size=20), order=st.randoms(use_true_random=False))
def test_whatever_the_order_everything_comes_back(sizes: list[int], order: object) -> None:
    frames = Frames(4 * MIB)
    before = frames.free_bytes
    runs = [frames.take(size) for size in sizes]
    pages = [page for run in runs for page in run]
    assert len(pages) == len(set(pages))
    order.shuffle(runs)  # type: ignore[attr-defined]  # Hypothesis's Random
    for run in runs:
        frames.give_back(run)
    assert before == frames.free_bytes
    frames.take(3 * MIB - 64 * KIB)  # in one piece again
