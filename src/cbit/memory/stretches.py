"""Neighbours: pages of a range, stretches of pages, runs of dirty lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol, TypeVar

from cbit.spec.address import LINE, PAGE
from cbit.spec.key_id import KeyId

ALL_LINES: Final = (1 << PAGE // LINE) - 1


class Lies(Protocol):
    """Something that has a place in DRAM, and a tag."""

    page: int
    key_id: KeyId


Lying = TypeVar("Lying", bound=Lies)


def neighbours(copies: Iterable[Lying], *, most: int) -> Iterator[list[Lying]]:
    """Cut copies where the next is not the neighbour of the one before, in DRAM and by its tag."""
    stretch: list[Lying] = []
    for copy in copies:
        if stretch and not (
            len(stretch) < most and copy.page == stretch[-1].page + PAGE and copy.key_id == stretch[-1].key_id
        ):
            yield stretch
            stretch = []
        stretch.append(copy)
    if stretch:
        yield stretch


def split(spa: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range at page boundaries into (page, start in page, count)."""
    end = spa + length
    while spa < end:
        start = spa % PAGE
        count = min(PAGE - start, end - spa)
        yield spa - start, start, count
        spa += count


def stretches(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending pages into stretches of neighbours: (first, how many)."""
    start = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + PAGE:
            yield pages[start], index - start
            start = index


def runs(dirty: int) -> list[tuple[int, int]]:
    """Turn dirty-line bits into (start, stop) byte ranges of neighbouring dirty lines."""
    if dirty == ALL_LINES:
        return [(0, PAGE)]
    found, line = [], 0
    while dirty:
        clean = (dirty & -dirty).bit_length() - 1  # the number of the lowest 1
        dirty >>= clean
        count = (~dirty & (dirty + 1)).bit_length() - 1  # the number of the lowest 0
        dirty >>= count
        line += clean + count
        found.append(((line - count) * LINE, line * LINE))
    return found
