"""What a host knows of a guest's pages, and the form in which a report holds it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.page_survey import STATES, PageRun, PageSurvey, runs_of
from cbit.spec.address import PAGE
from cbit.spec.errors import WireError

GOOD: dict[str, Any] = {
    "page_size": 4096,
    "memory_size": 0x10000,
    "flushed": 3,
    "guest": [[0, 16, 4, "pcd"], [4, 20, 2, "-"], [8, 30, 1, "sc"]],
}


def test_a_survey_is_written_and_read_back() -> None:
    survey = PageSurvey.from_json(GOOD)
    assert GOOD == json.loads(json.dumps(survey.as_json()))
    assert (0x10000, 3) == (survey.memory_size, survey.flushed)
    assert [(0, 16, "pcd"), (1, 17, "pcd"), (2, 18, "pcd"), (3, 19, "pcd")] == list(survey.pages())[:4]
    assert 7 == len(list(survey.pages()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"page_size": 8192}, "pages of 8192 bytes"),
        ({"memory_size": -1}, "memory_size is -1"),
        ({"flushed": "many"}, "flushed is 'many'"),
        ({"flushed": True}, "flushed is True"),
        ({"guest": None}, "no survey of pages"),
        ({"guest": [[0, 1, 2]]}, "a run of pages is"),
        ({"guest": [[0, 1, 0, "p"]]}, "with numbers"),
        ({"guest": [[0, -1, 1, "p"]]}, "with numbers"),
        ({"guest": [[0, 1.5, 1, "p"]]}, "with numbers"),
        ({"guest": [[0, 1, 1, "x"]]}, "in state 'x'"),
        ({"guest": [[0, 1, 1, "pd"]]}, "in state 'pd'"),
        ({"guest": [[0, 1, 1, ["p"]]]}, "in state"),
        ({"guest": [[4, 1, 1, "p"], [3, 1, 1, "p"]]}, "out of order"),
        ({"guest": [[4, 1, 2, "p"], [5, 1, 1, "p"]]}, "out of order"),
        ({"guest": [[0, 256, 99999999999, "p"]]}, "99999999999 pages in 65536 bytes"),
        ({"guest": [[0, 16, 17, "p"]]}, "17 pages in 65536 bytes"),
        ({"guest": [[0, 16, 9, "p"], [9, 25, 8, "s"]]}, "17 pages in 65536 bytes"),
        ({"memory_size": 0x5000}, "7 pages in 20480 bytes"),
        ({"memory_size": (64 << 30) + 4096}, "no machine has more than"),
    ],
)
def test_what_is_no_survey_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(WireError, match=words):
        PageSurvey.from_json(GOOD | change)


@pytest.mark.parametrize("value", [None, [], "text", 7, {}])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(WireError, match="no survey of pages"):
        PageSurvey.from_json(value)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.sampled_from(sorted(STATES))), max_size=30)
)
def test_runs_hold_the_pages_and_are_as_long_as_they_can_be(steps: list[tuple[int, int, str]]) -> None:
    pages, at = [], 0
    for step, spa, state in steps:
        at += step
        pages.append((at, at + spa, state))
    runs = list(runs_of(pages))
    survey = PageSurvey(len(pages) * PAGE, 0, tuple(runs))
    assert pages == list(survey.pages())
    assert survey == PageSurvey.from_json(survey.as_json())
    for a, b in itertools.pairwise(runs):
        assert (a.gpa_page + a.count, a.spa_page + a.count, a.state) != (b.gpa_page, b.spa_page, b.state)
    assert PageRun(0, 0, 1, "p") != PageRun(0, 0, 2, "p")
