"""What a map of memory shows of one page, as a letter, a colour and a class that can be counted.

    . never used    p private    s shared    upper case: a copy is in the cache    * newer than DRAM

Without a survey of the guest, a dump alone: pages by their entropy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cbit.cli.page_map import RANDOM, glyph
from cbit.cli.picture import Colour

LEGEND: Final = (
    ". never used   p private   s shared   upper case: in the cache   * private, + shared: newer than DRAM"
)
_LETTERS: Final = {
    **{"-": ".", "-c": ",", "-cd": ","},
    **{"p": "p", "pc": "P", "pcd": "*"},
    **{"s": "s", "sc": "S", "scd": "+"},
}
_NAMES: Final = {"-": "never used", "p": "private", "s": "shared"}
_DARK, _GREY = (24, 24, 24), (70, 70, 70)
_COLOURS: Final[dict[str, Colour]] = {"-": _DARK, "p": (30, 110, 220), "s": (230, 140, 30)}
_LIT: Final = 60  # what a page in the cache is brighter by
_DIRTY: Final = 120


@dataclass(frozen=True, slots=True)
class Page:
    """One page on the map.

    Attributes:
        number: which, in the address space that is drawn.
        state: as in a survey; None for a page of a dump that nobody surveyed.
        bits: entropy in bits per byte; None without a dump.
    """

    number: int
    state: str | None
    bits: float | None

    @property
    def letter(self) -> str:
        """How a terminal shows it."""
        if self.state is not None:
            return _LETTERS[self.state]
        return glyph(self.bits or 0.0)

    @property
    def colour(self) -> Colour:
        """How a picture shows it: kind by colour, cached pages brighter, zeros and noise by brightness."""
        if self.state is None:
            level = int(255 * (self.bits or 0.0) / 8)
            return (level, level, level)
        red, green, blue = _COLOURS[self.state[0]]
        if self.bits is not None and self.state[0] != "-":  # structure is pale, noise is full
            share = 0.35 + 0.65 * min(1.0, self.bits / RANDOM)
            red, green, blue = (int(part * share) for part in (red, green, blue))
        more = _DIRTY if self.state.endswith("d") else _LIT if "c" in self.state else 0
        return (min(255, red + more), min(255, green + more), min(255, blue + more))

    @property
    def kind(self) -> str:
        """Private, shared, never used; or what the entropy says."""
        if self.state is not None:
            return _NAMES[self.state[0]]
        return looks(self.bits or 0.0)


def looks(bits: float) -> str:
    """Say what contents of an entropy look like."""
    return "zeros" if bits == 0 else "noise" if bits >= RANDOM else "structure"


def table(pages: Sequence[Page]) -> list[dict[str, int | str | None]]:
    """Count by kind: pages, those in the cache, those newer than DRAM, and what the contents look like."""
    rows: list[dict[str, int | str | None]] = []
    for kind in dict.fromkeys(page.kind for page in pages):
        group = [page for page in pages if page.kind == kind]
        states = Counter(page.state or "" for page in group)
        row: dict[str, int | str | None] = {"kind": kind, "pages": len(group)}
        row["cached"] = sum(count for state, count in states.items() if "c" in state)
        row["dirty"] = sum(count for state, count in states.items() if state.endswith("d"))
        seen = Counter(looks(page.bits) for page in group if page.bits is not None)
        for look in ("zeros", "structure", "noise"):
            row[look] = seen[look] if any(page.bits is not None for page in group) else None
        rows.append(row)
    return rows


def drawing(pages: Sequence[Page], *, columns: int, most_rows: int) -> Iterator[str]:
    """Draw letters; where a letter stands for several pages, it is the most frequent one's."""
    each = 1
    while each * columns * most_rows < len(pages):
        each *= 2
    letters = []
    for at in range(0, len(pages), each):
        group = Counter(page.letter for page in pages[at : at + each])
        for quiet in ".·":  # one page that is used says more than many that are not
            if len(group) > 1:
                del group[quiet]
        letters.append(group.most_common(1)[0][0])
    for at in range(0, len(letters), columns):
        yield f"{pages[at * each].number << 12:#012x}  {''.join(letters[at : at + columns])}"
    if each > 1:
        yield f"{'':12}  one letter is {each} pages"


def pixels(pages: Sequence[Page], *, width: int) -> list[list[Colour]]:
    """Lay the pages out as rows of colours, the last one filled up."""
    colours = [page.colour for page in pages]
    colours += [_GREY] * (-len(colours) % width)
    return [colours[at : at + width] for at in range(0, len(colours), width)]
