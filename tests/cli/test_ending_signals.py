"""A command that a signal ends leaves no machine, no key and no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from engine_here import missing
from redirect.conftest import ON_LINUX, environment

PATIENCE_S = 100
#: Commands that make a machine of their own and are busy with it for a while.
BUSY = {
    "bench launch": ["bench", "launch", "--rounds", "300"],
    "bench guest": ["bench", "guest", "--rounds", "300"],
    "attack run": ["attack", "run", "block-move-xex", "--set", "corpus_mib=128", "--set", "memory=256"],
    "attack matrix": ["attack", "matrix", "--jobs", "2"],
    "demo": ["demo"],
    "exec": ["exec", "--", "sleep", "100"],
}
EXECUTES = {"bench guest", "attack run", "attack matrix"}
IGNORES_HANGUP = (
    "import os, signal, sys; signal.signal(1, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
)


@contextmanager
def started(scratch: Path, *words: str, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own; what is left of it at the end is killed."""
    with subprocess.Popen(
        [*before, sys.executable, "-m", "cbit", *words],
        env=environment() | {"TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            for pid in [process.pid, *session(process.pid)]:
                if process.poll() is None or pid != process.pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def session(leader: int) -> dict[int, str]:
    """Name the processes of a session by their numbers, its leader and the dead aside."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        state, _, _, of, *_ = rest.split()
        if int(of) == leader and state != "Z" and entry.parent.name != str(leader):
            found[int(entry.parent.name)] = name
    return found


def wait_until(is_true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


@pytest.mark.skipif(not ON_LINUX, reason="machines execute on Linux x86-64")
@pytest.mark.parametrize(
    ("command", "number"), [*((command, signal.SIGTERM) for command in BUSY), ("bench launch", signal.SIGHUP)]
)
def test_nothing_of_a_busy_command_is_left(tmp_path: Path, command: str, number: signal.Signals) -> None:
    if command in EXECUTES and missing():
        pytest.skip(missing())
    with started(tmp_path, *BUSY[command]) as process:
        wait_until(lambda: files(tmp_path) or process.poll() is not None)
        if command == "exec":  # its program is there
            wait_until(lambda: "sleep" in session(process.pid).values() or process.poll() is not None)
        elif command != "demo":  # whose story is soon told
            time.sleep(1)  # children and guests, where there are some
        os.killpg(process.pid, number)  # twice, as `timeout` does: its child, and then the group
        process.send_signal(number)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
        wait_until(lambda: not session(process.pid))
    assert [] == files(tmp_path)
    if command == "exec":  # whose code is its program's
        assert -number == process.returncode
        return
    assert 128 + number == process.returncode, said
    assert f"cbit {command.partition(' ')[0]}: interrupted by {number.name}" == said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_our_caller_ignores_stays_ignored(tmp_path: Path, number: signal.Signals) -> None:
    before = (sys.executable, "-c", IGNORES_HANGUP) if number == signal.SIGHUP else ()
    with started(tmp_path, "bench", "launch", "--rounds", "300", before=before) as process:
        wait_until(lambda: files(tmp_path))
        process.send_signal(number)
        if number == signal.SIGHUP:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
    assert 128 + signal.SIGTERM == process.returncode
