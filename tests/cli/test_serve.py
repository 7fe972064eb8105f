"""``cbit serve``: one machine for many programs, asked and ended through its socket, safe at any moment."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.test_exec import REASONS, TRANSCRIPT, cbit, told
from redirect.conftest import ON_LINUX, Way, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

CERT = 0x824
PATIENCE_S = 100  #: on however busy a computer; what goes wrong is mostly seen at once


@pytest.fixture
def machine(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "machine"
    shutil.copytree(made, copy)
    return copy


class Served:
    """A running daemon."""

    def __init__(self, process: subprocess.Popen[str], path: Path, log: Path) -> None:
        self.process, self.path, self._log = process, path, log

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        return self.say(json.dumps({"do": do, **fields}).encode())

    def say(self, line: bytes) -> dict[str, Any]:
        with self.connect() as sock:
            sock.sendall(line + b"\n")
            answer: dict[str, Any] = json.loads(sock.makefile("rb").readline())
            return answer

    def status(self) -> dict[str, Any]:
        answer = self.ask("status")
        assert answer["ok"]
        result: dict[str, Any] = answer["result"]
        return result

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        return sock

    def attach(self) -> socket.socket:
        sock = self.connect()
        sock.sendall(b'{"do": "attach", "files": ["/dev/sev"]}\n')
        assert json.loads(read_line(sock))["ok"]
        return sock

    def settled(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status until something holds: an end is noticed a moment after it."""
        until = time.monotonic() + PATIENCE_S
        while not holds(status := self.status()):
            assert time.monotonic() < until, f"it never came to hold: {status}"
            time.sleep(0.02)
        return status


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, "closed"
        line += byte
    return line


def start(machine: Path, path: Path, log: Path, *more: str) -> Served:
    words = [sys.executable, "-m", "cbit", "serve", "--state", str(machine), "--socket", str(path), *more]
    with log.open("a") as errors:
        process = subprocess.Popen(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )
    served = Served(process, path, log)
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            served.status()
            return served
        except OSError:
            time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"the daemon does not serve: {log.read_text()}")


@contextmanager
def serving(machine: Path, folder: Path) -> Iterator[Served]:
    served = start(machine, folder / "cbit.sock", folder / "log")
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()


@pytest.fixture
def served(machine: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(machine, tmp_path) as daemon:
        yield daemon


def test_a_served_machine_answers_as_one_of_our_own(
    mechanism: Way,
    served: Served,
    client: Path,
) -> None:
    ended = cbit("exec", "--socket", served.path, "--mechanism", mechanism.mechanism, "--", client)
    assert (42, TRANSCRIPT.replace("API 1.51, build 3", "API 0.17, build 48")) == (
        ended.returncode,
        ended.stdout,
    )
    lines, expected = told(ended), REASONS.splitlines()
    expected[-1] = "cbit exec: the answer: the caller has no such memory at 0x8"
    assert len(expected) == len(lines)
    for want, line in zip(expected, lines, strict=True):
        assert line.startswith(want)
    reasons = [line.partition("process ")[2].partition(": ")[2] for line in served.log if "process" in line]
    assert len(expected) - 1 == len(reasons), "the last is found out by the launcher"
    for want, line in zip(expected[:-1], reasons, strict=True):
        assert line.startswith(want.removeprefix("cbit exec: "))


def test_what_one_program_does_the_next_one_sees(any_way: None, served: Served, client: Path) -> None:
    assert "UNINIT" == served.status()["state"]
    assert 0 == cbit("exec", "--socket", served.path, "--", sys.executable, "-c", GENERATE).returncode
    status = served.settled(lambda status: status["clients"] == [])
    assert "INIT" == status["state"]
    assert 1 == status["boots"]


GENERATE = """
import fcntl, os, struct
fd = os.open("/dev/sev", os.O_RDWR)
fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 4, 0, 0))
"""

READ_ONLY = """
import ctypes, errno, fcntl, os, struct
room = ctypes.create_string_buffer(64)
for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    fd = os.open("/dev/sev", mode)
    for command, data in ((1, ctypes.addressof(room)), (2, 0), (4, 0), (0, 0)):
        try:
            fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", command, data, 0))
            print(mode, command, "ok")
        except OSError as error:
            print(mode, command, errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("own", [True, False], ids=["own", "served"])
def test_a_descriptor_that_is_open_for_reading_changes_nothing(
    mechanism: Way, own: bool, machine: Path, tmp_path: Path
) -> None:
    python = ["--mechanism", mechanism.mechanism, "--", sys.executable, "-c", READ_ONLY]
    if own:
        ended = cbit("exec", "--state", machine, *python)
    else:
        with serving(machine, tmp_path) as served:
            ended = cbit("exec", "--socket", served.path, *python)
    lines = ended.stdout.splitlines()
    assert ["0 1 ok", "0 2 EPERM", "0 4 EPERM", "0 0 EPERM"] == lines[:4], ended.stderr
    assert [f"{mode} {command} ok" for mode in (1, 2) for command in (1, 2, 4, 0)] == lines[4:]
    assert "cbit exec: PEK_GEN: the device is not open for writing" in ended.stderr


def test_only_its_owner_may_connect(served: Served) -> None:
    mode = served.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert 0o600 == stat.S_IMODE(mode)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(served: Served, machine: Path, number: int) -> None:
    with served.attach():
        served.process.send_signal(number)
        assert 0 == served.process.wait(PATIENCE_S)
    assert not served.path.exists()
    assert "cbit serve: the machine is off" == served.log[-1]
    assert 0 == cbit("exec", "--state", machine, "--", "true").returncode, "the folder is free"


def test_shutdown_ends_it_and_says_so(served: Served) -> None:
    assert {"ok": True, "result": {}} == served.ask("shutdown")
    assert 0 == served.process.wait(PATIENCE_S)
    assert not served.path.exists()


def test_a_folder_has_one_machine_and_a_socket_one_daemon(
    served: Served, machine: Path, tmp_path: Path
) -> None:
    ended = cbit("serve", "--state", machine, "--socket", tmp_path / "other.sock")
    assert (2, "") == (ended.returncode, ended.stdout)
    assert "in use by another cbit process" in ended.stderr
    assert not (tmp_path / "other.sock").exists()
    copy = tmp_path / "copy"
    shutil.copytree(machine, copy)
    ended = cbit("serve", "--state", copy, "--socket", served.path)
    assert 2 == ended.returncode
    assert "another cbit listens there" in ended.stderr
    assert served.status()["on"], "the first one does not notice"


def test_a_dead_daemons_socket_is_replaced(machine: Path, tmp_path: Path) -> None:
    with serving(machine, tmp_path) as first:
        first.process.kill()
        first.process.wait()
        assert first.path.exists()
    with serving(machine, tmp_path) as second:
        assert second.status()["on"]


def test_a_file_that_is_no_socket_is_left_alone(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    ended = cbit("serve", "--state", machine, "--socket", tmp_path / "precious")
    assert "exists and is no socket" in ended.stderr
    assert "text" == (tmp_path / "precious").read_text()


def test_a_path_that_is_too_long_is_said_to_be(machine: Path, tmp_path: Path) -> None:
    ended = cbit("serve", "--state", machine, "--socket", tmp_path / ("x" * 120))
    assert "a socket's path has at most" in ended.stderr


def test_a_socket_where_nobody_listens_is_125(any_way: None, tmp_path: Path) -> None:
    ended = cbit("exec", "--socket", tmp_path / "nothing", "--", "true")
    assert 125 == ended.returncode
    assert ended.stderr.startswith(
        f"cbit exec: {tmp_path / 'nothing'}: No such file or directory; 'cbit serve"
    )
    ended = cbit("control", "--socket", tmp_path / "nothing", "status")
    assert 0 != ended.returncode


# ---- clients that misbehave ----

OPEN = struct.pack("<IB", 10, 1) + struct.pack("<IIBB", 1, 1, 0, 1)
STATUS = struct.pack("<IB", 32, 2) + struct.pack("<IIQ", 1, 0xC0105300, 0x1000) + struct.pack("<IQI", 3, 0, 0)


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("<IB", 0, 99),
        struct.pack("<IB", 0, 1),
        struct.pack("<IB", 3, 3) + b"abc",
        struct.pack("<IB", 4, 3) + struct.pack("<I", 5),
        struct.pack("<IB", 2**32 - 1, 2),
        OPEN + OPEN,
        struct.pack("<IB", 10, 1) + struct.pack("<IIBB", 1, 1, 7, 1),
        STATUS,
        struct.pack("<IB", 0, 4),
    ],
    ids=lambda data: data.hex()[:24],
)
def test_nonsense_ends_a_connection_and_no_other(served: Served, nonsense: bytes) -> None:
    before = served.status()
    with served.attach() as other, served.attach() as sock:
        other.sendall(OPEN)
        sock.sendall(nonsense)
        while sock.recv(4096):
            pass
        assert other.recv(4096), "its own answer"
        assert 1 == len(served.settled(lambda status: len(status["clients"]) == 1)["clients"])
    assert before == served.settled(lambda status: status["clients"] == [])
    assert any("is cut off" in line for line in served.log)


def test_a_launcher_that_dies_in_a_command_is_forgotten(served: Served) -> None:
    before = served.status()
    for _ in range(20):
        with served.attach() as sock:
            sock.sendall(OPEN + struct.pack("<IB", 16, 2) + struct.pack("<IIQ", 1, 0xC0105300, 0x1000))
            assert sock.recv(4096)  # the daemon waits for memory that nobody will send
    assert before == served.settled(lambda status: status["clients"] == [])


def test_a_launcher_that_is_silent_in_a_command_is_cut_off(served: Served) -> None:
    with served.attach() as sock:
        sock.sendall(OPEN + struct.pack("<IB", 16, 2) + struct.pack("<IIQ", 1, 0xC0105300, 0x1000))
        assert [] == served.status()["clients"], "asked meanwhile, answered after its patience"
    assert any("has not answered for 5.0 s" in line for line in served.log)


def test_a_program_whose_machine_dies_gets_enodev(any_way: None, served: Served) -> None:
    script = "import os, signal\n" + READ_ONLY.replace(
        "for command, data in", f"os.kill({served.process.pid}, signal.SIGKILL)\n    for command, data in"
    )
    ended = cbit("exec", "--socket", served.path, "--", sys.executable, "-c", script)
    assert "0 1 ENODEV" in ended.stdout
    assert 1 == ended.stderr.count("the served machine is lost")


def test_many_programs_at_once_are_all_answered(any_way: None, served: Served, client: Path) -> None:
    before = served.status()
    script = "import ctypes, fcntl, os, struct\nroom = ctypes.create_string_buffer(64)\n" + (
        "fd = os.open('/dev/sev', os.O_RDWR)\n"
        "for _ in range(200):\n"
        "    fcntl.ioctl(fd, 0xC0105300, struct.pack('<IQI', 1, ctypes.addressof(room), 0))\n"
    )
    words = [
        sys.executable,
        "-m",
        "cbit",
        "exec",
        "--socket",
        str(served.path),
        "--",
        sys.executable,
        "-c",
        script,
    ]
    running = [
        subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    assert [(0, b"")] * 6 == [
        (one.wait(PATIENCE_S), one.stderr.read() if one.stderr else b"") for one in running
    ]
    for one in running:
        assert one.stderr
        one.stderr.close()
    assert before == served.settled(lambda status: status["clients"] == [])


# ---- kills ----


@pytest.mark.slow
def test_the_state_survives_a_kill_at_any_moment(any_way: None, machine: Path, tmp_path: Path) -> None:
    """Each round a program makes new identities as fast as it can, and the daemon is killed meanwhile."""
    moments = random.Random(20)
    script = "import errno, fcntl, os, struct\nfd = os.open('/dev/sev', os.O_RDWR)\ntry:\n" + (
        "    while True:\n"
        "        for command in (4, 2, 0):\n"
        "            fcntl.ioctl(fd, 0xC0105300, struct.pack('<IQI', command, 0, 0))\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    for _ in range(40):
        with serving(machine, tmp_path) as served:
            words = [sys.executable, "-m", "cbit", "exec", "--socket", str(served.path), "--"]
            with subprocess.Popen(
                [*words, sys.executable, "-c", script],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as program:
                served.settled(lambda status: len(status["clients"]) == 1)
                time.sleep(moments.random() * 0.2)
                served.process.kill()
                out, _ = program.communicate(timeout=PATIENCE_S)
            assert out in {"ENODEV\n", ""}, out
            served.process.wait()
    chain, certs = tmp_path / "chain.cert", machine / "certs"
    with serving(machine, tmp_path) as served:
        assert (
            0 == cbit("exec", "--socket", served.path, "--", sys.executable, "-c", EXPORT, chain).returncode
        )
        assert "INIT" == served.status()["state"]
    words = ["owner", "verify", str(chain), str(certs / "cek.cert"), "--ca", str(certs / "ask_ark.cert")]
    assert 0 == cbit(*words, "--trust", certs / "ark.cert").returncode


EXPORT = """
import ctypes, fcntl, os, struct, sys
pdh, chain = ctypes.create_string_buffer(0x824), ctypes.create_string_buffer(0x186c)
asked = struct.pack("<QIQI", ctypes.addressof(pdh), 0x824, ctypes.addressof(chain), 0x186c)
want = ctypes.create_string_buffer(asked)
fd = os.open("/dev/sev", os.O_RDWR)
fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 5, ctypes.addressof(want), 0))
open(sys.argv[1], "wb").write(pdh.raw + chain.raw)
"""
