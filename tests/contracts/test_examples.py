"""Every example in the documents does what its page says.  The rules of a page: tests/docblocks.py."""

from __future__ import annotations

import contextlib
import importlib.util
import re
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


def from_an_index(text: str) -> list[str]:
    """Return the lines that install cbit by its name alone, which on an index may be anybody's."""
    installs = re.compile(
        r"""\b(?:pipx?|uv)\b.*?\b(?:install|add)\b.*?[\s'"`]cbit(?:\[[^]]*\])?(?=['"`\s]|[=<>~!]|$)"""
    )
    return [line for line in text.splitlines() if installs.search(line) and " @ " not in line]


@pytest.mark.parametrize("page", documents())
def test_no_page_installs_cbit_from_an_index(page: str) -> None:
    assert [] == from_an_index((ROOT / page).read_text(encoding="utf-8"))


def test_what_installs_from_an_index_is_found() -> None:
    bad = [
        "pip install cbit",
        "- run: pip install 'cbit[machine]'",
        "pipx install cbit==1.0",
        "(`pip install cbit` brings)",
    ]
    good = [
        "pip install ./cbit",
        "pip install './cbit[machine]'",
        "pip install 'cbit @ git+https://x/cbit@COMMIT'",
    ]
    assert bad == from_an_index(
        "\n".join([*bad, *good, "cbit owner", "pip install --no-deps -r cbit/requirements/machine.txt"])
    )


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
