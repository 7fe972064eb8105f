"""What the documents admit is what the code does: every MODEL CHOICE stands on the page that lists them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/cbit"
PAGE = ROOT / "docs/explanation/model-choices.md"

# "MODEL CHOICE:", "MODEL CHOICE (§4.1):", "MODEL CHOICE for …"; not "is a MODEL CHOICE, marked below".
MARK = re.compile(r"MODEL CHOICE(?!,)")
ROW = re.compile(r"^\| `([\w/]+\.py)` \| .+\. \|$", re.MULTILINE)


def marks() -> Counter[str]:
    counts = {
        path.relative_to(SOURCE).as_posix(): len(MARK.findall(path.read_text(encoding="utf-8")))
        for path in SOURCE.rglob("*.py")
    }
    return +Counter(counts)


def test_every_model_choice_is_on_the_page_once() -> None:
    rows = Counter(ROW.findall(PAGE.read_text(encoding="utf-8")))
    assert marks() == rows, "a row of the page for each mark in the code, no more and no less"


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("MODEL CHOICE: one", 1),
        ("MODEL CHOICE (memory-encryption.md §4.1): one", 1),
        ("# MODEL CHOICE for all profiles; documented for Genoa only", 1),
        ("What is not there is a MODEL CHOICE, marked below.", 0),
        ("a model choice", 0),
    ],
)
def test_a_mark_is_what_the_code_spells_so(text: str, counted: int) -> None:
    assert counted == len(MARK.findall(text))


def test_limitations_say_where_the_choices_are_listed() -> None:
    limitations = (ROOT / "LIMITATIONS.md").read_text(encoding="utf-8")
    assert str(PAGE.relative_to(ROOT)) in limitations
