"""What only a served file has: no filter, a life of its own, and the manners of a file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.redirect.errors import Unsupported
from cbit.redirect.files import Kvm, Mechanism, sev_files
from cbit.redirect.fuse_server import FuseServer
from cbit.redirect.launcher import start
from redirect.conftest import FUSE, WAYS, begin, command, environment, insist, line, run
from redirect.test_launcher import confined, gone

IS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def _served(refusals: dict[str, str]) -> None:
    insist(FUSE, refusals)


def test_a_program_is_under_no_filter_and_keeps_its_chances(report_at: Path) -> None:
    words = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status"
    alone = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True)
    assert alone.stdout == run(FUSE, report_at, "sh", "-c", words).out


def test_a_launcher_may_be_in_a_launcher(client: Path, report_at: Path) -> None:
    ran = run(FUSE, report_at, *command(FUSE.words, [client, "threads", 2]))
    assert (0, "2 threads, 200 opens each: 0 bad\n") == (ran.code, ran.out), ran.err
    assert 0 == ran.report["commands"], "the inner device is nearer"


def test_a_program_that_listens_to_system_calls_may_be_in_it(
    client: Path, report_at: Path, refusals: dict[str, str]
) -> None:
    insist(WAYS[0], refusals)
    ran = run(FUSE, report_at, *command(WAYS[0].words, [client, "threads", 2]))
    assert (0, "2 threads, 200 opens each: 0 bad\n") == (ran.code, ran.out), ran.err


#: Opens /dev/fuse to everybody, as distributions have it, in a namespace of its own.
OPEN_TO_ALL = """
mount --make-rprivate /
mount -t tmpfs -o dev none "$0"
mknod "$0/fuse" c 10 229
chmod 666 "$0/fuse"
mount --bind "$0/fuse" /dev/fuse
exec "$@"
"""


def test_nobody_is_served_where_dev_fuse_is_everybodys(
    client: Path, open_folder: Path, refusals: dict[str, str]
) -> None:
    if not IS_ROOT or shutil.which("unshare") is None:
        pytest.skip("this takes root, and unshare from util-linux")
    insist(WAYS[1], refusals)
    folder = open_folder / "fuse"
    folder.mkdir()
    words = command([*FUSE.words, "--nobody"], [client, "timer", 500])  # which first opens it to write
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", OPEN_TO_ALL, str(folder), *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "mknod" in ended.stderr:
        pytest.skip(f"no device can be made here: {ended.stderr.strip()}")
    assert 0 == ended.returncode, ended.stderr
    assert ended.stdout.startswith("500 calls, 0 bad"), ended.stderr


FILE = """\
truncated: ok, ok
read: EINVAL, write: EINVAL
lseek: ESPIPE, ftruncate: ok, size 0
mmap shared: ENODEV, a page of itself: EFAULT
where nobody may look: EFAULT
a request of no bytes: ENOTTY, one to be read only: ENOTTY
as a 32-bit program: ENOTTY
chmod: ok, mode 100640
chown: ok, group 12
chmod with more: ok, mode 100755
closed to others: EACCES, their chmod: EPERM, but what is open is: ok
"""


def test_the_file_has_the_manners_of_a_device(client: Path, report_at: Path) -> None:
    if not IS_ROOT:
        pytest.skip("this takes root, to become somebody else")
    ran = run(FUSE, report_at, client, "file")
    if ran.code == -signal.SIGSEGV:
        pytest.skip("this kernel runs no 32-bit programs")
    assert (0, FILE) == (ran.code, ran.out), ran.err
    assert ["/dev/sev: a 32-bit program asks, for which the kernel's driver has no entry"] == ran.report[
        "reasons"
    ]
    assert 3 == ran.report["commands"], "what cannot be read, or is no request of its, does not reach it"


def test_when_the_launcher_is_killed_what_is_left_gets_enotconn(client: Path, open_folder: Path) -> None:
    done = open_folder / "abandoned"
    with begin(FUSE, client, "abandoned", done) as running:
        pid = int(line(running.stdout).split()[1])
        running.kill()
        assert gone(pid)
        until = open_folder / "seen"
        subprocess.run(
            ["sh", "-c", f"until test -s {done}; do sleep 0.01; done; cat {done} > {until}"],
            check=True,
            timeout=60,
        )
    assert "ENOTCONN" == until.read_text()


def test_a_program_that_unmounts_its_file_still_ends_as_it_ends(client: Path, report_at: Path) -> None:
    if not IS_ROOT or shutil.which("umount") is None:
        pytest.skip("this takes root, and umount from util-linux")
    script = f"umount /dev/sev /dev/sev-guest && {client} see; kill -USR1 $$"
    assert -10 == run(FUSE, report_at, "sh", "-c", script).code


#: A launcher whose server ends before it has looked at the door, as when the mounts go first.
IN_A_HURRY = """
import sys
from cbit.redirect.fuse_server import FuseServer
from redirect.run import main
FuseServer.run = lambda self, until: None
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("program", "code", "err"),
    [
        ("/no/such", 127, "cbit: /no/such: No such file or directory\n"),
        ("/etc/passwd", 126, "cbit: /etc/passwd: Permission denied\n"),
        ("true", 0, ""),
    ],
)
def test_why_a_program_is_not_started_is_heard_though_the_mounts_go_first(
    program: str, code: int, err: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_HURRY, *FUSE.words, "--", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (code, err) == (ended.returncode, ended.stderr)


def test_the_file_may_go_while_its_closing_is_being_told(open_folder: Path) -> None:
    """The kernel has another errno for a mount that goes while a request is taken; it means the same."""
    if not IS_ROOT or shutil.which("unshare") is None:
        pytest.skip("this takes root, and unshare from util-linux")
    path = open_folder / "sev"
    path.touch()
    words = ["unshare", "--mount", sys.executable, "-m", "redirect.vanishing", path, 100]
    ended = subprocess.run(
        [str(word) for word in words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (0, "100 rounds, 0 faults []\n", "") == (ended.returncode, ended.stdout, ended.stderr)


def test_without_notifications_it_is_served_all_the_same(client: Path) -> None:
    ended = confined("seccomp", command(FUSE.words, [client, "exit", 4]))
    assert (4, "") == (ended.returncode, ended.stderr)


@pytest.mark.parametrize(
    ("denied", "why"),
    [
        ("unshare,mount", "a private mount namespace is refused: EPERM"),
        ("process_vm_readv", "the memory of a program cannot be read (process_vm_readv): EPERM"),
    ],
)
def test_what_it_needs_and_has_not_is_said(denied: str, why: str, client: Path) -> None:
    ended = confined(denied, command(FUSE.words, [client, "exit", 4]))
    said = f"cbit: this computer cannot serve a program through FUSE: {why}\n"
    assert (125, said) == (ended.returncode, ended.stderr)


@pytest.mark.parametrize("kvm", [Kvm.HOST, Kvm.SUPPLIED])
def test_virtual_machines_are_refused(kvm: Kvm) -> None:
    with pytest.raises(Unsupported, match="no descriptors of virtual machines"):
        start(["true"], sev_files(kvm=kvm), mechanism=Mechanism.FUSE)


def test_a_server_insists_on_a_device_for_each_file() -> None:
    with pytest.raises(ValueError, match="devices are wanted"):
        FuseServer([], sev_files(), {})


def test_what_is_set_user_id_keeps_it(report_at: Path, open_folder: Path) -> None:
    if not IS_ROOT or shutil.which("setpriv") is None:
        pytest.skip("this takes root, and setpriv from util-linux")
    flags = os.statvfs(open_folder).f_flag
    if flags & os.ST_NOSUID:
        pytest.skip(f"{open_folder} is mounted nosuid")
    program = open_folder / "whoami"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert "0\n" == run(FUSE, report_at, *drop, program, "-u").out
    assert "65534\n" == run(WAYS[0], report_at, *drop, program, "-u").out, "a filter takes it away"


def test_python_sees_a_regular_file_that_cannot_be_executed(report_at: Path) -> None:
    script = "import os, stat; s = os.stat('/dev/sev'); print(stat.filemode(s.st_mode), s.st_size)"
    ran = run(FUSE, report_at, sys.executable, "-c", script)
    assert "-rw-rw-rw- 0\n" == ran.out, ran.err
    assert environment()["PYTHONPATH"]
