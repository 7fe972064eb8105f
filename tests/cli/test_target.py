"""No command writes over what it reads, or one file twice."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from cbit.cli import main
from cbit.cli.target import insist_apart

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "there").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("there")
    os.link(tmp_path / "there", tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "there"


@pytest.mark.parametrize("other", ["there", "link", "hard"])
@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("memory {} --png {}", "dump"),
        ("memory --report {} --png {}", "report"),
        ("run --kernel {} --dump-dram {}", "kernel"),
        ("run --kernel no --disk no --disk {} --dump-dram {}", "disk"),
        ("run --kernel {} --report {}", "kernel"),
        ("run --guest a,kernel={} --guest b,kernel=no --report {}", "kernel"),
        ("attack matrix --only replay --journal {} --html {}", "journal"),
        ("owner serve audit --log {} --export {}", "log"),
        ("owner serve bind --challenge {} --key no --out {}", "challenge"),
        ("owner vmsa build --vcpu-type EPYC-Milan --firmware {} --out {}", "firmware"),
        ("owner measure --mode snp --vcpus 1 --vcpu-type EPYC-Milan --firmware {} --toml {}", "firmware"),
        ("owner measure --mode sev --firmware no --tk {} --launch-receipt no --receipt {}", "tk"),
    ],
)
def test_a_file_that_is_read_is_not_written(
    there: Path, capsys: pytest.CaptureFixture[str], words: str, what: str, other: str
) -> None:
    call = words.format("there", other).split()
    assert 2 == main(call)
    why = f"{call[-2]} {other}: the command line names the same file as {what}"
    assert why in capsys.readouterr().err
    assert CONTENT == there.read_bytes()
    assert {"there", "link", "hard"} == {path.name for path in there.parent.iterdir()}


def test_two_results_are_not_written_to_one_file_that_is_not_there_yet(tmp_path: Path) -> None:
    args = Namespace(report=tmp_path / "new", dump_dram=tmp_path / "." / "new", kernel=None)
    with pytest.raises(ValueError, match="the same file as report"):
        insist_apart(args, "dump_dram", "report")


def test_what_is_apart_or_no_regular_file_is_not_refused(tmp_path: Path) -> None:
    null = Path(os.devnull)
    args = Namespace(
        report=tmp_path / "new", dump_dram=tmp_path / "other", html=null, journal=null, ca=[null]
    )
    insist_apart(args, "dump_dram", "report", "html", "journal")
    insist_apart(Namespace(report=None, kernel=None), "report")
