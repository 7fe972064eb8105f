"""The control channel of a served machine: what is asked is done, what is refused has changed nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.test_exec import cbit
from cli.test_serve import GENERATE, Served, serving
from redirect.conftest import ON_LINUX

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)


@pytest.fixture
def served(made: Path, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(made, tmp_path / "machine")
    with serving(tmp_path / "machine", tmp_path) as daemon:
        yield daemon


def test_reset_and_power_cycle_start_the_platform_anew(any_way: None, served: Served) -> None:
    for do in ("reset", "power-cycle"):
        assert 0 == cbit("exec", "--socket", served.path, "--", sys.executable, "-c", GENERATE).returncode
        assert "INIT" == served.status()["state"]
        before = served.status()["boots"]
        answer = served.ask(do)
        assert answer["ok"]
        assert (before + 1, "UNINIT") == (answer["result"]["boots"], answer["result"]["state"])


def test_frozen_memory_is_a_file_and_the_machine_is_off(
    any_way: None, served: Served, tmp_path: Path
) -> None:
    dump = tmp_path / "dram.bin"
    answer = served.ask("freeze", file=str(dump), write_back=True)
    assert answer["ok"], answer
    assert served.status()["memory"] == answer["result"]["bytes"] == dump.stat().st_size
    assert answer["result"]["pages_written_back"] > 0
    assert not served.status()["on"]
    ended = cbit("exec", "--socket", served.path, "--", sys.executable, "-c", GENERATE)
    assert "No such device" in ended.stderr
    assert "cbit exec: SEV_ISSUE_CMD: the machine is off" in ended.stderr
    for do in ("reset", "freeze"):
        answer = served.ask(do, **({"file": str(dump)} if do == "freeze" else {}))
        assert {"ok": False, "reasons": ["the machine is off: power-cycle turns it on"]} == answer
    assert served.ask("power-cycle", decay=0.0001)["result"]["on"]
    assert 0 == cbit("exec", "--socket", served.path, "--", sys.executable, "-c", GENERATE).returncode


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not a line of JSON"),
        (b"[" * 50000, "not a line of JSON"),
        (b"[]", 'a request is an object with "do"'),
        (b'{"do": 1}', 'a request is an object with "do"'),
        (b'{"do": "fly"}', "'fly' is none of status, reset"),
        (b'{"do": "reset", "decay": 1}', "reset has no field 'decay'"),
        (b'{"do": "power-cycle", "decay": true}', "decay is True: share"),
        (b'{"do": "power-cycle", "decay": "0"}', "decay is '0': share"),
        (b'{"do": "status", "do": "shutdown"}', "'do' is there twice"),
        (b'{"do": "power-cycle", "decay": 0, "decay": 1}', "'decay' is there twice"),
        (b'{"do": "freeze"}', "file is missing"),
        (b'{"do": "freeze", "file": "/tmp/\\u0000"}', "file is '/tmp/\\x00': absolute path"),
        (b'{"do": "freeze", "file": "/tmp/\\ud800"}', "file is '/tmp/\\ud800': absolute path"),
        (b'{"do": "' + b"f" * 70_000 + b'"}', "a line of more than 65536 bytes"),
        (b'{"do": "freeze", "file": "x"}', "x is relative"),
        (b'{"do": "freeze", "file": "/nowhere/x"}', "/nowhere/x: No such file"),
        (b'{"do": "freeze", "file": "/nowhere/x", "decay": 2}', "decay is 2: share"),
        (b'{"do": "power-cycle", "decay": -1}', "decay is -1: share"),
        (b'{"do": "power-cycle", "decay": 1.0000001}', "decay is 1.0000001: share"),
        (b'{"do": "power-cycle", "decay": NaN}', "decay is nan: share"),
        (b'{"do": "power-cycle", "decay": Infinity}', "decay is inf: share"),
        (b'{"do": "power-cycle", "decay": 1' + 400 * b"0" + b"}", "decay is 1000000000"),
        (b'{"do": "attach", "files": ["/dev/nothing"]}', "does not serve /dev/nothing"),
        (b'{"do": "attach", "files": 3}', "files is a list"),
        (b'{"do": "attach", "files": ["/dev/sev"], "extra": 1}', "attach has no field 'extra'"),
    ],
)
def test_a_bad_request_is_refused_and_nothing_moves(served: Served, line: bytes, reason: str) -> None:
    before = served.status()
    answer = served.say(line)
    assert not answer["ok"]
    assert reason in answer["reasons"][0]
    assert before == served.status()


@pytest.mark.parametrize("decay", ["2", "55", "-0.1", "NaN", "Infinity"])
def test_a_machine_that_is_off_is_as_strict(served: Served, tmp_path: Path, decay: str) -> None:
    assert served.ask("freeze", file=str(tmp_path / "dram"))["ok"]
    answer = served.say(b'{"do": "power-cycle", "decay": %s}' % decay.encode())
    assert not answer["ok"]
    assert answer["reasons"][0].startswith(f"decay is {float(decay):g}".lower())
    assert not served.status()["on"]
    assert served.ask("power-cycle", decay=1)["ok"], "all of them"


def test_the_command_line_asks_the_same(served: Served, tmp_path: Path) -> None:
    ended = cbit("control", "--socket", served.path, "--json", "status")
    assert served.status()["free_memory"] == json.loads(ended.stdout)["result"]["free_memory"]
    ended = cbit("control", "--socket", served.path, "freeze")
    assert (1, "cbit control: file is missing: absolute path of the file\n") == (
        ended.returncode,
        ended.stderr,
    )
    assert 2 == cbit("control", "--socket", served.path, "fly").returncode
    words = ["freeze", "--file", tmp_path / "f", "--decay", "0.0001", "--write-back"]
    assert 0 == cbit("control", "--socket", served.path, *words).returncode
    assert 0 == cbit("control", "--socket", served.path, "shutdown").returncode


# ---- where frozen memory goes ----


def left_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to a fifo"])
def test_what_is_no_file_is_refused_at_once_and_the_machine_runs_on(
    served: Served, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "target"
    match kind:
        case "fifo":
            os.mkfifo(target)
        case "folder":
            target.mkdir()
        case "device":
            target = Path("/dev/null")
        case _:
            os.mkfifo(tmp_path / "pipe")
            target.symlink_to(tmp_path / "pipe")
    before, there = served.status(), left_in(tmp_path)
    answer = served.ask("freeze", file=str(target))
    reason = f"{target}: is there already, and is no regular file"
    assert {"ok": False, "reasons": [reason]} == answer
    assert before == served.status()
    assert there == left_in(tmp_path)


def test_an_older_file_is_replaced_as_a_whole(served: Served, tmp_path: Path) -> None:
    (tmp_path / "dram").write_bytes(b"older")
    (tmp_path / "link").symlink_to("dram")
    other_name = tmp_path / "kept"
    os.link(tmp_path / "dram", other_name)
    there = left_in(tmp_path)
    assert served.ask("freeze", file=str(tmp_path / "link"))["ok"]
    assert (tmp_path / "link").is_symlink(), "what it leads to is replaced"
    assert served.status()["memory"] == (tmp_path / "dram").stat().st_size
    assert b"older" == other_name.read_bytes(), "nothing was written in place"
    assert there == left_in(tmp_path)


@pytest.mark.parametrize("older", [None, b"older"])
def test_where_there_is_no_room_nothing_is_left_and_the_machine_runs_on(
    served: Served, tmp_path: Path, older: bytes | None
) -> None:
    dump = tmp_path / "dram"
    if older is not None:
        dump.write_bytes(older)
    before, there = served.status(), left_in(tmp_path)
    # No file of this process may be longer: the kernel answers as a full disk does, with another number.
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    answer = served.ask("freeze", file=str(dump))
    assert {"ok": False, "reasons": [f"{dump}: File too large"]} == answer
    assert before == served.status()
    assert there == left_in(tmp_path)
    assert older == (dump.read_bytes() if older is not None else None)
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert served.ask("freeze", file=str(dump))["ok"]
    assert before["memory"] == dump.stat().st_size


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    ended = cbit("control", "--socket", tmp_path / "nobody", "--wait", "nan", "status")
    reason = "cbit control: argument --wait: 'nan' is no number of seconds"
    assert (2, reason) == (ended.returncode, ended.stderr.splitlines()[-1])
