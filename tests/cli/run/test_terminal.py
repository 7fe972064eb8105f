"""The console as a person and a script meet it: keys, pipes, signals, and the terminal as it was before."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cbit.cli.run.console import GuestConsole
from cbit.cli.run.keys import Keys
from cbit.cli.run.loop import TURN
from cbit.cli.run.screen import Screen
from cbit.cli.run.terminal import Keyboard
from cli.run import kernels
from engine_here import missing

pytestmark = pytest.mark.timeout(900)  # each child has a session of its own, which a busy computer may starve
ECHO = kernels.says("ready\r\n") + kernels.ECHO + kernels.POWER_OFF + kernels.HALT
PATIENCE = 300  # seconds: a busy computer starts a process when it can
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job's children would ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup's this one
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def command(machine: Path, tmp_path: Path) -> list[str]:
    if why := missing():
        pytest.skip(why)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernels.small(ECHO))
    words = ["run", "--kernel", str(kernel), "--memory", "32M", "--cache", "8M", "--state", str(machine)]
    return [sys.executable, "-m", "cbit", *words, "--report", str(tmp_path / "report.json")]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        assert select.select([descriptor], [], [], PATIENCE)[0], seen
        piece = os.read(descriptor, 4096)
        assert piece, seen
        seen += piece
    return seen


def wait_until(is_so: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.05)


@contextmanager
def on(terminal: tuple[int, int], command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start it as the foreground job of a terminal of its own."""
    words = [sys.executable, "-c", TAKE_TERMINAL, *command]
    with subprocess.Popen(
        words, stdin=terminal[1], stdout=terminal[1], stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_every_key_is_the_guests_and_the_terminal_is_restored(
    command: list[str], terminal: tuple[int, int]
) -> None:
    before = termios.tcgetattr(terminal[1])
    with on(terminal, command) as child:
        read_until(terminal[0], b"ready\r\n")
        os.write(terminal[0], b"a\x03b\x01\x01c.")
        assert b"a\x03b\x01c." in read_until(terminal[0], b".")
        assert 0 == child.wait(PATIENCE)
    assert before == termios.tcgetattr(terminal[1])


def test_control_a_x_ends_the_run(command: list[str], terminal: tuple[int, int], tmp_path: Path) -> None:
    before = termios.tcgetattr(terminal[1])
    with on(terminal, command) as child:
        read_until(terminal[0], b"ready\r\n")
        assert before != termios.tcgetattr(terminal[1])
        os.write(terminal[0], b"\x01x")
        assert 130 == child.wait(PATIENCE)
    assert before == termios.tcgetattr(terminal[1])
    assert "ended with Ctrl-A x" == json.loads((tmp_path / "report.json").read_text())["why"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_the_run_in_order(
    command: list[str], terminal: tuple[int, int], tmp_path: Path, number: signal.Signals
) -> None:
    before = termios.tcgetattr(terminal[1])
    with on(terminal, command) as child:
        read_until(terminal[0], b"ready\r\n")
        child.send_signal(number)
        assert 130 == child.wait(PATIENCE)
    assert before == termios.tcgetattr(terminal[1])
    report = json.loads((tmp_path / "report.json").read_text())
    assert ("interrupted", f"interrupted by {number.name}") == (report["end"], report["why"])


STALLS = kernels.reads(0x60_0000) + kernels.POWER_OFF + kernels.HALT
TINY_CACHE = """
import sys
from cbit.cli import main, run
run.LEAST_CACHE = 4096  # what nobody may ask for: a page for the code, and none for what it reads
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("end", ["Ctrl-A x", "SIGTERM"])
def test_a_guest_that_gets_nowhere_can_be_ended(
    command: list[str], terminal: tuple[int, int], tmp_path: Path, end: str
) -> None:
    (tmp_path / "kernel").write_bytes(kernels.small(STALLS))
    words = [sys.executable, "-c", TINY_CACHE, *command[3:], "--cache", "8K"]
    before = termios.tcgetattr(terminal[1])
    with on(terminal, words) as child:
        wait_until(lambda: before != termios.tcgetattr(terminal[1]))
        if end == "SIGTERM":
            child.send_signal(signal.SIGTERM)
        else:
            os.write(terminal[0], b"\x01x")
        assert 130 == child.wait(PATIENCE)
    assert before == termios.tcgetattr(terminal[1])
    assert end in json.loads((tmp_path / "report.json").read_text())["why"]


#: mov ecx, SEV_STATUS; again: rdmsr; jmp again: the engine does each of these in Python.
SLOW = b"\xb9" + (0xC001_0131).to_bytes(4, "little") + b"\x0f\x32\xeb\xfc"


@pytest.mark.parametrize("end", ["Ctrl-A x", "SIGTERM", "time-out"])
def test_a_guest_whose_turn_takes_long_can_be_ended_within_it(
    command: list[str], terminal: tuple[int, int], tmp_path: Path, end: str
) -> None:
    (tmp_path / "kernel").write_bytes(kernels.small(SLOW))
    words = [*command, "--timeout", "0.5"] if end == "time-out" else command
    before = termios.tcgetattr(terminal[1])
    with on(terminal, words) as child:
        wait_until(lambda: before != termios.tcgetattr(terminal[1]))
        if end == "SIGTERM":
            child.send_signal(signal.SIGTERM)
        elif end == "Ctrl-A x":
            os.write(terminal[0], b"\x01x")
        assert (1 if end == "time-out" else 130) == child.wait(PATIENCE)
    report = json.loads((tmp_path / "report.json").read_text())
    assert end in report["why"]
    assert report["executed_blocks"] < TURN


HANGS = """
import os, time
from cbit.cli.run.terminal import Keyboard, ending_signals
keyboard = Keyboard(0)
with ending_signals(lambda name: os.write(1, name.encode()), restore=keyboard.restore), keyboard.raw():
    os.write(1, b"raw ")
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_the_terminal_is_restored_when_a_second_signal_kills(
    terminal: tuple[int, int], number: signal.Signals
) -> None:
    before = termios.tcgetattr(terminal[1])
    with on(terminal, [sys.executable, "-c", HANGS]) as child:
        read_until(terminal[0], b"raw ")
        assert before != termios.tcgetattr(terminal[1])
        child.send_signal(number)
        read_until(terminal[0], number.name.encode())
        assert before != termios.tcgetattr(terminal[1])
        child.send_signal(number)
        assert -number == child.wait(PATIENCE)
    assert before == termios.tcgetattr(terminal[1])


def test_what_comes_through_a_pipe_is_typed_once_the_guest_listens(command: list[str]) -> None:
    done = subprocess.run(command, input=b"typed early.", capture_output=True, timeout=PATIENCE, check=False)
    assert (0, b"ready\r\ntyped early.") == (done.returncode, done.stdout)


def test_what_comes_through_a_pipe_waits_for_the_receivers_fifo_too(
    command: list[str], tmp_path: Path
) -> None:
    """Linux enables its interrupt first: a turn that ends between the two must not lose what is typed."""
    slow = kernels.spins(TURN - 20_000) + kernels.LISTENS + kernels.spins(40_000) + kernels.FIFO_ON
    (tmp_path / "kernel").write_bytes(kernels.small(slow + kernels.ECHO + kernels.POWER_OFF + kernels.HALT))
    done = subprocess.run(command, input=b"typed early.", capture_output=True, timeout=PATIENCE, check=False)
    assert (0, b"typed early.") == (done.returncode, done.stdout)


def test_what_cbit_says_begins_a_line_where_both_go_to_one_place(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(kernels.small(kernels.says("login: ") + kernels.FOREVER))
    words = [*command, "--until", "login: "]
    for together in (True, False):
        stderr = subprocess.STDOUT if together else subprocess.PIPE
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=PATIENCE,
            check=True,
        )
        said = b"login: \ncbit run: the text of --until has come"
        assert (said in done.stdout) if together else (done.stdout == b"login: ")


def test_a_reader_that_goes_away_ends_the_run(command: list[str]) -> None:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        try:
            assert 130 == child.wait(PATIENCE)
        finally:
            child.kill()


def test_a_window_that_is_closed_ends_the_run(command: list[str], tmp_path: Path) -> None:
    """Its terminal was where cbit speaks, too: nothing that it says arrives any more."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", TAKE_TERMINAL, *command]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as child:
        try:
            os.close(theirs)
            read_until(ours, b"ready\r\n")
            os.close(ours)
            assert 130 == child.wait(PATIENCE)
        finally:
            child.kill()
    report = json.loads((tmp_path / "report.json").read_text())
    assert ("interrupted", ["ready", ""]) == (report["end"], report["console"])


@pytest.mark.parametrize("closed", [False, True], ids=["room to say so", "and none to say so"])
def test_a_console_without_room_is_named_and_the_report_is_written(
    command: list[str], tmp_path: Path, *, closed: bool
) -> None:
    with Path("/dev/full").open("wb") as full:
        stderr = full if closed else subprocess.PIPE
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=stderr, timeout=PATIENCE, check=False
        )
    assert 2 == done.returncode
    assert closed or done.stderr.endswith(b"cbit run: standard output: No space left on device\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert ("unwritten", ["ready", ""]) == (report["end"], report["console"])


@pytest.mark.parametrize(
    ("device", "code", "end"), [("/dev/full", 2, "unwritten"), ("/dev/null", 0, "power-off")]
)
def test_a_good_end_whose_words_are_lost_is_none(
    command: list[str], tmp_path: Path, device: str, code: int, end: str
) -> None:
    (tmp_path / "kernel").write_bytes(kernels.small(kernels.says("bye\r\n") + kernels.POWER_OFF))
    with Path(device).open("wb") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, timeout=PATIENCE, check=False)
    assert code == done.returncode
    assert end == json.loads((tmp_path / "report.json").read_text())["end"]


def test_the_terminal_is_restored_when_the_run_fails(terminal: tuple[int, int]) -> None:
    before = termios.tcgetattr(terminal[1])
    keyboard = Keyboard(terminal[1])
    keyboard.is_terminal = True  # its foreground job is somebody else: a test has no terminal of its own
    keyboard._descriptor = terminal[1]
    with suppress(ZeroDivisionError), keyboard.raw():
        assert before != termios.tcgetattr(terminal[1])
        raise ZeroDivisionError
    assert before == termios.tcgetattr(terminal[1])


def test_a_keyboard_that_nobody_uses_is_closed_at_its_end() -> None:
    ours, theirs = os.pipe()
    keyboard = Keyboard(ours)
    assert (b"", True) == (keyboard.typed(), keyboard.is_open)
    os.write(theirs, b"keys")
    assert b"keys" == keyboard.typed()
    os.close(theirs)
    assert (b"", False) == (keyboard.typed(), keyboard.is_open)
    begun = time.monotonic()
    assert keyboard.wait(10) is False
    assert time.monotonic() - begun < 5
    os.close(ours)
    assert Keyboard(None).typed() == b""


@pytest.fixture
def typing() -> Iterator[tuple[Keyboard, int]]:
    """A keyboard, and where to type."""
    theirs, ours = os.pipe()
    yield Keyboard(theirs), ours
    os.close(theirs)
    os.close(ours)


def test_escapes_are_for_terminals_alone(typing: tuple[Keyboard, int]) -> None:
    keyboard, ours = typing
    keys = Keys(keyboard)
    os.write(ours, b"\x01x")
    assert (b"\x01x", "") == (keys.of(0)(), keys.end_asked)
    keyboard.is_terminal = True
    for written, read in ((b"a\x01", b"a"), (b"x", b""), (b"\x01?b", b"b")):
        os.write(ours, written)
        assert read == keys.of(0)()
    assert "ended with Ctrl-A x" == keys.end_asked


def test_a_terminals_keys_are_one_guests_and_a_pipe_is_typed_at_all(typing: tuple[Keyboard, int]) -> None:
    keyboard, ours = typing
    keys = Keys(keyboard, guests=2)
    os.write(ours, b"all")
    assert [b"all", b"all", b""] == [keys.of(0)(), keys.of(1)(), keys.of(1)()]
    keyboard.is_terminal = True
    os.write(ours, b"one\x01ntwo\x01n\x01\x01")
    assert [b"two", b"one\x01"] == [keys.of(1)(), keys.of(0)()]


@pytest.mark.parametrize(
    ("typing_at", "expected"),
    [
        (None, b"a  | x1\nbob | y1\na  | x2\nbob | y2"),
        (1, b"a  | x1\nbob | y1\nbob | y\r\na  | x2\nbob | 2\r\n"),
    ],
)
def test_lines_of_several_guests_stay_whole(typing_at: int | None, expected: bytes) -> None:
    shown = bytearray()
    screen = Screen(shown.extend, ["a", "bob"], typing=lambda: typing_at)
    for number, data in ((0, b"x1\nx"), (1, b"y1\ny"), (0, b"2\n"), (1, b"2")):
        screen.of(number)(data)
    screen.close()
    assert expected.replace(b"a  |", b"a   |") == shown.removesuffix(b"\r\n") + (
        b"\r\n" if typing_at else b""
    )


def test_a_text_is_seen_across_pieces_and_shown_once() -> None:
    shown: list[bytes] = []
    console = GuestConsole(show=shown.append, typed=lambda: b"", until=b"/ #")
    for byte in b"\x1b[1mboot\x1b[0m\r\n/ ":
        console.write(byte)
    console.flush()
    assert not console.seen
    console.write(ord("#"))
    assert console.seen
    console.flush()
    console.flush()
    assert [b"\x1b[1mboot\x1b[0m\r\n", b"/ ", b"#"] == shown
    assert ["boot", "/ #"] == console.lines
