"""What a program sees is the same whichever mechanism shows it, to root and to nobody, dynamic or static."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redirect.conftest import FUSE, HERE, WAYS, Way, begin, command, environment, insist, line, run

#: What a program with nothing wrong prints.
EXPECTED = """\
open O_RDONLY: ok
open O_WRONLY: ok
open itself: ok, close on exec 1, access mode 2
openat a directory: ok
openat2: ok
openat2 beneath: EXDEV
openat2 without a how: EFAULT
relative: ok
through ..: ok
exclusive: EEXIST
as a directory: ENOTDIR
a neighbour: ENOENT
another sev: ENOENT
a bad path: EFAULT
fstat ok, character device 1; read at the end of file: 0
/dev/sev: stat ok type 20000; lstat ok type 20000; statx ok type 20000 size 0; raw stat ok rdev 107
/dev/sev: access R ok, X EACCES, 9 EINVAL, faccessat2 ok, realpath /dev/sev
PARAMETERS/sev: stat ok type 100000; lstat ok type 100000; statx ok type 100000 size 2; raw stat ok rdev 0
PARAMETERS/sev: access R ok, X EACCES, 9 EINVAL, faccessat2 ok, realpath PARAMETERS/sev
PARAMETERS/sev_snp: stat ok type 100000; lstat ok type 100000; statx ok type 100000 size 2; raw stat ok rdev 0
PARAMETERS/sev_snp: access R ok, X EACCES, 9 EINVAL, faccessat2 ok, realpath PARAMETERS/sev_snp
PARAMETERS/sev: ok 2 Y
PARAMETERS/sev_es: ok 2 N
a directory above: ok
dup: ok
the first closed: ok
a closed number: EBADF
no number at all: EBADF
a foreign file: ENOTTY
standard input: ENOTTY
the number of another file: ENOTTY
another request: ENOTTY
a request of the other device: ENOTTY
sign-extended: EIO
fork, a descriptor through a socket, exec: 0
EIO and an error field: EIO 3
errno of the device: EPERM
a fault of the device: EIO
and it lives: ok
a bad argument: EFAULT
a bad pointer: EFAULT
a pointer at the top: EFAULT
across the end: EFAULT
a path at the end of memory: ok
memory that may not be written: EFAULT
a report of 4000 bytes: ok right
5 MiB: ok 0 wrong
2^62 bytes: EFAULT
commands of this process: 22
4 threads, 50 opens each: 0 bad
""".replace("PARAMETERS", "/sys/module/kvm_amd/parameters")

#: A served file is a regular file, of which the kernel says without us how many bytes are left; and the
#: device counts what one open descriptor is asked, where it otherwise counts what one process asks.
SERVED = {
    "fstat ok, character device 1;": "fstat ok, character device 0;",
    "type 20000": "type 100000",
    "raw stat ok rdev 107": "raw stat ok rdev 0",
    "another request: ENOTTY": "another request: ok",
    "commands of this process: 22": "commands of this process: 11",
}


def expected(way: Way) -> str:
    text = EXPECTED
    if way.mechanism == "fuse":
        for elsewhere, served in SERVED.items():
            assert elsewhere in text
            text = text.replace(elsewhere, served)
    return text


@pytest.mark.parametrize("program", ["client", "static_client"])
def test_every_mechanism_shows_the_same(
    way: Way, program: str, report_at: Path, request: pytest.FixtureRequest
) -> None:
    ran = run(way, report_at, request.getfixturevalue(program))
    assert (0, expected(way)) == (ran.code, ran.out), ran.err
    report = ran.report
    assert way.mechanism == report["mechanism"]
    if way.mechanism == "fuse":  # each time that it was opened
        assert 214 == report["opened"] == report["closed"]
        assert 1 == len(set(report["opened_by"]))
    else:
        # The parent, to write and to read only, its child before and after exec; /dev/sev-guest is its own.
        assert 4 == report["opened"] == report["closed"]
        assert 2 == len(set(report["opened_by"]))
    assert report["descriptors"][0] == report["descriptors"][1]
    assert "RuntimeError: the device has a fault" in ran.err


def test_a_program_in_go_gets_every_answer_once(way: Way, open_folder: Path, report_at: Path) -> None:
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("go is not here: apt install golang-go")
    program = open_folder / "go-client"
    if not program.exists():
        build = [compiler, "build", "-o", str(program), str(HERE / "client.go")]
        settings = {"CGO_ENABLED": "0", "GOCACHE": str(open_folder / "go-cache")}
        subprocess.run(build, check=True, env=environment() | settings)
    ran = run(way, report_at, program)
    assert ['"Y\\n" <nil>', "stat: <nil>", "echo: true", "8 times 500: 0 bad"] == ran.out.splitlines(), (
        ran.err
    )
    assert 4001 == ran.report["commands"]


def test_the_requests_are_those_of_the_kernels_headers(client: Path) -> None:
    from cbit.driver import kvm_structs
    from cbit.redirect import files

    ended = subprocess.run([client, "numbers"], capture_output=True, text=True, check=True)
    ours = (
        *(files.SEV_ISSUE_CMD, kvm_structs.KVM_MEMORY_ENCRYPT_OP),
        *(kvm_structs.KVM_MEMORY_ENCRYPT_REG_REGION, kvm_structs.KVM_MEMORY_ENCRYPT_UNREG_REGION),
        *(files.SNP_GET_REPORT, files.SNP_GET_DERIVED_KEY, files.SNP_GET_EXT_REPORT),
    )
    assert [f"{number:x}" for number in ours] + ["16"] == ended.stdout.split()


def test_requests_on_a_real_virtual_machine_are_answered(
    kvm_mechanism: Way, client: Path, report_at: Path
) -> None:
    ran = run(kvm_mechanism, report_at, client, "vm", extra=("--kernel-vm",))
    if ran.code == 77:
        pytest.skip("/dev/kvm makes no virtual machine here")
    lines = ran.out.splitlines()
    assert ["on a virtual machine: 7", "with another file for /dev/sev: EBADF"] == lines[:2], ran.err
    assert ["on /dev/kvm: ENOTTY", "KVM's own requests: ok"] == lines[2:]


def test_without_a_word_the_namespace_is_taken_where_there_is_one(
    refusals: dict[str, str], client: Path, report_at: Path
) -> None:
    insist(WAYS[2], refusals)
    subprocess.run(command([], [client, "exit", 0], report_at), env=environment(), check=True)
    report = json.loads(report_at.read_text())
    assert ("opens" if "namespace" in refusals else "namespace") == report["mechanism"]
    assert refusals.get("namespace", "a private mount namespace can be made") == report["why"]


def test_a_program_that_gives_up_root_sees_the_same(mechanism: Way, client: Path, report_at: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("this takes root, and setpriv from util-linux")
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    ran = run(mechanism, report_at, *drop, client)
    assert (0, expected(mechanism)) == (ran.code, ran.out), ran.err


@pytest.mark.parametrize("way", [WAYS[0], FUSE], ids=str)
def test_a_namespace_within_shows_the_same(
    way: Way, refusals: dict[str, str], client: Path, report_at: Path
) -> None:
    insist(way, refusals)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("this takes root, and unshare from util-linux")
    ran = run(way, report_at, "unshare", "--mount", client)
    assert (0, expected(way)) == (ran.code, ran.out), ran.err


def test_another_root_directory_has_its_own_files(
    mechanism: Way, static_client: Path, report_at: Path, open_folder: Path
) -> None:
    if os.geteuid() != 0 or shutil.which("chroot") is None:
        pytest.skip("this takes root, and chroot from coreutils")
    ran = run(mechanism, report_at, "chroot", open_folder, f"/{static_client.name}", "see")
    assert "ENOENT\n" == ran.out, ran.err


#: A file of ours has no extended attributes, and one that is none of ours the kernel's answer.
ATTRIBUTES = """
import errno, os
for path in ("/dev/sev", "/sys/module/kvm_amd/parameters/sev", "/dev/no-sev"):
    for follow in (True, False):
        for call in (os.listxattr, lambda path, **how: os.getxattr(path, "user.none", **how)):
            try:
                print(path, call(path, follow_symlinks=follow))
            except OSError as error:
                print(path, errno.errorcode[error.errno])
"""


def test_a_listing_of_a_file_complains_of_nothing(mechanism: Way, report_at: Path) -> None:
    ran = run(mechanism, report_at, "ls", "-l", "/dev/sev", "/sys/module/kvm_amd/parameters/sev")
    assert (0, "") == (ran.code, ran.err)
    assert ["/dev/sev", "/sys/module/kvm_amd/parameters/sev"] == [
        line.split()[-1] for line in ran.out.splitlines()
    ]


def test_a_file_has_no_extended_attributes(report_at: Path, refusals: dict[str, str]) -> None:
    insist(WAYS[2], refusals)
    ran = run(WAYS[2], report_at, sys.executable, "-c", ATTRIBUTES)
    ours = [
        f"{path} {said}"
        for path in ("/dev/sev", "/sys/module/kvm_amd/parameters/sev")
        for said in ("[]", "ENODATA") * 2
    ]
    assert (0, [*ours, *["/dev/no-sev ENOENT"] * 4]) == (ran.code, ran.out.splitlines()), ran.err


def test_pseudo_terminals_can_be_made(way: Way, report_at: Path) -> None:
    program = "import os; m, s = os.openpty(); os.write(m, b'typed\\n'); print(os.isatty(s), os.read(s, 9))"
    python = "/usr/bin/python3" if way.nobody else sys.executable
    if not os.path.exists(python):
        pytest.skip(f"no interpreter that nobody may run: {python}")
    ran = run(way, report_at, python, "-I", "-S", "-c", program)
    assert "True b'typed\\n'\n" == ran.out, ran.err


@pytest.mark.parametrize("way", [WAYS[0], FUSE], ids=str)
def test_the_namespace_is_private(way: Way, client: Path, refusals: dict[str, str]) -> None:
    insist(way, refusals)
    before = Path("/proc/self/mountinfo").read_text()
    with begin(way, client, "wait-for", 10) as running:
        pid = int(line(running.stdout).split()[1])
        assert before == Path("/proc/self/mountinfo").read_text()
        theirs = Path("/proc", str(pid), "root", "dev")
        assert {path.name for path in Path("/dev").iterdir()} <= {path.name for path in theirs.iterdir()}
        assert theirs.stat().st_mode == Path("/dev").stat().st_mode
