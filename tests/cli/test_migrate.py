"""``cbit migrate``: who does not know the token keeps nobody out, and a receiver leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cli.test_exec import cbit
from redirect.conftest import ON_LINUX, environment

if not ON_LINUX:
    pytest.skip("the machine is for Linux x86-64 here", allow_module_level=True)

PATIENCE_S = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrate")
    for name in ("here", "there"):
        ended = cbit("setup", "--state", folder / name, "--profile", "naples")
        assert 0 == ended.returncode, ended.stderr
    (folder / "token").write_bytes(bytes(range(32)))
    return folder


@pytest.fixture
def hosts(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(params=["unix", "tcp"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "unix":
        return str(tmp_path / "mv.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def words(way: str, hosts: Path, at: str, wait: float = 60, token: str = "token") -> list[str]:
    state = hosts / ("there" if way == "receive" else "here")
    options = ["--state", state, "--at", at, "--token", hosts / token, "--wait", wait]
    return ["migrate", way, *map(str, options)]


@contextmanager
def receiving(hosts: Path, at: str) -> Iterator[subprocess.Popen[str]]:
    """A receiver that listens."""
    command = [sys.executable, "-m", "cbit", *words("receive", hosts, at)]
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert f"cbit: waits for a guest at {at}\n" == process.stderr.readline()
            yield process
        finally:
            process.kill()


def connected(at: str) -> socket.socket:
    if "/" not in at:
        host, port = at.split(":")
        return socket.create_connection((host, int(port)), PATIENCE_S)
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(PATIENCE_S)
    link.connect(at)
    return link


def test_strangers_keep_nobody_out(hosts: Path, at: str) -> None:
    with ExitStack() as stack, receiving(hosts, at) as receiver:
        connected(at).close()
        with connected(at) as torn:
            torn.sendall(b"GET")
        with connected(at) as stranger:
            stranger.sendall(bytes(32))
            assert stranger.recv(64)
            stranger.sendall(b"\xff" * 32)  # no proof
            assert b"" == stranger.recv(1), "it is turned away"
        stack.enter_context(connected(at))  # says nothing, and stays
        sent = cbit(*words("send", hosts, at))
        assert 0 == sent.returncode, sent.stderr
        out, err = receiver.communicate(timeout=PATIENCE_S)
    assert (0, "received: 16 packets") == (receiver.returncode, out[:20])
    assert sent.stdout.splitlines()[-1] == out.splitlines()[-1], "the same memory"
    turned_away = [line for line in err.splitlines() if "somebody is turned away: " in line]
    assert [
        "the connection ended in the middle",
        "the connection ended in the middle",
        "the other side does not know the token, or its proof was altered",
        "timed out",
    ] == [line.partition("away: ")[2] for line in turned_away]


def test_a_sender_with_another_token_is_turned_away_and_the_right_one_is_not(hosts: Path, at: str) -> None:
    (hosts / "other").write_bytes(b"another host's token")
    with receiving(hosts, at) as receiver:
        refused = cbit(*words("send", hosts, at, token="other"))
        assert 1 == refused.returncode
        assert "does not know the token" in refused.stderr
        assert 0 == cbit(*words("send", hosts, at)).returncode
        receiver.communicate(timeout=PATIENCE_S)
    assert 0 == receiver.returncode


def test_where_nobody_comes_that_is_said(hosts: Path, at: str) -> None:
    ended = cbit(*words("receive", hosts, at, wait=0.2))
    reason = f"cbit migrate receive: {at}: nobody who knows the token came in 0.2 s"
    assert (2, reason) == (ended.returncode, ended.stderr.splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_receiver_in_order(hosts: Path, at: str, number: int) -> None:
    with receiving(hosts, at) as receiver:
        receiver.send_signal(number)
        _, err = receiver.communicate(timeout=PATIENCE_S)
    why = f"interrupted by {signal.Signals(number).name}"
    assert (128 + number, why) == (receiver.returncode, err.strip().rpartition(": ")[2])
    assert not (hosts / "mv.sock").exists()
    with receiving(hosts, at) as receiver:
        assert 0 == cbit(*words("send", hosts, at)).returncode
        receiver.communicate(timeout=PATIENCE_S)
    assert 0 == receiver.returncode


def test_the_socket_of_a_dead_receiver_is_replaced_and_that_of_a_living_one_is_not(hosts: Path) -> None:
    at = str(hosts / "mv.sock")
    with receiving(hosts, at) as first:
        first.kill()
        first.wait()
    assert (hosts / "mv.sock").is_socket()
    shutil.copytree(hosts / "there", hosts / "second" / "there")
    shutil.copy(hosts / "token", hosts / "second" / "token")
    with receiving(hosts, at):
        ended = cbit(*words("receive", hosts / "second", at))
        assert (2, f"cbit migrate receive: {at} is in use: another cbit listens there\n") == (
            ended.returncode,
            ended.stderr,
        )


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("{}/nobody.sock", "No such file or directory"),
        ("{}/token", "Connection refused"),
        ("{}/token/x", "Not a directory"),
        ("127.0.0.1:1", "Connection refused"),
    ],
)
def test_whoever_cannot_be_reached_is_named(hosts: Path, at: str, why: str) -> None:
    at = at.format(hosts)
    ended = cbit(*words("send", hosts, at, wait=0))
    assert 2 == ended.returncode
    assert f"cbit migrate send: {at}: {why}" == ended.stderr.splitlines()[-1]


def test_a_port_that_is_taken_is_named(hosts: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = cbit(*words("receive", hosts, at))
    assert (2, f"cbit migrate receive: {at}: Address already in use\n") == (ended.returncode, ended.stderr)


@pytest.mark.parametrize("way", ["send", "receive"])
@pytest.mark.parametrize(
    ("option", "why"),
    [
        (("--at", "127.0.0.1:70000"), "'127.0.0.1:70000' is not HOST:PORT; a port is at most 65535"),
        (("--at", "::1:80"), "'::1:80' is not HOST:PORT; an IPv6 address stands in brackets"),
        (("--wait", "nan"), "'nan' is no number of seconds"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_done(
    hosts: Path, at: str, way: str, option: tuple[str, str], why: str
) -> None:
    ended = cbit(*words(way, hosts, at), *option)
    reason = f"cbit migrate {way}: argument {option[0]}: {why}"
    assert (2, reason) == (ended.returncode, ended.stderr.splitlines()[-1])


@pytest.mark.parametrize("way", ["send", "receive"])
def test_a_token_that_can_be_guessed_is_refused_before_anything_is_done(
    hosts: Path, tmp_path: Path, way: str
) -> None:
    (hosts / "short").write_bytes(bytes(15))
    ended = cbit(*words(way, hosts, str(tmp_path / "nobody.sock"), token="short"))
    reason = f"cbit migrate {way}: {hosts / 'short'}: a token of 15 bytes can be guessed: 16 at least\n"
    assert (2, reason) == (ended.returncode, ended.stderr)


@pytest.mark.parametrize("way", ["send", "receive"])
def test_a_host_that_nobody_knows_is_named(hosts: Path, way: str) -> None:
    ended = cbit(*words(way, hosts, "no-such-host.invalid:80"))
    assert 2 == ended.returncode
    assert f"cbit migrate {way}: no-such-host.invalid:80: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_guest_moves_over_ipv6(hosts: Path) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            at = f"[::1]:{free.getsockname()[1]}"
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error.strerror}")
    with receiving(hosts, at) as receiver:
        assert 0 == cbit(*words("send", hosts, at)).returncode
        receiver.communicate(timeout=PATIENCE_S)
    assert 0 == receiver.returncode
