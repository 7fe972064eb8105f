"""The frame of the command line: one envelope, three exit codes, an example in every help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cbit
from cbit import __version__
from cbit.cli import main
from cbit.cli.command_line import COMMANDS
from cbit.cli.owner import STEPS

ENV = {"PYTHONPATH": str(Path(cbit.__file__).parents[1]), "PATH": os.environ.get("PATH", "")}


def run(*words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "cbit", *words]
    return subprocess.run(call, stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENV, check=False)


def test_every_name_of_the_design_is_reserved() -> None:
    names = "demo setup run memory serve control exec kds migrate owner attack bench capabilities"
    assert names.split() == [name for name, _, _ in COMMANDS]


@pytest.mark.parametrize("words", [["owner"], *(["owner", step] for step in STEPS), []])
def test_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    printed = capsys.readouterr().out
    assert 0 == ended.value.code
    assert "usage: cbit" in printed
    assert "example" in printed.split("\n\n")[-1]
    assert f"cbit {' '.join(words)}".strip() in printed


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (0, f"cbit {__version__}\n") == (ended.value.code, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "command", "reason"),
    [
        ([], "", "name a command"),
        (["nonsense"], "", "'nonsense' is no command"),
        (["--nonsense"], "", "unrecognized arguments"),
        (["migrate"], "migrate", "required: send|receive"),
        (["owner"], "owner", "STEP"),
        (["owner", "nonsense"], "owner", "invalid choice"),
        (["owner", "verify"], "owner verify", "required"),
        (["owner", "verify", "x", "--foo"], "owner verify", "unrecognized arguments: --foo"),
        (["owner", "vmsa", "show", "a", "b"], "owner vmsa show", "unrecognized arguments: b"),
        (["owner", "verify", "/no/such/file"], "owner verify", "/no/such/file: No such file or directory"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_sentence_and_exit_2(
    words: list[str], command: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(words)
    out, err = capsys.readouterr()
    assert "" == out
    assert f"cbit {command}".strip() == err.splitlines()[-1].split(": ")[0]
    assert reason in err.splitlines()[-1]
    assert "Traceback" not in err

    assert 2 == main([*words, "--json"])
    out, err = capsys.readouterr()
    assert "" == err
    found = json.loads(out)
    assert {
        "cbit": __version__,
        "command": command or "cbit",
        "ok": False,
        "reasons": found["reasons"],
        "result": {},
    } == found
    (sentence,) = found["reasons"]
    assert reason in sentence


@pytest.mark.parametrize("words", [["--json", "owner", "verify", "x"], ["owner", "--json", "verify", "x"]])
def test_json_may_stand_anywhere(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(words)
    out, err = capsys.readouterr()
    assert ("owner verify", "") == (json.loads(out)["command"], err)


def test_the_process_ends_with_the_code(tmp_path: Path) -> None:
    ended = run("owner", "verify", str(tmp_path))
    assert (2, "") == (ended.returncode, ended.stdout)
    assert 1 == len(ended.stderr.splitlines())
    assert ended.stderr.startswith("cbit owner verify: ")


@pytest.mark.skipif(os.name != "posix", reason="pipes that break are made with POSIX calls here")
def test_a_reader_who_goes_away_makes_no_noise() -> None:
    vectors = Path(__file__).parents[1] / "vectors"
    read, write = os.pipe()
    os.close(read)
    try:
        words = ["owner", "verify", str(vectors / "sev-chain-milan")]
        ca = [f"--ca={vectors / 'amd-root' / name}" for name in ("ask_milan.cert", "ark_milan.cert")]
        ended = run(*words, *ca, stdout=write)
    finally:
        os.close(write)
    assert (0, "") == (ended.returncode, ended.stderr)


def test_a_terminal_without_our_letters_gets_no_traceback() -> None:
    vectors = Path(__file__).parents[1] / "vectors"
    ca = [f"--ca={vectors / 'amd-root' / name}" for name in ("ask_milan.cert", "ark_milan.cert")]
    call = [sys.executable, "-m", "cbit", "owner", "verify", str(vectors / "sev-chain-milan"), *ca]
    ended = subprocess.run(call, capture_output=True, env=ENV | {"PYTHONIOENCODING": "ascii"}, check=False)
    assert 0 == ended.returncode
    assert b"verdict: verified" in ended.stdout


def test_owner_loads_nothing_of_the_machine() -> None:
    program = (
        "import sys, json\nfrom cbit.cli import main\nmain(['owner', 'verify', 'x', '--json'])\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=ENV, check=False
    )
    loaded = set(json.loads(ended.stderr))
    assert set() == loaded & {"numpy", "rich", "unicorn"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("cbit.")}
    assert {"cli", "owner", "spec", "crypto"} == rooms
