"""``cbit demo`` refuses words that would have no effect, and does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *((["--" + name, "x"], f"--{name} belongs to --linux") for name in ("kernel", "modules", "busybox")),
        (["--write", "x"], "--write belongs to --linux"),
        (["--append", "x"], "--append belongs to --linux"),
        (["--memory", "256M"], "--memory belongs to --linux"),
        (["--linux", "--firmware", "x"], "--firmware has no effect with --linux"),
        (["--linux", "--secret-gpa", "0x810000"], "--secret-gpa has no effect with --linux"),
        (["--linux", "--write", "x", "--firmware", "x"], "--firmware has no effect on the files"),
        (["--linux", "--write", "x", "--append", "x"], "--append has no effect on the files"),
        (["--linux", "--write", "x", "--memory", "256M"], "--memory has no effect on the files"),
        (["--linux", "--write", "x", "--profile", "rome"], "--profile has no effect on the files"),
    ],
)
def test_words_without_effect_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 2 == main(["demo", *words])
    out, err = capsys.readouterr()
    assert ("", f"cbit demo: {sentence}") == (out, err.strip()[: len(f"cbit demo: {sentence}")])
    assert [] == list(tmp_path.iterdir())
