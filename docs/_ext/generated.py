"""Pages that print the tables the code runs on.

A page says where a table goes with a comment on a line of its own, ``<!-- generated: wire-structures -->``.
Before Sphinx reads the page, the line is replaced by Markdown made from the declarations themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attack_pages
import command_tables
import kvm_tables
import paper_index
import wire_tables

#: What may stand after "generated:", and what makes it.
TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "attacks": attack_pages.attacks,
    "wire-structures": wire_tables.wire_structures,
    "commands": command_tables.commands,
    "statuses": command_tables.statuses,
    "kvm-requests": kvm_tables.requests,
    "kvm-capabilities": kvm_tables.capabilities,
    "paper-index": paper_index.page,
}

_MARK: Final = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def fill(source: str) -> str:
    """Replace every mark in a page by its table.

    Raises:
        KeyError: a mark names no table.
    """
    return _MARK.sub(lambda mark: TABLES[mark[1]](), source)


def _on_source_read(_app: object, _docname: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _on_source_read)
    # The tables follow the code, not the pages: every build reads the pages anew.
    app.connect("env-get-outdated", lambda *_: sorted(_app_pages(app)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _app_pages(app: Any) -> set[str]:
    return {name for name in app.env.found_docs if name.startswith("reference/")}
