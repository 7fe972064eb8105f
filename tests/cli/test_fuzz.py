"""Anything is asked of /dev/sev and /dev/kvm: the daemon lives, leaks nothing, and nobody notices."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cli.test_exec import cbit
from cli.test_serve import GENERATE, Served, serving
from redirect.conftest import ON_LINUX, compiled, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

HERE = Path(__file__).parent
KEPT: Final = ("free_memory", "asids_in_use", "boots", "on", "guests")  #: what storms leave as it was
#: Storms of each of four tests, and what the clients of one are to ask; a quarter of them is killed.
STORMS, CALLS = 10, 34_000
MILLION: Final = 1_000_000

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
            exec_(served, fuzz, seed, calls, clients, 2),
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        asked, _ = bystander.communicate("\n", timeout=100)
    assert 0 == ended.returncode, ended.stderr[-2000:]
    assert calls // 3 < made(ended.stdout)
    assert 0 == bystander.returncode
    assert int(asked) > 0
    after = served.settled(lambda status: status["clients"] == [])
    for name in (*KEPT, "descriptors", "clients"):
        assert before[name] == after[name], name
    assert [] == [line for line in served.log if "fault of the emulator" in line]
    assert served.process.poll() is None


def made(said: str) -> int:
    """Return how many calls were answered, if nothing was bad and the launcher has kept nothing open."""
    found = re.fullmatch(r"0 bad, 0 descriptors left, ([0-9]+) calls\n", said)
    assert found, said
    return int(found[1])


@pytest.fixture
def own(machine: Path) -> Iterator[Path]:
    """A machine whose store costs no disk: thousands of its keys are written, and none has to survive."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="cbit-fuzz-", dir=memory if usable else None) as name:
        yield shutil.copytree(machine, Path(name, "machine"))


def storms(machine: Path, fuzz: Path, seed: int, *, count: int, calls: int) -> list[dict[str, Any]]:
    """Let storms loose on a machine that their launcher owns: without a daemon there can be many calls."""
    words = [sys.executable, "-m", "cli.storms", machine, fuzz, seed, count, calls, 16]
    ended = subprocess.run(
        [*map(str, words)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert (0, "") == (ended.returncode, ended.stderr), ended.stderr[-2000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


def judge(reports: list[dict[str, Any]], *, at_least: int) -> None:
    first, last = reports[0], reports[-1]
    assert at_least <= sum(made(report["said"]) for report in reports)
    for report in reports:
        assert {name: first["machine"][name] for name in KEPT} == {
            name: report["machine"][name] for name in KEPT
        }
        assert (0, [], 0) == (report["code"], report["machine"]["asids_in_use"], report["machine"]["guests"])
        assert first["descriptors"] == report["descriptors"]
    # The first storms touch what the machine has of memory; after that nothing is to grow.
    assert last["rss_kib"] - reports[len(reports) // 2]["rss_kib"] < 2048


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
def test_storm_after_storm_on_one_daemon(any_way: None, served: Served, fuzz: Path) -> None:
    for seed in range(100, 104):
        storm(served, fuzz, seed, calls=10000, clients=16)


def test_storms_leave_nothing_behind_where_they_are_answered(any_way: None, own: Path, fuzz: Path) -> None:
    judge(storms(own, fuzz, 10, count=3, calls=1600), at_least=1600)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(4))
def test_a_million_calls_through_the_kernel(any_way: None, own: Path, fuzz: Path, batch: int) -> None:
    judge(storms(own, fuzz, 1000 * batch, count=STORMS, calls=CALLS), at_least=MILLION // 4)
