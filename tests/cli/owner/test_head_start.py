"""Hashing begins before the command line is understood, and changes no answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cbit
from cbit.cli import head_start, main
from cbit.cli.mapped import mapped
from cbit.owner.measure import Kernel, Mode, expect
from owner.images import an_image

LARGE = bytes(range(256)) * (1 << 13)  # two MiB: worth a thread


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "firmware").write_bytes(an_image())
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(LARGE)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    files = [f"--firmware={folder / 'firmware'}", "--kernel", str(folder / "kernel")]
    return ["owner", "measure", "--mode", "sev", "--output=hex", *files, *more]


def digest(folder: Path, *, initrd: bytes) -> str:
    kernel = Kernel(kernel=b"kernel", initrd=initrd)
    return expect(Mode.SEV, (folder / "firmware").read_bytes(), kernel=kernel).digest.hex()


def test_what_is_named_is_begun(folder: Path) -> None:
    begun = head_start.begin(words(folder, f"--initrd={folder / 'initrd'}"))
    assert {str(folder / "kernel"), str(folder / "initrd")} == set(begun)
    assert {b"kernel", LARGE} == {bytes(blob) for blob in begun.values()}


@pytest.mark.parametrize(
    "change",
    [
        lambda line: ["--json", *line],
        lambda line: [*line, "--explain"],
        lambda line: [word for word in line if not word.startswith("--firmware")],
        lambda line: ["owner", "vmsa", *line[2:]],
        lambda line: [],
    ],
)
def test_nothing_else_is_begun(change: object, folder: Path) -> None:
    assert callable(change)
    assert {} == head_start.begin(change(words(folder)))


def test_the_answer_is_the_parsers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last of two names counts, and a name that is written in another way is still the file."""
    (folder / "other").write_bytes(b"other")
    for initrd in ("initrd", "other"):
        for path in (folder / initrd, f"{folder}/./{initrd}"):
            line = words(folder, "--initrd", str(folder / "kernel"), "--initrd", str(path))
            assert 0 == main(line)
            assert digest(folder, initrd=(folder / initrd).read_bytes()) == capsys.readouterr().out.strip()


@pytest.mark.parametrize("what", ["absent", "folder", "empty"])
def test_what_cannot_be_mapped_is_left_to_whoever_reads_it(what: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    assert mapped(tmp_path / what) is None


def test_a_name_that_is_none_is_an_error_of_the_parser(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(words(folder, "--initrd", str(folder / "nothing")))
    assert "nothing: No such file or directory" in capsys.readouterr().err
    assert 2 == main(words(folder, "--initrd", "a\0b"))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are made with POSIX calls here")
def test_a_pipe_is_opened_once(folder: Path) -> None:
    """Whoever writes into one is told that the reader went away if it is closed and opened again."""
    os.mkfifo(folder / "pipe")
    written: list[int] = []
    writer = threading.Thread(
        target=lambda: written.append((folder / "pipe").write_bytes(LARGE)), daemon=True
    )
    writer.start()
    call = [sys.executable, "-m", "cbit", *words(folder, "--initrd", str(folder / "pipe"))]
    ended = subprocess.run(call, capture_output=True, text=True, check=False, timeout=120)
    writer.join(timeout=120)
    assert (digest(folder, initrd=LARGE), "") == (ended.stdout.strip(), ended.stderr)
    assert [len(LARGE)] == written


def test_little_is_loaded_before() -> None:
    """What the head start imports delays it: no parser, no dataclasses, nothing of `cryptography`."""
    program = (
        "import sys; before = set(sys.modules); from cbit.cli import head_start\n"
        "head_start.begin(['owner', 'measure', '--firmware', '/', '--kernel', '/'])\n"
        "print(*set(sys.modules) - before)"
    )
    call = [sys.executable, "-S", "-c", program]  # -S: what is installed may load anything for itself
    environment = os.environ | {"PYTHONPATH": str(Path(cbit.__file__).parents[1])}
    ended = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "cbit.owner.blob" in loaded
    assert not loaded & {"argparse", "typing", "dataclasses", "enum", "re", "pathlib", "cbit.cli.parser"}


def test_a_digest_loads_what_it_needs(folder: Path) -> None:
    """Start-up is most of a small launch: no path objects, no code that writes classes, no cryptography."""
    line = words(folder, "--initrd", str(folder / "initrd"))
    program = (
        "import sys\nfrom cbit.cli import main\n"
        f"code = main({line!r})\nprint(*sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    call = [sys.executable, "-S", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(Path(cbit.__file__).parents[1])}
    ended = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert digest(folder, initrd=LARGE) == ended.stdout.strip()
    loaded = set(ended.stderr.split())
    assert "cbit.owner.measure.launch" in loaded
    parse = "import argparse, sys; argparse.ArgumentParser().parse_args([]); print(*sys.modules)"
    argparses = subprocess.run([*call[:3], parse], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded & {"numpy", "rich", "cryptography"}
    assert not (loaded - {*argparses}) & {  # which from 3.14 on loads dataclasses for itself
        "dataclasses",
        "inspect",
        "json",
        "subprocess",
        "logging",
        "tempfile",
    }
    if sys.version_info < (3, 12) or "pathlib" in loaded:  # from 3.12 on, others of the standard library may
        assert not loaded & {"pathlib", "urllib.parse", "ipaddress"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("cbit.")}
    assert {"cli", "owner", "spec"} == rooms
