"""Every wire structure as a table of its fields."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from prose import paragraphs, table, text

import cbit
from cbit.spec.wire import Field, MustBeZero, Wire

SOURCE: Final = Path(cbit.__file__).parent
_REMARK: Final = re.compile(r"^    (\w+): .*= at\(.*\)  # (.+)$", re.MULTILINE)


def all_wires() -> list[type[Wire]]:
    """Every structure that any room declares, by module and in the order of its lines."""
    for path in sorted(SOURCE.rglob("*.py")):
        if "(Wire, size=" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(("cbit", *path.relative_to(SOURCE).with_suffix("").parts)))
    return sorted(_descendants(Wire), key=lambda cls: (cls.__module__, inspect.getsourcelines(cls)[1]))


def _descendants(cls: type[Wire]) -> Iterator[type[Wire]]:
    for child in cls.__subclasses__():
        if child.__module__.startswith("cbit."):
            yield child
        yield from _descendants(child)


def wire_structures() -> str:
    """The whole page below its introduction."""
    blocks = []
    for module, classes in groupby(all_wires(), key=lambda cls: cls.__module__):
        prose, _ = paragraphs(sys.modules[module])
        blocks += [f"## {module.removeprefix('cbit.')}", prose[0], *(structure(cls) for cls in classes)]
    return "\n\n".join(blocks)


def structure(cls: type[Wire]) -> str:
    """One structure: what it is, its fields and gaps, where the dossier describes it."""
    prose, paper = paragraphs(cls)
    paper = paper or paragraphs(sys.modules[cls.__module__])[1]
    remarks = dict(_REMARK.findall(inspect.getsource(cls)))
    shown = {name: _default(value) for name, value in cls.DEFAULTS.items()}
    rows = [
        (f.offset, field_row(f, shown.get(f.name, ""), remarks.get(f.name, ""))) for f in cls.FIELDS.values()
    ]
    rows += [
        (start, [f"{start:#05x}", str(end - start), "*gap*", "", "", "zero", ""]) for start, end in cls.gaps()
    ]
    header = ["offset", "bytes", "field", "kind", "direction", "default", "remark"]
    body = table(header, [row for _, row in sorted(rows, key=lambda row: row[0])])
    return "\n\n".join([f"### {cls.__name__}", *prose, f"{cls.SIZE:#x} bytes. {paper}.", body])


def field_row(field: Field, default: str, remark: str) -> list[str]:
    """One line of the table."""
    kind = "number" if field.kind is int else f"`{field.kind.__name__}`"
    if field.kind is MustBeZero:
        kind, remark = "number", remark or "reserved, covered by a signature"
    name, direction = f"`{field.name}`", field.direction.value
    return [f"{field.offset:#05x}", str(field.size), name, kind, direction, default, text(remark)]


def _default(value: object) -> str:
    if isinstance(value, enum.Enum):
        return f"{value.name} ({value.value:#x})"
    if isinstance(value, bytes):
        return "zero" if not any(value) else f"`{value.hex()}`"
    return str(value)
