"""``cbit serve --device``: every program finds the machine there, with no wrapper, until the daemon ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.test_exec import REASONS, TRANSCRIPT, cbit
from cli.test_serve import PATIENCE_S, Served, machine, start
from redirect.conftest import FUSE, ON_LINUX, environment, insist

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

__all__ = ["machine"]  # a fixture that is theirs too

NOBODY = 65534

#: Puts the device, and the parameter, where the client looks, in a namespace of its own.
AT_DEV_SEV = """
mount --make-rprivate /
mount -t tmpfs none /dev
touch /dev/sev
mount --bind "$0" /dev/sev
mount -t tmpfs none /sys/module
mkdir -p /sys/module/kvm_amd/parameters
echo Y > /sys/module/kvm_amd/parameters/sev
exec "$@"
"""

STATUS = """
import ctypes, errno, fcntl, os, struct, sys
room = ctypes.create_string_buffer(12)
for _ in range(int(sys.argv[2])):
    fd = os.open(sys.argv[1], os.O_RDWR)
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 1, ctypes.addressof(room), 9))
    assert room.raw[:2] == bytes([0, 17]), room.raw
    os.close(fd)
print(room.raw[2])
"""


@pytest.fixture(autouse=True)
def _may_mount(refusals: dict[str, str]) -> None:
    insist(FUSE, refusals)
    if os.geteuid() != 0:
        pytest.skip("this takes root")


@contextmanager
def device_of(machine: Path, folder: Path, device: Path) -> Iterator[Served]:
    served = start(machine, folder / "cbit.sock", folder / "log", "--device", str(device))
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()
        while os.path.ismount(device) or dead(device):
            subprocess.run(["umount", "--lazy", device], check=True)


def dead(device: Path) -> bool:
    try:
        os.statvfs(device)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "sev"


@pytest.fixture
def served(machine: Path, tmp_path: Path, device: Path) -> Iterator[Served]:
    device.parent.mkdir()
    with device_of(machine, tmp_path, device) as daemon:
        yield daemon


def python(*words: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_command_is_answered_without_a_wrapper(served: Served, device: Path, client: Path) -> None:
    words = ["unshare", "--mount", "sh", "-ec", AT_DEV_SEV, str(device), str(client)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    said = TRANSCRIPT.replace("API 1.51, build 3", "API 0.17, build 48")
    assert (42, said) == (ended.returncode, ended.stdout), ended.stderr
    reasons = [line for line in served.log if "process" in line]
    for want, line in zip(REASONS.splitlines(), reasons, strict=True):
        start_of_line, _, reason = line.partition(f"{device}, process ")
        assert "cbit serve: " == start_of_line
        assert reason.partition(": ")[2].startswith(want.removeprefix("cbit exec: "))


def test_it_is_roots_until_root_says_otherwise(served: Served, device: Path) -> None:
    there = device.stat()
    assert (stat.S_IFREG | 0o600, os.geteuid()) == (there.st_mode, there.st_uid)
    as_nobody = [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("/usr/bin/python3", "-I", "-S", "-c", STATUS, str(device), "3"),
    ]
    if shutil.which("setpriv") is None or not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("this takes setpriv from util-linux, and an interpreter that nobody may run")
    for parent in device.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o11)
    refused = subprocess.run(as_nobody, capture_output=True, text=True, check=False)
    assert "PermissionError" in refused.stderr
    device.chmod(0o666)
    granted = subprocess.run(as_nobody, capture_output=True, text=True, check=False)
    assert 0 == granted.returncode, granted.stderr


def test_the_status_says_who_uses_it(served: Served, device: Path) -> None:
    unused = [{"path": str(device), "handles": 0, "commands": 0}]
    assert unused == served.status()["devices"]
    first, second = os.open(device, os.O_RDWR), os.open(device, os.O_RDONLY)
    assert 2 == served.status()["devices"][0]["handles"]
    os.close(first)
    os.close(second)
    assert 0 == python(STATUS, device, 5).returncode
    used = served.settled(lambda status: status["devices"][0]["handles"] == 0)
    assert 5 == used["devices"][0]["commands"]


def test_many_programs_at_once_and_some_are_killed(served: Served, device: Path) -> None:
    before = served.status()
    words = [sys.executable, "-c", STATUS, str(device)]
    honest = [subprocess.Popen([*words, "50"]) for _ in range(8)]
    endless = [subprocess.Popen([*words, "1000000"]) for _ in range(4)]
    assert [0] * 8 == [one.wait(PATIENCE_S) for one in honest]
    for one in endless:
        one.kill()
        one.wait(PATIENCE_S)
    after = served.settled(lambda status: status["devices"][0]["handles"] == 0)
    assert after["devices"][0]["commands"] >= 8 * 50
    for name in ("descriptors", "free_memory", "asids_in_use", "clients"):
        assert before[name] == after[name]
    assert [] == [line for line in served.log if "fault" in line]


def test_launchers_and_the_device_share_the_machine(served: Served, device: Path) -> None:
    generate = "import fcntl, os, sys\nfd = os.open(sys.argv[1], 2)\n"
    generate += "fcntl.ioctl(fd, 0xC0105300, bytes([4]) + bytes(15))"
    assert "UNINIT" == served.status()["state"]
    assert 0 == python(generate, device).returncode
    assert "INIT" == served.status()["state"]
    words = ["--kvm", "none", "--", sys.executable, "-c", STATUS, "/dev/sev", 1]
    assert "1\n" == cbit("exec", "--socket", served.path, *words).stdout == python(STATUS, device, 1).stdout
    held = os.open(device, os.O_RDWR)
    assert served.ask("reset")["ok"]
    os.close(held)
    assert "0\n" == python(STATUS, device, 1).stdout


def test_while_the_machine_is_off_it_is_enodev(served: Served, device: Path, tmp_path: Path) -> None:
    assert served.ask("freeze", file=str(tmp_path / "dram"))["ok"]
    ended = python(STATUS, device, 1)
    assert "OSError: [Errno 19]" in ended.stderr
    assert any(line.endswith("SEV_ISSUE_CMD: the machine is off") for line in served.log)


@pytest.mark.parametrize("how", ["itself", "a link", "a bind"])
def test_the_daemon_does_not_wait_for_itself(served: Served, device: Path, tmp_path: Path, how: str) -> None:
    path = device
    if how == "a link":
        path = tmp_path / "link"
        path.symlink_to(device)
    if how == "a bind":
        path = tmp_path / "bound"
        path.touch()
        subprocess.run(["mount", "--bind", device, path], check=True)
    try:
        answer = served.ask("freeze", file=str(path))
        assert {"ok": False, "reasons": [f"file: {path} is the device that this daemon serves"]} == answer
        assert served.status()["on"]
    finally:
        if how == "a bind":
            subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_it_away(served: Served, device: Path, number: int) -> None:
    held = os.open(device, os.O_RDWR)
    served.process.send_signal(number)
    assert 0 == served.process.wait(PATIENCE_S)
    assert not os.path.lexists(device)
    assert str(device.parent) not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(OSError, match="not connected"):
        os.close(held)  # as whatever else is asked


def test_shutdown_takes_it_away_and_leaves_a_file_that_was_there(
    machine: Path, tmp_path: Path, device: Path
) -> None:
    device.parent.mkdir()
    device.touch()
    device.chmod(0o640)
    with device_of(machine, tmp_path, device) as served:
        assert 0 == python(STATUS, device, 1).returncode
        assert served.ask("shutdown")["ok"]
        assert 0 == served.process.wait(PATIENCE_S)
    there = device.lstat()
    assert (0, 0o640) == (there.st_size, stat.S_IMODE(there.st_mode))


def test_what_a_killed_daemon_leaves_is_dead_and_replaced(
    machine: Path, tmp_path: Path, device: Path
) -> None:
    device.parent.mkdir()
    with device_of(machine, tmp_path, device) as first:
        held = os.open(device, os.O_RDWR)
        first.process.kill()
        first.process.wait()
        with pytest.raises(OSError, match="not connected"):
            os.open(device, os.O_RDWR)
        with device_of(machine, tmp_path, device) as second:
            assert 0 == python(STATUS, device, 1).returncode
            with pytest.raises(OSError, match="not connected"):
                os.close(held)
            assert any("a daemon that was killed is taken away" in line for line in second.log)
            second.process.terminate()
            assert 0 == second.process.wait(PATIENCE_S)
    assert not os.path.lexists(device)


def test_who_unmounts_it_ends_it_and_the_daemon_says_so(served: Served, device: Path) -> None:
    subprocess.run(["umount", device], check=True)
    assert [] == served.settled(lambda status: status["devices"] == [])["devices"]
    assert any("was unmounted" in line for line in served.log)
    assert 0 == python(STATUS, device, 0).returncode
    served.process.terminate()
    assert 0 == served.process.wait(PATIENCE_S)
    assert not os.path.lexists(device)


def refused(machine: Path, tmp_path: Path, device: Path) -> str:
    ended = cbit("serve", "--state", machine, "--socket", tmp_path / "other.sock", "--device", device)
    assert (2, "") == (ended.returncode, ended.stdout)
    assert not (tmp_path / "other.sock").exists()
    return ended.stderr


def test_a_device_that_is_served_is_not_taken(
    served: Served, made: Path, tmp_path: Path, device: Path
) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    assert "is in use: another cbit serve --device serves it" in refused(copy, tmp_path, device)
    assert 0 == python(STATUS, device, 1).returncode


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("text", "exists and is no empty regular file: it is left alone"),
        ("folder", "exists and is no empty regular file"),
        ("link", "exists and is no empty regular file"),
        ("device", "exists and is a device: it is left alone"),
        ("elsewhere", "No such file or directory"),
        ("mount", "a file system is mounted there (tmpfs)"),
    ],
)
def test_what_is_there_is_left_alone(machine: Path, tmp_path: Path, what: str, why: str) -> None:
    path = tmp_path / what
    if what == "text":
        path.write_text("precious")
    if what in {"folder", "mount"}:
        path.mkdir()
    if what == "link":
        path.symlink_to("/dev/null")
    if what == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    if what == "elsewhere":
        path = path / "sev"
    if what == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    try:
        before = os.lstat(path) if os.path.lexists(path) else None
        assert f"cbit serve: {path}" in refused(machine, tmp_path, path)
        assert why in refused(machine, tmp_path, path)
        assert before == (os.lstat(path) if os.path.lexists(path) else None)
    finally:
        if what == "mount":
            subprocess.run(["umount", path], check=True)


def test_who_may_not_mount_is_told(machine: Path, tmp_path: Path) -> None:
    confined = [sys.executable, str(Path(__file__).parents[1] / "redirect" / "confined.py"), "mount"]
    words = ["--state", machine, "--socket", tmp_path / "s", "--device", tmp_path / "sev"]
    ended = subprocess.run(
        [*confined, sys.executable, "-m", "cbit", "serve", *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert 2 == ended.returncode
    assert "cannot be mounted: Operation not permitted (this takes root" in ended.stderr
    assert not os.path.lexists(tmp_path / "sev")
