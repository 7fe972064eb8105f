"""What an experiment writes down: steps with bytes and pictures, and figures beside published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_SHOWN: Final = 64  # bytes of a step's data that are kept
NO_FIGURE: Final = "no figure in the stored text"
NO_COMPARISON: Final = "nothing to compare with"
AGREES: Final = "they agree"


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to draw.

    Attributes:
        x: what the horizontal axis counts.
        y: what the vertical axis counts.
        points: (x, y) in order of x.
    """

    x: str
    y: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of cells to draw, row by row; each cell's number chooses its shade, 0 to 255.

    Attributes:
        width: cells in a row.
        cells: one byte each.
    """

    width: int
    cells: bytes


Picture = Curve | Field


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an attempt.

    Attributes:
        text: what was done and seen.
        data: the first bytes of what was seen, if any.
        length: how many bytes there were.
        picture: what to draw, if anything.
    """

    text: str
    data: bytes = b""
    length: int = 0
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that does not depend on the speed of the machine, beside the published one.

    Attributes:
        name: what is counted.
        ours: what came out.
        unit: of both.
        published: the published figure as the dossier tells it; "derived: …" if it follows from what the
            dossier tells and stands nowhere; or that there is none.
        source: who published it.
        difference: why the two differ, or that they do not.

    Raises:
        ValueError: a published figure without a source, or without a word on how the two compare.
    """

    name: str
    ours: float
    unit: str = ""
    published: str = NO_FIGURE
    source: str = ""
    difference: str = NO_COMPARISON

    def __post_init__(self) -> None:
        """See that what stands beside a published figure is complete."""
        if self.published != NO_FIGURE and (not self.source or self.difference in ("", NO_COMPARISON)):
            raise ValueError(f"{self.name}: who published that, and how do the two compare?")


@dataclass(slots=True)
class Log:
    """The notebook of one attempt.  Mutable: it grows.

    Attributes:
        obstacle: what stood in its way, though it went on to its end.
    """

    steps: list[Step] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    obstacle: str = ""

    def step(self, text: str, data: bytes = b"", *, picture: Picture | None = None) -> None:
        """Write a step down, with the beginning of what was seen."""
        self.steps.append(Step(text, bytes(data[:_SHOWN]), len(data), picture))

    def figure(
        self,
        name: str,
        ours: float,
        unit: str = "",
        *,
        published: str = NO_FIGURE,
        source: str = "",
        difference: str = NO_COMPARISON,
    ) -> None:
        """Write a number down."""
        self.figures.append(Figure(name, ours, unit, published, source, difference))


def curve(x: str, y: str, points: Sequence[tuple[float, float]]) -> Curve:
    """Make a curve of points in any order."""
    return Curve(x, y, tuple(sorted(points)))


def picture_as_json(picture: Picture | None) -> dict[str, Any] | None:
    """Turn a picture into JSON values."""
    if picture is None:
        return None
    if isinstance(picture, Curve):
        return {"kind": "curve", "x": picture.x, "y": picture.y, "points": [list(p) for p in picture.points]}
    return {"kind": "field", "width": picture.width, "cells": picture.cells.hex()}
