"""Anything is asked of /dev/sev and /dev/kvm: the daemon lives, leaks nothing, and nobody notices."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.test_exec import cbit
from cli.test_serve import GENERATE, Served, serving
from redirect.conftest import ON_LINUX, compiled, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

HERE = Path(__file__).parent
BUDGET_S = 30  # a million requests are asked without a kernel between: redirect/test_any_request.py

#: Asks for the status until its standard input ends; every answer has to be good.
BYSTANDER = """
import ctypes, fcntl, os, select, struct, sys
room = ctypes.create_string_buffer(12)
fd = os.open("/dev/sev", os.O_RDWR)
count = 0
print("here", flush=True)
while not select.select([0], [], [], 0.01)[0]:
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 1, ctypes.addressof(room), 0))
    assert room.raw[:2] == bytes([0, 17]), room.raw
    count += 1
print(count)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = tmp_path_factory.mktemp("fuzz") / "machine"
    ended = cbit("setup", "--state", machine, "--profile", "naples")
    assert 0 == ended.returncode, ended.stderr
    return machine


@pytest.fixture
def served(machine: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(shutil.copytree(machine, tmp_path / "machine"), tmp_path) as daemon:
        yield daemon


@pytest.fixture
def fuzz(open_folder: Path) -> Path:
    return compiled(open_folder, "fuzz", source=HERE / "fuzz_client.c")


def exec_(served: Served, *program: object) -> list[str]:
    words = [sys.executable, "-m", "cbit", "exec", "--socket", str(served.path), "--kvm", "supplied", "--"]
    return [*words, *map(str, program)]


def storm(served: Served, fuzz: Path, seed: int, *, calls: int, clients: int) -> None:
    """Let clients loose beside a program that only asks for the status; nothing may be left afterwards."""
    assert (
        0
        == subprocess.run(
            exec_(served, sys.executable, "-c", GENERATE), env=environment(), check=False
        ).returncode
    )
    before = served.settled(lambda status: status["clients"] == [])
    with subprocess.Popen(
        exec_(served, sys.executable, "-c", BYSTANDER),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as bystander:
        assert bystander.stdout
        assert "here\n" == bystander.stdout.readline()
        ended = subprocess.run(
            exec_(served, fuzz, seed, calls, clients),
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        asked, _ = bystander.communicate("\n", timeout=100)
    assert (0, "0 bad\n") == (ended.returncode, ended.stdout), ended.stderr[-2000:]
    assert 0 == bystander.returncode
    assert int(asked) > 0
    after = served.settled(lambda status: status["clients"] == [])
    kept = ("free_memory", "asids_in_use", "descriptors", "boots", "on", "guests", "clients")
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}
    assert [] == [line for line in served.log if "fault of the emulator" in line]
    assert served.process.poll() is None


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_asked_the_daemon_lives_and_leaks_nothing(
    any_way: None, served: Served, fuzz: Path, seed: int
) -> None:
    storm(served, fuzz, seed, calls=1200, clients=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_four_clients_at_once(any_way: None, served: Served, fuzz: Path) -> None:
    storm(served, fuzz, 3, calls=6400, clients=64)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_as_many_calls_as_fit_in_half_a_minute(any_way: None, served: Served, fuzz: Path) -> None:
    begun, calls, seed = time.monotonic(), 0, 100
    while time.monotonic() - begun < BUDGET_S:
        storm(served, fuzz, seed, calls=10000, clients=16)
        calls, seed = calls + 10000, seed + 1
    print(f"{calls} calls in {time.monotonic() - begun:.0f} s")
