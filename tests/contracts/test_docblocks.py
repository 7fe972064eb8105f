"""The reader of examples notices when a page is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import cbit
from docblocks import BadExample, Block, Reader, blocks, matches, why_page_skipped


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path, package_parent=Path(cbit.__file__).parents[1])


def follow(reader: Reader, page: str) -> None:
    for block in blocks("page.md", page):
        reader.follow(block)


def console(text: str, marker: str = "") -> str:
    return f"{marker}\n\n```console\n{text}\n```\n"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("all of it", "all of it\n"),
        ("key …", "key 4f21"),
        ("from … to …", "from here to there"),
        ("first\n…\nlast", "first\nlast"),
        ("first\n…\nlast", "first\nsecond\nthird\nlast"),
        ("trailing blanks", "trailing blanks   \n\n"),
        ("not a pattern: a.b [c]*", "not a pattern: a.b [c]*"),
    ],
)
def test_output_that_agrees(expected: str, actual: str) -> None:
    assert matches(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("all of it", "all of it\nand more"),
        ("key …", "kay 4f21"),
        ("…to the end", "to the end\nand past it"),
        ("first\n…\nlast", "first\nsecond"),
        ("a.b", "axb"),
    ],
)
def test_output_that_does_not_agree(expected: str, actual: str) -> None:
    assert not matches(expected, actual)


def test_blocks_share_one_folder_and_one_namespace_in_the_order_of_the_page(reader: Reader) -> None:
    page = (
        "```python\nfrom pathlib import Path\nnumber = 6\n```\n"
        + console("$ printf 'seven' > word\n$ cat word\nseven")
        + "```{note}\n```\n\n```python\nassert Path('word').read_text() == 'seven'\nassert number == 6\n```\n"
    )
    assert ["python", "console", "python"] == [block.language for block in blocks("page.md", page)]
    follow(reader, page)


def test_a_block_inside_an_admonition_is_an_example_too() -> None:
    (block,) = blocks("page.md", "````{tip}\nSay:\n\n```console\n$ cbit --help\n```\n````\n")
    assert ("page.md:4", "console") == (block.place, block.language)


def test_a_continued_line_is_one_command(reader: Reader) -> None:
    follow(reader, console("$ printf '%s %s' \\\n    one \\\n    two\none two"))


def test_python_that_fails_points_at_the_line_of_the_page(reader: Reader) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        follow(reader, "A page.\n\n```python\nfine = 1\nfine / 0\n```\n")
    assert ("page.md", 5) == (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1)


def test_other_output_than_the_page_shows(reader: Reader) -> None:
    with pytest.raises(BadExample, match=r"(?s)page\.md:3: \$ echo right.*-wrong\n\+right"):
        follow(reader, console("$ echo right\nwrong"))


def test_another_exit_code_than_the_page_says(reader: Reader) -> None:
    follow(reader, console("$ echo fine\n$ grep -q x /dev/null", "<!-- exit: 1 -->"))
    with pytest.raises(BadExample, match="ends with 1, the page says 0"):
        follow(reader, console("$ grep -q x /dev/null"))
    with pytest.raises(BadExample, match="ends with 0, the page says 1"):
        follow(reader, console("$ echo fine", "<!-- exit: 1 -->"))
    with pytest.raises(BadExample, match="ends with 1, the page says 0"):  # only the last command may fail
        follow(reader, console("$ grep -q x /dev/null\n$ grep -q x /dev/null", "<!-- exit: 1 -->"))


def test_a_comment_belongs_to_the_next_block_only(reader: Reader) -> None:
    first, second = blocks("page.md", console("$ echo", "<!-- not run: because -->") + console("$ echo"))
    assert ("because", None) == (first.why_skipped(), second.why_skipped())
    (after_text,) = blocks("page.md", "<!-- not run: because -->\n\nText between.\n" + console("$ echo"))
    assert after_text.why_skipped() is None


def test_what_is_left_out_gives_its_reason(reader: Reader) -> None:
    page = (
        console("$ sudo reboot", "<!-- not run: it reboots -->")
        + console("$ no-such-oracle --judge", "<!-- needs: no-such-oracle; apt install oracle -->")
        + console("$ make demo\nanything\n$ echo done\ndone")
    )
    found = blocks("page.md", page)
    assert [
        "it reboots",
        "no-such-oracle is not here: apt install oracle",
        "`make demo` is the reader's own",
    ] == [why for block in found for why in block.skips()]
    follow(reader, page)


def test_a_needed_program_that_is_here_runs(reader: Reader) -> None:
    follow(reader, console("$ true", "<!-- needs: true; nothing to install -->"))
    with pytest.raises(BadExample, match="'true' is not run"):
        follow(reader, console("$ true"))


@pytest.mark.parametrize("language", ["bash", "sh", "pycon", "py"])
def test_an_example_that_nothing_would_run_is_refused(language: str) -> None:
    with pytest.raises(BadExample, match="say console or python"):
        blocks("page.md", f"```{language}\nls\n```\n")


def test_a_transcript_without_a_command_is_refused() -> None:
    with pytest.raises(BadExample, match="begins with a"):
        Block("page.md", 1, "console", "cbit demo\n").commands()


def test_a_page_that_needs_a_program_is_skipped_without_it() -> None:
    assert why_page_skipped("text") is None
    assert why_page_skipped("<!-- the page needs: sh; it is everywhere -->") is None
    missing = "<!-- the page needs: no-such-program; apt install it -->"
    assert why_page_skipped(missing) == "no-such-program is not here: apt install it"


def test_cbit_is_no_program_until_the_page_has_made_it_one(reader: Reader) -> None:
    with pytest.raises(BadExample, match="ends with 127"):
        follow(reader, console("$ cbit --version"))
    follow(reader, console("$ . .venv/bin/activate\n$ cbit --version\ncbit …"))
    follow(reader, console("$ cbit --version\ncbit …"))
