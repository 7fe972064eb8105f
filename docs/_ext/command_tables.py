"""The command table of the secure processor, and who answers which status."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path

from prose import paragraphs, table

import cbit
from cbit.secure_processor.dispatch import COMMANDS, Row
from cbit.spec.command import Command
from cbit.spec.states import GuestState, PlatformState
from cbit.spec.status import Status

_ROOM = Path(cbit.__file__).parent / "secure_processor"


def commands() -> str:
    """Every command of the paper: what is in the dispatch table, and what is not."""
    header = [
        "number",
        "command",
        "buffer",
        "read and written",
        "platform in",
        "guest in",
        "guest then",
        "what it does",
    ]
    rows = [_row(command, COMMANDS[command]) for command in Command if command in COMMANDS]
    missing = [command for command in Command if command not in COMMANDS]
    blocks = [table(header, rows)]
    if missing:
        numbers = [[f"{command:#04x}", command.name] for command in missing]
        blocks += [
            "## Not implemented",
            "In the paper and not in the table: the secure processor answers INVALID_COMMAND.",
            table(["number", "command"], numbers),
        ]
    return "\n\n".join(blocks)


def _row(command: Command, row: Row) -> list[str]:
    layout = (
        f"[{row.layout.__name__}](wire-structures.md#{row.layout.__name__.lower()})" if row.layout else "none"
    )
    prose, _ = paragraphs(row.handler)
    then = row.then.name if row.then is not None else ""
    platform, guest = _states(row.platform, PlatformState), _states(row.guest, GuestState)
    does = prose[0].removeprefix(f"{command.name}: ") if prose else ""
    return [f"{command:#04x}", command.name, layout, row.buffer.value, platform, guest, then, does]


def _states(allowed: Iterable[Enum] | None, kind: type[Enum]) -> str:
    if allowed is None:
        return ""
    names = [state.name for state in kind if state in frozenset(allowed)]
    return "any" if len(names) == len(kind) else ", ".join(names)


def statuses() -> str:
    """Every status, and the functions and tables of the secure processor that answer it."""
    answered = answered_by()
    rows = [
        [f"{status:#06x}", status.name, ", ".join(f"`{name}`" for name in answered.get(status.name, ()))]
        for status in Status
    ]
    return table(["number", "status", "answered by"], rows)


def answered_by() -> Mapping[str, list[str]]:
    """Status name to the functions and tables whose code names it, in the order of files."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(_ROOM.rglob("*.py")):
        module = ".".join(path.relative_to(_ROOM).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [(node.name, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        tables = [(ast.unparse(node.target), node) for node in tree.body if isinstance(node, ast.AnnAssign)]
        for place, node in (*functions, *tables):
            for name in dict.fromkeys(_named_statuses(node)):
                found[name].append(f"{module}.{place}")
    return found


def _named_statuses(place: ast.AST) -> Iterable[str]:
    for node in ast.walk(place):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Status":
            yield node.attr
