"""What the caller closed, or what is full, changes neither a program's exit code nor what it writes where."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.test_exec import TRANSCRIPT, cbit
from redirect.conftest import ON_LINUX, Way, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

#: Write which of its descriptors 0 to 2 a program finds open, and end with 9.
SEEN = """
import os, sys
seen = []
for number in range(3):
    try:
        os.fstat(number)
        seen.append(number)
    except OSError:
        pass
open(sys.argv[1], "w").write(repr(seen))
sys.exit(9)
"""


def in_a_shell(redirections: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run cbit as a shell does that closes or opens descriptors for it."""
    line = shlex.join([sys.executable, "-m", "cbit", *map(str, words)])
    return subprocess.run(
        ["sh", "-c", f"exec {line} {redirections}"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("closed", "left"),
    [("0<&-", [1, 2]), ("1>&-", [0, 2]), ("2>&-", [0, 1]), ("0<&- 1>&- 2>&-", [])],
)
def test_a_program_ends_as_ever_and_finds_closed_what_is_closed(
    mechanism: Way, made: Path, tmp_path: Path, closed: str, left: list[int]
) -> None:
    program = [sys.executable, "-c", SEEN, tmp_path / "seen"]
    ended = in_a_shell(closed, "exec", "--state", made, "--mechanism", mechanism.mechanism, "--", *program)
    assert (9, "", "") == (ended.returncode, ended.stdout, ended.stderr)
    assert left == json.loads((tmp_path / "seen").read_text())


@pytest.mark.parametrize(("closed", "left"), [("1>&-", [0, 1, 2]), ("2>&-", [0]), ("1>&- 2>&-", [0])])
def test_as_data_too(any_way: None, made: Path, tmp_path: Path, closed: str, left: list[int]) -> None:
    """Its standard output is our standard error then; where that is closed, so is this."""
    program = [sys.executable, "-c", SEEN, tmp_path / "seen"]
    ended = in_a_shell(closed, "exec", "--json", "--state", made, "--", *program)
    assert (9, "") == (ended.returncode, ended.stderr)
    assert left == json.loads((tmp_path / "seen").read_text())
    if "1" in closed:
        assert "" == ended.stdout
    else:
        assert 9 == json.loads(ended.stdout)["result"]["exit_code"]


def test_reasons_do_not_go_to_where_the_program_writes(any_way: None, made: Path, client: Path) -> None:
    ended = in_a_shell("2>&-", "exec", "--state", made, "--", client)
    lines = ended.stdout.splitlines()
    assert (42, TRANSCRIPT.splitlines()[0]) == (ended.returncode, lines[0])
    assert len(TRANSCRIPT.splitlines()) == len(lines)
    assert not [line for line in lines if line.startswith("cbit")]


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2</dev/null"])
def test_reasons_that_nobody_takes_change_nothing(
    any_way: None, made: Path, client: Path, redirection: str
) -> None:
    ended = in_a_shell(redirection, "exec", "--state", made, "--", client)
    assert (42, len(TRANSCRIPT.splitlines())) == (ended.returncode, len(ended.stdout.splitlines()))
    ended = in_a_shell(redirection, "exec", "--", "sh", "-c", "exit 3")
    assert (3, "") == (ended.returncode, ended.stdout), "a machine made for this run is announced first"


def test_an_object_that_nobody_takes_leaves_the_programs_code(any_way: None, made: Path) -> None:
    ended = in_a_shell(">/dev/full", "exec", "--json", "--state", made, "--", "sh", "-c", "exit 3")
    assert (3, "cbit exec: standard output: No space left on device\n") == (ended.returncode, ended.stderr)
    ended = in_a_shell(">/dev/full", "exec", "--json", "--state", made, "--", "true")
    assert 0 == ended.returncode
    ended = in_a_shell(">&-", "exec", "--json", "--state", "nowhere", "--", "true")
    assert (125, "", "") == (ended.returncode, ended.stdout, ended.stderr)
    ended = in_a_shell("2>&-", "exec", "--state", "nowhere", "--", "true")
    assert (125, "") == (ended.returncode, ended.stdout), "reasons are no output"


def test_of_other_commands_an_answer_that_is_lost_is_no_success() -> None:
    for as_json in ([], ["--json"]):
        ended = in_a_shell(">/dev/full", "capabilities", *as_json)
        expected = "cbit capabilities: standard output: No space left on device\n"
        assert (2, expected) == (ended.returncode, ended.stderr)
    ended = in_a_shell(">&-", "capabilities")
    assert (0, "") == (ended.returncode, ended.stderr), "nobody wants it"


def test_a_daemon_without_output_ends_as_ever(any_way: None, made: Path, tmp_path: Path) -> None:
    line = shlex.join([sys.executable, "-m", "cbit", "serve", "--state", str(made), "--socket", "s"])
    with subprocess.Popen(
        ["sh", "-c", f"exec {line} >&- 2>log <&-"], env=environment(), cwd=tmp_path
    ) as daemon:
        try:
            asked = cbit("control", "--socket", tmp_path / "s", "--wait", "60", "shutdown")
            assert 0 == asked.returncode, asked.stderr
            assert 0 == daemon.wait(60)
        finally:
            daemon.kill()
    log = (tmp_path / "log").read_text().splitlines()
    assert ["cbit serve: shutdown: done", "cbit serve: the machine is off"] == log[1:]


def test_a_key_service_without_error_output_serves(any_way: None, made: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "cbit", "kds", "--state", str(made), "--listen", f"127.0.0.1:{port}"]
    line = f"exec {shlex.join(words)} >out 2>&- <&-"
    with subprocess.Popen(["sh", "-c", line], env=environment(), cwd=tmp_path) as daemon:
        try:
            assert answered(port, daemon).startswith(b"HTTP/")
            daemon.send_signal(signal.SIGTERM)
            assert 0 == daemon.wait(60)
        finally:
            daemon.kill()
    assert "listens at" not in (tmp_path / "out").read_text()


def answered(port: int, daemon: subprocess.Popen[bytes]) -> bytes:
    """Ask until there is somebody who answers."""
    while daemon.poll() is None:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 60) as link:
            link.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
            return link.recv(4096)
        time.sleep(0.05)
    return b""
