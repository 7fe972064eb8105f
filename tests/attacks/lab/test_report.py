"""The report: one page that needs nothing beside it and says what the results say, in a browser too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cbit.attacks.experiments import ALL
from cbit.attacks.lab.campaign import whole_matrix
from cbit.attacks.lab.case import Case, Told, broken
from cbit.attacks.lab.log import Curve, Field, picture_as_json
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.attacks.report.page import page
from cbit.attacks.report.svg import draw

#: Writes into the title how many columns of the matrix end inside its box.
MEASURE = """
const box = document.querySelector(".matrix").parentElement.getBoundingClientRect();
const heads = [...document.querySelectorAll(".matrix thead th")];
document.title = heads.filter(head => head.getBoundingClientRect().right <= box.right + 1).length;
"""
VOID = {"meta", "br", "rect", "circle", "path", "polyline"}


def results() -> list[Told]:
    """A result for each cell, as if all had been run and had come out as predicted."""
    told = []
    for case in whole_matrix(ALL):
        attack = next(attack for attack in ALL if attack.name == case.attack)
        expected = attack.expectation(case.mode, case.variant)
        verdict = expected.verdict if case.mode.modelled else Verdict.NOT_MODELLED
        picture = picture_as_json(Curve("x", "y", ((1.0, 2.0), (2.0, 3.0))))
        step = {"text": "a <step> & more", "data": "00ff" * 8, "length": 4096, "picture": picture}
        figure = {"name": "count", "ours": 3, "unit": "", "published": "4", "source": "s", "difference": "d"}
        told.append(
            case.as_json()
            | {"verdict": verdict.value, "expected": expected.verdict.value, "why": expected.why}
            | {"as_expected": True, "found": 1, "planted": 1, "note": "", "loot_bytes": 32, "powers": []}
            | {"figures": [figure], "steps": [step]}
        )
    return told


class Reader(HTMLParser):
    """Holds a page to its brackets, and collects what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.refers: set[str] = set()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in ("href", "src", "xlink:href"):
                self.refers.add(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return  # written as <rect/>
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_the_page_is_whole_and_refers_to_itself_only() -> None:
    text = page(ALL, results())
    reader = read(text)
    assert [] == reader.open
    assert {f"#{attack.name}" for attack in ALL} <= reader.refers
    assert reader.refers <= {f"#{name}" for name in reader.ids}
    assert {attack.name for attack in ALL} <= reader.ids
    assert set(re.findall(r"<th\b[^>]*>", text)) == {'<th scope="col">', '<th scope="row">'}
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "a &lt;step&gt; &amp; more" in text
    assert "<step>" not in text


def test_every_cell_has_its_verdict_and_a_surprise_is_marked() -> None:
    told = results()
    table = page(ALL, told).partition('class="matrix"')[2].partition("</table>")[0]
    assert len(ALL) * 5 == len(re.findall(r"<td class=\"(?:won|held|partly|none|absent)\"", table))
    assert "surprise" not in table
    told[0] |= {"verdict": "stopped", "as_expected": False}
    text = page(ALL, told)
    assert 'class="held surprise"' in text
    assert "1 came out otherwise than predicted" in text


def test_every_cell_leads_to_its_reason_and_every_stop_to_its_steps() -> None:
    told = results()
    (cell,) = (each for each in told if (each["attack"], each["variant"]) == ("crossline-tlb", "flushed"))
    cell |= {"note": "no translation <is> left", "found": 0}
    text = page(ALL, told)
    for each in told:
        place = "-".join(filter(None, (each["attack"], each["mode"], each["variant"])))
        assert f'href="#{place}">' in text
        assert f'<li id="{place}">' in text
    section = text.partition('id="crossline-tlb"')[2].partition("</section>")[0]
    assert "stopped; the core flushes the ASID" in section
    assert "the run notes: no translation &lt;is&gt; left</li>" in section
    summaries = re.findall(r"<details( open)?><summary>([^<]*)</summary>", section)
    stops = [("", f"sev with {variant}: stopped") for variant in ("deactivated", "flushed")]
    assert [(" open", "sev: succeeds"), *stops] == summaries
    commands = section.partition("<h3>Run it</h3><pre>")[2].partition("</pre>")[0].splitlines()
    assert [
        "cbit attack run crossline-tlb --mode sev",
        "cbit attack run crossline-tlb --mode sev --variant deactivated",
        "cbit attack run crossline-tlb --mode sev --variant flushed",
    ] == commands


def test_what_was_not_run_is_said_aloud() -> None:
    told = results()
    assert "Not run" not in page(ALL, told)
    for cell in told:
        if cell["attack"].startswith("linux-"):
            cell |= {"verdict": "not run", "note": "apt-get is <not> here", "planted": 0}
    text = page(ALL, told)
    names = "linux-cold-boot, linux-tools, linux-registers"
    assert f"<strong>Not run</strong>: {names}: apt-get is &lt;not&gt; here.</p>" in text
    assert 'class="absent"' in text


def test_what_could_not_be_run_is_said_aloud() -> None:
    told = results()
    case = Case(told[0]["attack"], Mode(told[0]["mode"]), parameters={"decay": 1.0})
    text = page(ALL, [broken(case, "<worker> ended"), *told[1:]])
    note = "cold-boot against none, decay=1.0, seed 1: &lt;worker&gt; ended"
    assert f"<p><strong>Broken</strong>: {note}.</p>" in text
    assert 1 == text.count(">broken</a></td>")


def test_what_cannot_be_shown_is_said_in_its_row() -> None:
    text = page(ALL, results())
    assert 2 == text.count('<td class="defence">not shown: what stops it is SEV-ES')
    assert 2 == text.count("<li><b>not shown</b>: what stops it is SEV-ES")


def test_what_stands_between_backquotes_is_code() -> None:
    told = results()
    told[0]["steps"] = [{"text": "`rep movsb` <here>", "data": "", "length": 0, "picture": None}]
    assert "<li><code>rep movsb</code> &lt;here&gt;" in page(ALL, told)


def test_figures_stand_beside_the_published_ones() -> None:
    text = page(ALL, results())
    assert "<td>count</td><td>3</td><td>4</td><td>s</td><td>d</td>" in text


@pytest.mark.parametrize(
    "picture",
    [Curve("a", "b", ()), Curve("a", "b", ((0.0, 0.0),)), Field(3, b"\x00\x80\xff\x10"), Field(2, b"")],
)
def test_a_picture_is_drawn_whatever_is_in_it(picture: Curve | Field) -> None:
    told = picture_as_json(picture)
    assert told is not None
    assert [] == read(draw(told)).open


def test_a_picture_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a picture of kind 'photograph'"):
        draw({"kind": "photograph"})


@pytest.mark.slow
@pytest.mark.oracle
def test_a_real_browser_shows_it(require_program: Callable[[str, str], list[str]], tmp_path: Path) -> None:
    chromium = require_program("chromium", "apt install chromium")
    report, picture = tmp_path / "lab.html", tmp_path / "lab.png"
    report.write_text(page(ALL, results()), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(*words: str) -> Any:
        call = [*chromium, *options, *words, report.as_uri()]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=100)

    seen = browse("--dump-dom").stdout
    assert all(attack.title in seen for attack in ALL)
    assert len(results()) - sum(1 for c in results() if c["variant"]) == len(
        re.findall(r"<td class=\"(?:won|held|partly|none|absent)\"", seen)
    )
    measured = f"{page(ALL, results())}<script>{MEASURE}</script>"
    report.write_text(measured, encoding="utf-8")
    for width, fits in ((1280, 7), (390, 4)):  # columns that are seen whole: all, and those that are modelled
        title = re.search(r"<title>(\d+)</title>", browse("--dump-dom", f"--window-size={width},1600").stdout)
        assert title is not None
        assert fits <= int(title[1])
    report.write_text(page(ALL, results()), encoding="utf-8")
    browse(f"--screenshot={picture}", "--window-size=1200,1600")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 20_000 < picture.stat().st_size
