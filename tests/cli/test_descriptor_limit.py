"""A program of many processes and machines is not stopped by the descriptors that cbit needs for them."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.test_serve import Served, serving
from redirect.conftest import ON_LINUX, Way, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

#: Ninety processes that are all there at once ask for PLATFORM_STATUS; then say what the limit is.
MANY = """
import ctypes, errno, fcntl, os, resource, struct
answers, stop = os.pipe(), os.pipe()
for _ in range(90):
    if os.fork() == 0:
        os.close(stop[1])
        room = ctypes.create_string_buffer(64)
        try:
            fd = os.open("/dev/sev", os.O_RDWR)
            fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 1, ctypes.addressof(room), 0))
            os.write(answers[1], b".")
        except OSError as error:
            os.write(answers[1], errno.errorcode[error.errno].encode())
        os.read(stop[0], 1)
        os._exit(0)
said = b""
while len(said) < 90:
    said += os.read(answers[0], 90)
print(said.decode().replace("." * 90, "all"), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
os.close(stop[1])
for _ in range(90):
    os.wait()
fd = os.open("/dev/sev", os.O_RDWR)
room = ctypes.create_string_buffer(64)
fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 1, ctypes.addressof(room), 0))
"""

#: As many virtual machines as there is room for, up to sixty.
MACHINES = """
import errno, fcntl, os
kvm, made = os.open("/dev/kvm", os.O_RDWR), []
try:
    while len(made) < 60:
        made.append(fcntl.ioctl(kvm, 0xAE01, 0))
    print("all")
except OSError as error:
    print(errno.errorcode[error.errno], len(made) > 20)
    os.close(made.pop())
    os.close(made.pop())
    made.append(fcntl.ioctl(kvm, 0xAE01, 0))
    print("and again")
"""


#: Thirty-five machines with a processor each: of the program's descriptors 70, and some.
WITH_PROCESSORS = """
import fcntl, os
kvm = os.open("/dev/kvm", os.O_RDWR)
machines = [fcntl.ioctl(kvm, 0xAE01, 0) for _ in range(35)]
processors = [fcntl.ioctl(vm, 0xAE41, 0) for vm in machines]
print("all")
"""


@pytest.fixture
def served(made: Path, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(made, tmp_path / "machine")
    with serving(tmp_path / "machine", tmp_path) as daemon:
        yield daemon


def limited(limit: str, *words: object) -> subprocess.CompletedProcess[str]:
    line = shlex.join([sys.executable, "-m", "cbit", *map(str, words)])
    return subprocess.run(
        ["bash", "-c", f"ulimit {limit}; exec {line}"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("limit", ["-Sn 64", "-n 64"], ids=["soft", "hard"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "served"])
def test_many_processes_are_all_answered(
    mechanism: Way, made: Path, request: pytest.FixtureRequest, limit: str, own: bool
) -> None:
    where = ["--state", made] if own else ["--socket", request.getfixturevalue("served").path]
    program = [sys.executable, "-c", MANY]
    ended = limited(limit, "exec", *where, "--mechanism", mechanism.mechanism, "--", *program)
    assert (0, "all 64\n", "") == (ended.returncode, ended.stdout, ended.stderr), "and the limit is its own"


def test_many_machines_are_made(kvm_mechanism: Way, made: Path) -> None:
    options = ["--state", made, "--kvm", "supplied", "--mechanism", kvm_mechanism.mechanism]
    ended = limited("-Sn 80", "exec", *options, "--", sys.executable, "-c", WITH_PROCESSORS)
    assert (0, "all\n") == (ended.returncode, ended.stdout), ended.stderr


def test_where_there_is_no_room_the_machine_is_refused_and_room_is_used_again(
    kvm_mechanism: Way, made: Path
) -> None:
    """ENFILE and not EMFILE: it is not the program that has too many."""
    options = ["--state", made, "--kvm", "supplied", "--mechanism", kvm_mechanism.mechanism]
    program = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (70, 70))\n{MACHINES}"
    ended = limited("-n 70", "exec", *options, "--", sys.executable, "-c", program)
    assert (0, "ENFILE True\nand again\n") == (ended.returncode, ended.stdout), ended.stderr
    reason = "cbit exec: KVM_CREATE_VM: cbit has no descriptor left: its limit is 70 (ulimit -Hn)\n"
    assert reason == ended.stderr


def test_a_daemon_takes_as_many_launchers_as_the_hard_limit_allows(served: Served) -> None:
    soft, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
