"""Pictures as inline SVG: curves, and fields of shaded cells.

Input is what `cbit.attacks.lab.log.picture_as_json` makes; colours come from the page's style sheet.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 200, 56, 34
_CELL: Final = 7
_MOST_CELLS: Final = 4096


def draw(picture: dict[str, Any]) -> str:
    """Draw a picture.

    Raises:
        ValueError: a kind that there is not.
    """
    if picture["kind"] == "curve":
        return _curve(picture["x"], picture["y"], [(float(x), float(y)) for x, y in picture["points"]])
    if picture["kind"] == "field":
        return field(bytes.fromhex(picture["cells"]), picture["width"])
    raise ValueError(f"a picture of kind {picture['kind']!r}")


def _curve(x_name: str, y_name: str, points: list[tuple[float, float]]) -> str:
    if not points:
        return ""
    x_top, y_top = max(x for x, _ in points) or 1, max(y for _, y in points) or 1
    inner_width, inner_height = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - 12

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + inner_width * x / x_top, 12 + inner_height * (1 - y / y_top)

    placed = [place(x, y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{px:g}: {py:g}</title></circle>'
        for (x, y), (px, py) in zip(placed, points, strict=True)
    )
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - 12
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(y_name)} over {escape(x_name)}">'
        f'<path class="axis" d="M{_LEFT} 12V{floor}H{right}"/>'
        f'<polyline points="{line}"/>{dots}'
        f'<text x="{_LEFT - 6}" y="18" text-anchor="end">{y_top:g}</text>'
        f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{floor + 14}" text-anchor="end">{x_top:g}</text>'
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text x="{_LEFT + 8}" y="24">{escape(y_name)}</text></svg>'
    )


def field(cells: bytes, width: int) -> str:
    """Draw bytes as shaded cells, row by row."""
    cells = cells[:_MOST_CELLS]
    rows = -(-len(cells) // width)
    drawn = []
    for index, value in enumerate(cells):
        x, y = index % width * _CELL, index // width * _CELL
        shade = f"{value / 255:.2f}"
        drawn.append(f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" opacity="{shade}"/>')
    return (
        f'<svg class="field" viewBox="0 0 {width * _CELL} {rows * _CELL}" width="{width * _CELL}" role="img" '
        f'aria-label="{len(cells)} cells">{"".join(drawn)}</svg>'
    )
