"""The bench measures ours and the limit in turn; its bounds judge ratios, and no test here judges a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbit.cli import bench, main
from cbit.cli.bench import aes, guest, linux, memory
from cbit.cli.bench.figure import Figure, medians, pairs
from cbit.guest.builtin import image as builtin
from cbit.spec.address import MIB
from engine_here import missing


def a_figure(ratio: float, reach: str) -> Figure:
    return Figure("group", "name", 1.0, 1.0, "us", ratio, "the limit", reach)


@pytest.mark.parametrize(
    ("ratio", "reach", "reached"),
    [
        (0.46, ">= 0.45", True),
        (0.45, ">= 0.45", True),
        (0.44, ">= 0.45", False),
        (3.5, "<= 3.5", True),
        (3.6, "<= 3.5", False),
        (99.0, "", None),
    ],
)
def test_a_bound_is_reached_or_missed_by_the_ratio(ratio: float, reach: str, reached: bool | None) -> None:
    assert reached == a_figure(ratio, reach).reached


def test_ours_and_the_limit_take_turns_after_a_warm_up_of_each() -> None:
    calls: list[str] = []
    times = pairs(lambda: calls.append("ours"), lambda: calls.append("limit"), 3)
    assert ["ours", "limit"] * 4 == calls
    assert 3 == len(times)


def test_the_ratio_is_the_median_of_the_pairs_not_of_the_sides() -> None:
    assert (2.0, 2.0, 1.0) == medians([(1.0, 1.0), (2.0, 2.0), (9.0, 3.0)])
    assert 0.5 == medians([(1.0, 2.0)])[2]


def test_the_aes_groups_measure_every_mode_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aes, "SIZE", MIB)
    monkeypatch.setattr(aes, "PAGES", 8)
    figures = [*aes.bulk(1), *aes.page(1)]
    ways = {(figure.group, figure.name.split()[0], figure.name.split()[1]) for figure in figures}
    modes, directions = ("xe", "xex", "xts"), ("encrypt", "decrypt")
    assert {(g, m, d) for g in ("aes-bulk", "aes-page") for m in modes for d in directions} == ways
    assert all(figure.ours > 0 and figure.limit > 0 and figure.ratio > 0 for figure in figures)


def test_the_launch_group_runs_and_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["bench", "launch", "--rounds", "1", "--json"])
    answer = json.loads(capsys.readouterr().out)
    figures = answer["result"]["figures"]
    assert ["LAUNCH_UPDATE_DATA 4 MiB", "whole launch 4 MiB"] == [figure["name"] for figure in figures]
    assert ["<= 1.6", "<= 1.6"] == [figure["reach"] for figure in figures]
    assert all(figure["ours"] > 0 and figure["limit"] > 0 for figure in figures)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc: Linux only")
def test_the_memory_group_sees_what_a_process_grows_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DRAM", 32 * MIB)
    monkeypatch.setattr(memory, "CACHE", 4 * MIB)
    (figure,) = memory.figures(1)
    assert figure.limit == 36
    assert figure.ours > 30, "all of DRAM was touched, so it must be resident"


@pytest.mark.parametrize("words", [["nothing"], ["aes-bulk", "--rounds", "0"]])
def test_bad_words_are_one_sentence_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(["bench", *words])
    assert "cbit bench:" in capsys.readouterr().err


def test_the_guest_group_measures_guests_that_execute(monkeypatch: pytest.MonkeyPatch) -> None:
    if why := missing():
        pytest.skip(why)
    monkeypatch.setattr(guest, "EXITS", 20)
    monkeypatch.setattr(guest, "AES_PAGES", 20)
    monkeypatch.setattr(guest, "WORKS", 1)
    monkeypatch.setattr(guest, "SMALL", guest.SMALL * 3 // 2)
    monkeypatch.setattr(guest, "_idle", lambda: iter(()))  # in a process of its own: the next test
    found = {figure.group: figure for figure in guest.figures(1)}
    assert {"guest-compute", "guest-thrash", "guest-fill"} == set(found)
    assert all(figure.ours > 0 and figure.limit > 0 for figure in found.values() if figure.reach != "<= 2")


@pytest.mark.slow
def test_a_further_idle_guest_costs_what_it_touched() -> None:
    """Memory is not noisy: the bound holds in every run."""
    if why := missing():
        pytest.skip(why)
    (figure,) = guest._idle()
    assert figure.reached


def test_without_an_engine_the_guests_are_left_out_aloud(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-cc")
    builtin.image.cache_clear()
    monkeypatch.setattr(bench, "_groups", lambda: {"guest": guest.figures})
    assert 0 == main(["bench", "--json"])
    result = json.loads(capsys.readouterr().out)["result"]
    assert [] == result["figures"]
    assert "no C compiler" in result["left_out"]["guest"]
    assert 2 == main(["bench", "guest", "--json"])  # asked for by name, it is a refusal
    assert "no C compiler" in json.loads(capsys.readouterr().out)["reasons"][0]


def test_boots_are_set_side_by_side_round_by_round() -> None:
    times = {"qemu": [2.0, 4.0, 2.0], "plain": [4.0, 4.0, 4.0], "uncapped": [4.0, 6.0, 4.0]}
    times |= {"default": [5.0, 5.0, 5.0], "16M": [8.0, 18.0, 8.0]}
    figures = [figure for figure in linux.side_by_side(times) if isinstance(figure, Figure)]
    assert [2.0, 2.5, 1.0, 2.0] == [figure.ratio for figure in figures]
    assert [False, False, True, True] == [figure.reached for figure in figures]
    del times["qemu"]
    skipped = [figure.why for figure in linux.side_by_side(times) if not isinstance(figure, Figure)]
    assert 2 * ["qemu-system-x86_64 is not here: apt install qemu-system-x86"] == skipped
    assert "linux" in bench.ON_REQUEST
