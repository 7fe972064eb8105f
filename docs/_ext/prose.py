"""Markdown from Python: a table, a cell, the parts of a docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table; cells are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(words: str) -> str:
    """Turn plain words or a docstring's markup into a cell."""
    return " ".join(words.replace("``", "`").replace("|", "\\|").split())


def paragraphs(documented: object) -> tuple[list[str], str]:
    """Split a docstring into its prose paragraphs and the line that says what it follows.

    That is a section of the dossier (``Paper:``), or another public document (``Source:``).
    """
    prose, paper = [], ""
    for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
        if paragraph.startswith("Paper:"):
            paper = "Dossier: " + text(paragraph.removeprefix("Paper:")).rstrip(".")
        elif paragraph.startswith("Source:"):
            paper = text(paragraph).rstrip(".")
        elif not paragraph.startswith(("Raises:", "Args:", "Returns:", "Attributes:")):
            prose.append(text(paragraph))
    return prose, paper
