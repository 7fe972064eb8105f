"""Neighbours: pages of a range, stretches of pages, runs of dirty lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cbit.spec.address import LINE, PAGE

ALL_LINES: Final = (1 << PAGE // LINE) - 1


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
    while dirty >> line:
        line += _lowest(dirty >> line)
        count = _lowest(~(dirty >> line))
        found.append((line * LINE, (line + count) * LINE))
        line += count
    return found


def _lowest(bits: int) -> int:
    """Number of the lowest bit that is 1."""
    return (bits & -bits).bit_length() - 1
