"""The launcher is transparent: codes and signals pass, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redirect.conftest import WAYS, Way, begin, command, environment, insist, line, run

PATIENCE_S = 100


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("code", [0, 1, 125, 255])
def test_the_exit_code_is_the_programs(mechanism: Way, client: Path, report_at: Path, code: int) -> None:
    assert code == run(mechanism, report_at, client, "exit", code).code


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE, signal.SIGUSR1]
)
def test_the_signal_that_ends_it_ends_the_launcher(
    mechanism: Way, client: Path, report_at: Path, number: signal.Signals
) -> None:
    assert -number == run(mechanism, report_at, client, "die", int(number)).code


@pytest.mark.parametrize(
    ("program", "code", "why"),
    [
        ("no-such-program", 127, "No such file or directory"),
        ("/no/such/program", 127, "No such file or directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/", 126, "Permission denied"),
    ],
)
def test_what_is_no_program_is_said(
    mechanism: Way, report_at: Path, program: str, code: int, why: str
) -> None:
    ran = run(mechanism, report_at, program)
    assert (code, f"cbit: {program}: {why}\n") == (ran.code, ran.err)


#: A launcher whose child has a fault of its own, before the program or in its place.
BROKEN = """
import sys
from cbit.redirect import door
from redirect.run import main
def broken(*words):
    raise ValueError("broken")
setattr(door, sys.argv.pop(1), broken)
sys.exit(main())
"""


@pytest.mark.parametrize("where", ["_prepare", "_execute"])
def test_what_goes_wrong_in_the_child_is_said(mechanism: Way, where: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN, where, *mechanism.words, "--", "true"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    reason = "cbit: the program's process failed: ValueError('broken')\n"
    assert (125, reason) == (ended.returncode, ended.stderr)


def test_what_has_no_format_is_said(mechanism: Way, report_at: Path, open_folder: Path) -> None:
    odd = open_folder / "odd"
    odd.write_bytes(b"\x01\x02\x03")
    odd.chmod(0o755)
    ran = run(mechanism, report_at, odd)
    assert (126, f"cbit: {odd}: Exec format error\n") == (ran.code, ran.err)


def test_a_folder_that_cannot_be_searched_has_no_say(
    mechanism: Way, report_at: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, text = open_folder / "closed", open_folder / "text-there"
    closed.mkdir(exist_ok=True)
    closed.chmod(0)
    text.write_text("text")
    text.chmod(0o644)
    monkeypatch.setenv("PATH", f"{closed}:/usr/bin:{open_folder}")
    ran = run(mechanism, report_at, "no-such-program")
    assert (127, "cbit: no-such-program: No such file or directory\n") == (ran.code, ran.err)
    ran = run(mechanism, report_at, text.name)  # a bad twin: it is there, and is no program
    assert (126, f"cbit: {text.name}: Permission denied\n") == (ran.code, ran.err)


def test_the_path_is_searched(
    mechanism: Way, client: Path, report_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"/no/such/folder:/etc:{client.parent}:{os.environ['PATH']}")
    assert 3 == run(mechanism, report_at, client.name, "exit", 3).code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGRTMIN])
def test_a_signal_for_the_launcher_is_the_programs(
    mechanism: Way, client: Path, number: signal.Signals
) -> None:
    with begin(mechanism, client, "wait-for", int(number)) as running:
        assert line(running.stdout).startswith("ready")
        running.send_signal(number)
        out, err = running.communicate(timeout=PATIENCE_S)
        assert (0, f"got {int(number)}\n") == (running.returncode, out), err


def test_an_interrupt_at_the_terminal_arrives_once(mechanism: Way, client: Path) -> None:
    if shutil.which("setsid") is None:
        pytest.skip("this takes setsid from util-linux, to give the launcher a terminal")
    master, slave = os.openpty()
    words = ["setsid", "--ctty", "--wait", *command(mechanism.words, [client, "interrupted"])]
    running = subprocess.Popen(words, env=environment(), stdin=slave, stdout=subprocess.PIPE, text=True)
    os.close(slave)
    assert "ready" == line(running.stdout)
    os.write(master, b"\x03")
    out, _ = running.communicate(timeout=PATIENCE_S)
    os.close(master)
    assert (0, "1 times\n") == (running.returncode, out)


def test_a_signal_that_the_program_does_not_expect_ends_both(mechanism: Way, client: Path) -> None:
    with begin(mechanism, client, "orphan") as running:
        pid = int(line(running.stdout).split()[1])
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE_S)
        assert -signal.SIGTERM == running.returncode
        assert gone(pid)


def test_a_program_does_not_outlive_a_killed_launcher(way: Way, client: Path) -> None:
    with begin(way, client, "orphan") as running:
        pid = int(line(running.stdout).split()[1])
        running.kill()
        assert gone(pid), "its requests would fail for ever"


def test_signals_are_as_without_a_launcher(mechanism: Way, report_at: Path) -> None:
    program = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    alone = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
    ran = run(mechanism, report_at, "sh", "-c", program)
    assert alone.stdout == ran.out


def test_only_the_standard_descriptors_are_inherited(mechanism: Way, report_at: Path) -> None:
    ran = run(mechanism, report_at, "sh", "-c", "ls /proc/$$/fd")
    assert ["0", "1", "2"] == ran.out.split()


def test_a_command_never_runs_twice_under_signals(way: Way, client: Path, report_at: Path) -> None:
    ran = run(way, report_at, client, "timer", 5000)
    assert "5000 calls, 0 bad, signals many\n" == ran.out
    assert 5000 == ran.report["commands"]


@pytest.mark.parametrize("threads", [1, 16])
def test_threads_are_one_client(mechanism: Way, client: Path, report_at: Path, threads: int) -> None:
    ran = run(mechanism, report_at, client, "threads", threads)
    assert f"{threads} threads, 200 opens each: 0 bad\n" == ran.out
    opens = 200 * threads if mechanism.mechanism == "fuse" else 1
    assert (opens, opens, 200 * threads) == tuple(ran.report[key] for key in ("opened", "closed", "commands"))
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


def test_sixty_four_clients_of_which_half_are_killed(way: Way, client: Path, report_at: Path) -> None:
    ran = run(way, report_at, client, "clients", 64)
    assert "64 clients: 0 bad, 32 killed\n" == ran.out, ran.err
    assert ran.report["opened"] == ran.report["closed"] >= 32
    assert ran.report["commands"] >= 32 * 50
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


def test_a_client_that_is_killed_while_it_is_served(way: Way, client: Path, report_at: Path) -> None:
    ran = run(
        way,
        report_at,
        "sh",
        "-c",
        f"{client} suicide; echo $?; {client} exit 0; echo $?; {client} inherited 0",
    )
    assert ["137", "0"] == [word for word in ran.out.split() if word.isdigit()], ran.err
    assert (1, 1, 1) == tuple(ran.report[key] for key in ("opened", "closed", "commands"))
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


def test_a_signal_ends_the_wait_for_daemons(mechanism: Way, client: Path) -> None:
    with begin(mechanism, client, "linger") as running:
        pid = int(line(running.stdout).split()[1])
        left = int(line(running.stdout))
        try:
            assert gone(pid)
            assert running.poll() is None, "it waits for the daemon"
            running.send_signal(signal.SIGTERM)
            assert 5 == running.wait(timeout=PATIENCE_S)
        finally:
            os.kill(left, signal.SIGKILL)


def test_a_daemon_is_served_after_the_program_has_ended(
    mechanism: Way, client: Path, report_at: Path, open_folder: Path
) -> None:
    done = open_folder / f"done-{mechanism}"
    ran = run(mechanism, report_at, client, "daemon", done)
    assert (5, "ok") == (ran.code, done.read_text())
    assert 1 == ran.report["commands"]


def test_no_room_for_a_descriptor_is_the_clients_errno(mechanism: Way, client: Path, report_at: Path) -> None:
    ran = run(mechanism, report_at, client, "limit")
    assert "EMFILE\n" == ran.out
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


def test_a_program_that_closes_itself_to_others_is_refused(
    refusals: dict[str, str], client: Path, report_at: Path
) -> None:
    way = WAYS[1]
    insist(way, refusals)
    ran = run(way, report_at, client, "undumpable")
    assert "EPERM\n" == ran.out


def test_a_launcher_in_a_launcher_is_explained(mechanism: Way, client: Path, report_at: Path) -> None:
    if mechanism.mechanism == "fuse":
        pytest.skip("this one listens to no system calls: test_fuse.py has a launcher in a launcher")
    ran = run(mechanism, report_at, *command(mechanism.words, [client, "exit", 0]))
    assert 125 == ran.code
    assert "something listens to the system calls of this process already" in ran.err


def confined(denied: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run where some system calls are refused, by a filter as containers have one."""
    program = [sys.executable, str(Path(__file__).with_name("confined.py")), denied, *words]
    return subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("denied", "why"),
    [
        ("unshare,mount", "a private mount namespace is refused: EPERM"),
        ("mount", "making it private is refused: EPERM"),
        ("open_tree", "covering /dev is refused: EPERM"),  # only found out when it is done
    ],
)
def test_a_namespace_that_is_refused_is_said_or_done_without(
    refusals: dict[str, str], client: Path, report_at: Path, denied: str, why: str
) -> None:
    insist(WAYS[0], refusals)
    insist(WAYS[2], refusals)
    if denied == "open_tree" and Path("/dev/ptmx").is_symlink():
        pytest.skip("/dev/ptmx is a symbolic link here, so nothing is cloned")
    ended = confined(denied, command([], [client, "exit", 4], report_at))
    report = json.loads(report_at.read_text())
    assert (4, "opens", why) == (ended.returncode, report["mechanism"], report["why"]), ended.stderr
    assert report["descriptors"][0] == report["descriptors"][1]
    ended = confined(denied, command(["--mechanism", "namespace"], [client, "exit", 4]))
    assert (125, f"cbit: {why}\n") == (ended.returncode, ended.stderr)
