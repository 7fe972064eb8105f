"""The story on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cbit.attacks.forensics import Find
from cbit.attacks.survey import Cell
from cbit.cli.demo.act import Act, Attempt, Bytes, Fact, Item, Picture
from cbit.cli.page_map import RANDOM, rows
from cbit.hypervisor.host import Protection

_HEADLINES: Final = {Protection.NONE: "no encryption", Protection.SME: "SME", Protection.SEV: "SEV"}
_WIDE: Final = 110  #: columns from which a line of bytes, or a column of powers, has room
_NARROW: Final = 60  #: columns below which a table would leave out more than it shows
_INDENT: Final = 2


def show_act(console: Console, act: Act) -> None:
    """Print one act."""
    console.print()
    if console.width < _NARROW:  # a rule has one line
        console.print(Text(f"{act.number}. {act.title}", style="bold"))
    else:
        console.rule(f"[bold]{act.number}. {act.title}", align="left", style="cyan")
    for item in act.items:
        _show(console, item)
    console.print(Padding(Text(act.who_sees, style="italic"), (0, _INDENT)))


def _show(console: Console, item: Item) -> None:
    match item:
        case Fact(name, value):
            _line(console, name, Text(value))
        case Attempt(who, succeeded, answer):
            mark = Text("✓ ", style="green") if succeeded else Text("✗ ", style="red")
            _line(console, who, mark + Text(answer))
        case Bytes(name, data):
            _line(console, name, _hex(item, data, wide=console.width >= _WIDE))
        case Picture():
            _picture(console, item)


def _line(console: Console, name: str, value: Text) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=min(44, console.width * 2 // 5), style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(Text(name), value)
    console.print(Padding(grid, (0, _INDENT)))


def _hex(item: Bytes, data: bytes, *, wide: bool) -> Text:
    head = data[:16]
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head)
    line = (
        Text(head.hex(" ", -4)) + Text("  " if wide else "\n") + Text(text.replace(" ", "\N{NO-BREAK SPACE}"))
    )
    if item.entropy is not None:
        random = item.entropy >= RANDOM
        line += Text(f"  {item.entropy:.2f} bits/byte", style="magenta" if random else "yellow")
    return line


def _picture(console: Console, picture: Picture) -> None:
    legend = f"{picture.name}: · empty  ░▒▓ structured  █ random"
    console.print(Padding(Text(legend, style="dim"), (0, _INDENT)))
    for title, values, style in (("before", picture.before, "yellow"), ("after", picture.after, "magenta")):
        for index, row in enumerate(rows(values, width=min(64, max(8, console.width - 12)))):
            console.print(Text(f"    {title if index == 0 else '':<8}") + Text(row, style=style))


def show_survey(console: Console, cells: Iterable[Cell]) -> None:
    """Print the table of what each adversary got."""
    cells = list(cells)
    by_place = {(cell.adversary, cell.protection): cell for cell in cells}
    title = "Is the secret in the bytes that each adversary got?"
    if console.width < _NARROW:
        _lines(
            console,
            title,
            {
                name: {_HEADLINES[p]: _cell(by_place[name, p]) for p in Protection}
                for name in dict.fromkeys(cell.adversary for cell in cells)
            },
        )
        return
    table = Table(title=title, title_justify="left")
    table.add_column("adversary")
    for protection in Protection:
        table.add_column(_HEADLINES[protection], justify="center")
    if console.width >= _WIDE:
        table.add_column("what it can do", style="dim")
    for name in dict.fromkeys(cell.adversary for cell in cells):
        row = [by_place[name, protection] for protection in Protection]
        powers = [Text(", ".join(row[0].powers))] if console.width >= _WIDE else []
        table.add_row(name, *map(_cell, row), *powers)
    console.print()
    console.print(table)


def show_finds(console: Console, finds: Iterable[Find]) -> None:
    """Print what each tool found in each dump."""
    finds = list(finds)
    by_place = {(find.tool, find.what, find.dump): find for find in finds}
    dumps = list(dict.fromkeys(find.dump for find in finds))
    title, searches = "Is it in the dump of DRAM?", dict.fromkeys((find.tool, find.what) for find in finds)
    if console.width < _NARROW:
        _lines(
            console,
            title,
            {
                f"{tool}, {what}": {dump: _find(by_place[tool, what, dump]) for dump in dumps}
                for tool, what in searches
            },
        )
        return
    table = Table(title=title, title_justify="left")
    table.add_column("tool")
    table.add_column("looks for")
    for dump in dumps:
        table.add_column(dump, justify="center")
    for tool, what in searches:
        table.add_row(tool, what, *(_find(by_place[tool, what, dump]) for dump in dumps))
    console.print()
    console.print(table)


def _lines(console: Console, title: str, rows: Mapping[str, Mapping[str, Text]]) -> None:
    """Print a table that has no room: a paragraph for each row, which may fold."""
    console.print()
    console.print(Text(title, style="italic"), overflow="fold")
    for name, cells in rows.items():
        line = Text(f"{name}:", overflow="fold")
        for column, value in cells.items():
            line.append(f" {column} ").append_text(value).append(";")
        line.right_crop(1)
        console.print(Padding(line, (0, _INDENT)))


def _find(find: Find) -> Text:
    if find.found is None:
        return Text(find.words, style="dim")
    return Text(f"FOUND: {find.words}", style="bold red") if find.found else Text("no", style="green")


def _cell(cell: Cell) -> Text:
    return Text("SECRET READ", style="bold red") if cell.got_secret else Text("no", style="green")
