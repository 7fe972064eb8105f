"""How ``cbit demo`` is shown: to a reader who leaves, on a full disk, on a narrow screen."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cbit.attacks.forensics import Find
from cbit.attacks.power import Power
from cbit.attacks.survey import Cell, adversaries
from cbit.cli.command_line import _sentence
from cbit.cli.demo import render
from cbit.cli.demo.act import Act
from cbit.cli.demo.console import new_console
from cbit.guest import generated_firmware
from cbit.hypervisor.host import Protection
from redirect.conftest import environment

NARROW = (40, 59)


@pytest.fixture
def story(tmp_path: Path) -> str:
    """The shell's words for a demo that takes a few seconds."""
    (tmp_path / "firmware").write_bytes(generated_firmware.generate())
    words = f"demo --profile naples --firmware {tmp_path}/firmware --seed 5"
    return f"{sys.executable} -m cbit {words}"


def in_bash(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], env=environment(), capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("reader", ["head -n 2", "true"])
def test_a_reader_who_has_read_enough_changes_no_verdict(story: str, reader: str) -> None:
    ended = in_bash(f"{story} | {reader}; exit ${{PIPESTATUS[0]}}")
    assert (0, "Traceback" in ended.stderr) == (ended.returncode, False), ended.stderr


def test_a_full_disk_is_said_as_by_other_commands(story: str) -> None:
    ended = in_bash(f"{story} > /dev/full")
    why = "cbit demo: standard output: No space left on device"
    assert (2, why) == (ended.returncode, ended.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file or directory", "a"), "a: No such file or directory"),
        (OSError("of our own"), "of our own"),
    ],
)
def test_no_number_of_an_error_is_shown(error: OSError, said: str) -> None:
    assert said == _sentence(error)


def shown(width: int, cells: list[Cell], finds: list[Find], *, title: str = "A title") -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    render.show_act(console, Act(1, title))
    render.show_survey(console, cells)
    render.show_finds(console, finds)
    assert max(map(len, out.getvalue().splitlines())) <= width
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("width", NARROW)
def test_a_narrow_screen_loses_no_word_of_the_result(width: int) -> None:
    cells = [Cell(n, p, (Power.DMA,), p == "none", 64, "") for n in adversaries() for p in Protection]
    finds = [
        Find("aeskeyfind", "the key of the disk", "the encrypted guest", found=False, words=""),
        Find("aeskeyfind", "the key of the disk", "the unencrypted guest", found=True, words="6 times"),
    ]
    title = "A title that is longer than a narrow terminal, by a good deal of words"
    text = shown(width, cells, finds, title=title)
    assert "…" not in text
    assert f"1. {title}" in text
    for name in adversaries():
        assert f"{name}: no encryption SECRET READ; SME no; SEV no" in text
    assert (
        "aeskeyfind, the key of the disk: the encrypted guest no; the unencrypted guest FOUND: 6 times"
        in text
    )


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("40", 40), ("133", 133)])
def test_a_terminal_without_a_width_has_eighty_columns(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        assert width == new_console().width


def test_a_pipe_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert 120 == new_console().width
