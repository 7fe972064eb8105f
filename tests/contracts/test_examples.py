"""Every example in the documents does what its page says.  The rules of a page: tests/docblocks.py."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import cbit
from docblocks import BadExample, Block, Reader, blocks, why_page_skipped

ROOT = Path(__file__).parents[2]
FROM_NOTHING = ("README.md", "docs/tutorial/")  #: who reads these has typed nothing yet
HOW_TO = "docs/how-to/index.md"  #: who reads others has done what this page says


def documents() -> list[str]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(page.relative_to(ROOT)) for page in pages if "_build" not in page.parts)


def blocks_of(page: str) -> list[Block]:
    return blocks(page, (ROOT / page).read_text(encoding="utf-8"))


def has_examples(page: str) -> bool:
    try:
        return bool(blocks_of(page))
    except BadExample:
        return True  # its test says what is wrong


def uses_cbit(examples: list[Block]) -> bool:
    consoles = [block for block in examples if block.language == "console"]
    return any(command.program == "cbit" for block in consoles for command in block.commands())


def left_out() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        with contextlib.suppress(BadExample):  # as above
            for block in blocks_of(page):
                yield from ((block.place, why) for why in block.skips())


PAGES = [page for page in documents() if has_examples(page)]


@pytest.mark.parametrize("page", PAGES)
def test_a_reader_who_follows_the_page_gets_what_it_says(page: str, tmp_path: Path) -> None:
    if why := why_page_skipped((ROOT / page).read_text(encoding="utf-8")):
        pytest.skip(f"{page}: {why}")
    examples = blocks_of(page)
    if uses_cbit(examples) and ((cli := importlib.util.find_spec("cbit.cli")) is None or cli.origin is None):
        pytest.skip("the command line (cbit.cli) is not there yet")
    reader = Reader(tmp_path, package_parent=Path(cbit.__file__).parents[1])
    before = [] if page.startswith(FROM_NOTHING) else blocks_of(HOW_TO)
    for block in [*before, *examples]:
        reader.follow(block)


@pytest.mark.parametrize(("place", "why"), list(left_out()))
def test_what_is_not_run_is_listed(place: str, why: str) -> None:
    pytest.skip(f"{place}: {why}")
