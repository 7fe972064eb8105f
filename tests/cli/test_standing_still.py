"""Whoever stands still holds up nobody else: a daemon its launchers, a reader of messages cbit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cbit.redirect.remote import NoMachineThere, ask
from cli.test_serve import PATIENCE_S, Served, machine, served, serving
from redirect.conftest import ON_LINUX, Way, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

__all__ = ["machine", "served"]

ASKS_ON = """
import ctypes, fcntl, os, struct
room = ctypes.create_string_buffer(64)
fd = os.open("/dev/sev", os.O_RDWR)
while True:
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 1, ctypes.addressof(room), 0))
    print("asked", flush=True)
"""

#: What it expects it takes as an answer, and says how the command ended.
EXPECTS_IT = (
    """
import errno, signal
signal.signal(signal.SIGTERM, lambda *_: print("expected", flush=True))
try:
"""
    + "".join(f"    {line}\n" for line in ASKS_ON.strip().splitlines())
    + """
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""
)


@contextmanager
def executing(way: str, served: Served, *program: str) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "cbit", "exec", "--mechanism", way, "--socket", str(served.path), "--"]
    running = subprocess.Popen(
        [*words, *program],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def until_it_asks_and_nobody_answers(running: subprocess.Popen[str], served: Served) -> None:
    assert running.stdout
    assert "asked\n" == running.stdout.readline()
    served.process.send_signal(signal.SIGSTOP)
    while True:  # what it was told before
        try:
            running.wait(0.5)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(running.communicate())


def test_a_program_whose_daemon_stands_still_can_be_ended(mechanism: Way, served: Served) -> None:
    with executing(mechanism.mechanism, served, sys.executable, "-c", ASKS_ON) as running:
        until_it_asks_and_nobody_answers(running, served)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=PATIENCE_S)
        assert -signal.SIGTERM == running.returncode, err
        assert "the served machine is lost: a signal ends us, and the other side does not answer" in err


def test_one_that_expects_the_signal_gets_it_and_its_machine_is_lost(any_way: None, served: Served) -> None:
    with executing("opens", served, sys.executable, "-c", EXPECTS_IT) as running:
        until_it_asks_and_nobody_answers(running, served)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=PATIENCE_S)
        assert 0 == running.returncode, err
        assert {"ENODEV", "expected"} == set(out.split()) - {"asked"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_one_that_waits_for_a_daemon_can_be_ended(
    any_way: None, served: Served, number: signal.Signals, code: int
) -> None:
    served.process.send_signal(signal.SIGSTOP)
    with executing("opens", served, "echo", "it runs") as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(2)
        running.send_signal(number)
        out, _ = running.communicate(timeout=PATIENCE_S)
        assert (code, "") == (running.returncode, out)


def test_a_queue_that_nobody_empties_is_said(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"
    moments = iter(range(1000))
    with socket.socket(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as first:
        door.bind(str(path))
        door.listen(0)
        first.connect(str(path))
        with pytest.raises(NoMachineThere, match="whoever listens there lets nobody in"):
            ask(path, {"do": "status"}, clock=lambda: 20.0 * next(moments))


# ---- a reader of messages ----

UNKNOWN = 99  #: a command that there is none of


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, with room for two pages more."""
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    os.write(writing, bytes(size - 2 * select.PIPE_BUF))
    yield reading, writing
    os.close(reading)
    os.close(writing)


def drained(reading: int) -> str:
    os.set_blocking(reading, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(reading, 1 << 16):
            found += more
    os.set_blocking(reading, True)
    return found.strip(b"\0").decode()


def test_a_log_that_nobody_reads_stops_no_daemon(
    machine: Path, tmp_path: Path, unread: tuple[int, int]
) -> None:
    reading, writing = unread
    path = tmp_path / "cbit.sock"
    words = [sys.executable, "-m", "cbit", "serve", "--state", str(machine), "--socket", str(path)]
    process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stderr=writing, text=True)
    try:
        served = Served(process, path, tmp_path / "none")
        while not path.exists():
            assert process.poll() is None
        for _ in range(100):
            assert not served.ask("fly")["ok"]
        first = drained(reading)
        assert 20 < first.count("a request is refused") < 100
        assert not served.ask("fly")["ok"]
        lost = 100 - first.count("a request is refused")
        told = f"cbit serve: {lost} lines before this one could not be written\n"
        assert drained(reading).startswith(f"{told}cbit serve: a request is refused: ")
        for _ in range(1000):
            served.ask("fly")
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()


def test_a_line_of_any_length_stops_no_daemon(machine: Path, tmp_path: Path) -> None:
    with serving(machine, tmp_path) as served:
        assert not served.ask("f" * 40_000)["ok"]
        served.ask("fly")
        cut, whole = served.log[-2:]
    assert select.PIPE_BUF == len(f"{cut}\n".encode())
    assert cut.endswith("fff [...]")
    assert whole.endswith('shutdown"]')


def test_reasons_that_nobody_reads_stop_no_program(
    mechanism: Way, made: Path, unread: tuple[int, int]
) -> None:
    _, writing = unread
    program = (
        "import fcntl, os, struct\nfd = os.open('/dev/sev', os.O_RDWR)\nrefused = 0\n"
        "for _ in range(300):\n"
        "    try:\n"
        f"        fcntl.ioctl(fd, 0xC0105300, struct.pack('<IQI', {UNKNOWN}, 0, 0))\n"
        "    except OSError:\n"
        "        refused += 1\n"
        "print(refused)\n"
    )
    words = [sys.executable, "-m", "cbit", "exec", "--mechanism", mechanism.mechanism, "--state", str(made)]
    ended = subprocess.run(
        [*words, "--", sys.executable, "-c", program],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (0, "300\n") == (ended.returncode, ended.stdout)
