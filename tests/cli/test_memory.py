"""`cbit memory`: dumps and surveys as text, numbers, and a picture."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cli import main
from cbit.cli.memory_map import Page, drawing, pixels, table
from cbit.cli.picture import png
from cbit.spec.address import PAGE

TEXT = b"it is not ciphertext ".ljust(PAGE, b".")
REPORT: dict[str, Any] = {
    "pages": {
        "page_size": PAGE,
        "memory_size": 6 * PAGE,
        "flushed": 2,
        "guest": [[0, 2, 1, "pcd"], [1, 3, 1, "p"], [2, 4, 1, "sc"], [3, 5, 3, "-"]],
    }
}


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dram.bin"
    path.write_bytes(TEXT + bytes(PAGE) + os.urandom(2 * PAGE) + TEXT + bytes(3 * PAGE))
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(REPORT))
    return path


def ran(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = main(["memory", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_dump_alone_is_drawn_by_its_entropy(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ran(capsys, dump)
    assert 0 == code
    assert "0x0000000000  ░·██░···" == printed.splitlines()[0]
    assert ["noise", "2", "0", "0", "2"] in [line.split() for line in printed.splitlines()]


def test_a_guest_in_a_dump_is_drawn_by_what_its_pages_are(
    dump: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "guest.png"
    code, printed = ran(capsys, dump, "--report", report, "--png", picture)
    assert 0 == code
    assert "0x0000000000  *pS..." == printed.splitlines()[0]
    assert "WBINVD wrote 2 pages back" in printed
    rows = {line.split("  ")[0]: line.split()[-6:] for line in printed.splitlines() if line[:1] in "pns"}
    assert ["2", "1", "1", "0", "0", "2"] == rows["private"]
    assert ["1", "1", "0", "0", "1", "0"] == rows["shared"]
    assert ["3", "0", "0", "3", "0", "0"] == rows["never used"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_survey_alone_has_no_contents_to_speak_of(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ran(capsys, "--json", "--report", report)
    result = json.loads(printed)["result"]
    assert (0, 6, 2) == (code, result["pages"], result["flushed"])
    private = next(row for row in result["kinds"] if row["kind"] == "private")
    assert {"kind": "private", "pages": 2, "cached": 1, "dirty": 1} | dict.fromkeys(
        ("zeros", "structure", "noise")
    ) == private


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "without pages"),
        ("{}", "without pages"),
        ('{"pages": {}}', "no survey of pages"),
        (json.dumps(REPORT).replace('"pcd"', '"?"'), "in state '?'"),
        (json.dumps(REPORT).replace("[3, 5, 3", "[3, 50, 3"), "not of one run"),
        (json.dumps(REPORT).replace("[3, 5, 3", "[3, 5, 99999999999"), "pages in 24576 bytes of memory"),
    ],
)
def test_a_report_that_cannot_be_used_says_why(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    code, printed = ran(capsys, dump, "--report", bad)
    assert (2, True) == (code, words in printed), printed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "a dump, a --report, or both"),
        (("absent.bin",), "absent.bin: No such file"),
        (("--rows", "0", "absent.bin"), "one at least"),
        (("--guest", "foo", "absent.bin"), "--guest foo: guests are named in a --report"),
        (("/dev/zero",), "/dev/zero: not a regular file"),
        (("--report", "/dev/zero"), "/dev/zero: not a regular file"),
        (("/",), "/: not a regular file"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
) -> None:
    code, printed = ran(capsys, *words)
    assert (2, True) == (code, reason in printed), printed


def test_an_empty_dump_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    assert "not one page" in ran(capsys, tmp_path / "empty")[1]


def test_a_letter_stands_for_several_pages_where_there_are_many() -> None:
    pages = [Page(number, "-", None) for number in range(1000)]
    pages[500] = Page(500, "pcd", None)
    lines = list(drawing(pages, columns=10, most_rows=4))
    assert 5 == len(lines)
    assert "one letter is 32 pages" in lines[-1]
    letters = "".join(line.partition("  ")[2] for line in lines[:-1])
    assert 500 // 32 == letters.index("*")
    assert letters.count(".") == len(letters) - 1


def test_every_page_is_counted_once() -> None:
    pages = [Page(n, state, 8.0) for n, state in enumerate(["p", "pc", "pcd", "s", "scd", "-", "-c"])]
    rows = table(pages)
    assert 7 == sum(int(row["pages"] or 0) for row in rows)
    assert {"private": 1, "shared": 1, "never used": 0} == {row["kind"]: row["dirty"] for row in rows}


def test_brighter_is_nearer_to_the_processor_and_paler_has_structure() -> None:
    def light(page: Page) -> int:
        return sum(page.colour)

    assert light(Page(0, "p", 8.0)) < light(Page(0, "pc", 8.0)) < light(Page(0, "pcd", 8.0))
    assert light(Page(0, "p", 1.0)) < light(Page(0, "p", 8.0))
    assert Page(0, "p", 8.0).colour != Page(0, "s", 8.0).colour
    assert (0, 255) == (Page(0, None, 0.0).colour[0], Page(0, None, 8.0).colour[0])
    assert [4, 4] == [len(row) for row in pixels([Page(n, "p", None) for n in range(5)], width=4)]


# ---- the picture


def unpacked(image: bytes) -> tuple[int, int, list[bytes]]:
    """Read a PNG by its specification, checking every chunk."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        kind, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", image, at + 8 + length)[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert [b"IHDR", b"IDAT", b"IEND"] == list(chunks)
    width, height, depth, colour, *rest = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert (8, 2, [0, 0, 0]) == (depth, colour, rest)
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = 1 + 3 * width
    lines = [raw[i : i + stride] for i in range(0, len(raw), stride)]
    assert height == len(lines)
    assert all(line[0] == 0 for line in lines)
    return width, height, [line[1:] for line in lines]


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    st.integers(1, 3),
)
def test_a_picture_holds_its_pixels(rows: list[list[tuple[int, int, int]]], scale: int) -> None:
    width, height, lines = unpacked(png(rows, scale=scale))
    assert (len(rows[0]) * scale, len(rows) * scale) == (width, height)
    for number, line in enumerate(lines):
        expected = b"".join(bytes(pixel) * scale for pixel in rows[number // scale])
        assert expected == line


@pytest.mark.parametrize("rows", [[], [[]], [[(0, 0, 0)], []]])
def test_a_picture_of_nothing_is_refused(rows: list[list[tuple[int, int, int]]]) -> None:
    with pytest.raises(ValueError, match="one pixel at least"):
        png(rows)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/dev/full", "/dev/full: No space left"),
        ("/", "--png /: Is a directory"),
        ("/no/x", "--png /no/x: No such"),
    ],
)
def test_a_picture_that_cannot_be_written_is_named(
    dump: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    code, printed = ran(capsys, dump, "--png", target)
    assert (2, True) == (code, words in printed), printed
    assert [dump] == list(dump.parent.iterdir())


def test_a_pipe_and_a_file_of_no_machines_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, (64 << 30) + 1)
    for words, reason in (
        (["pipe"], "not a regular file"),
        (["--report", "pipe"], "not a regular file"),
        (["large"], "68719476737 bytes are too many for a machine's memory"),
        (["--report", "large"], "68719476737 bytes are too many for a report"),
    ):
        code, printed = ran(capsys, *words[:-1], tmp_path / words[-1])
        assert (2, True) == (code, reason in printed), printed


@pytest.mark.parametrize("size", [1, 4095, 16 * 4096 + 1])
def test_a_torn_dump_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    torn = tmp_path / "torn"
    torn.write_bytes(bytes(size))
    code, printed = ran(capsys, torn)
    why = f"{torn}: torn: {size % 4096} bytes behind the last whole page of 4096"
    assert (2, True) == (code, why in printed), printed
    torn.write_bytes(bytes(size // 4096 * 4096 + 4096))
    assert 0 == ran(capsys, torn)[0]
