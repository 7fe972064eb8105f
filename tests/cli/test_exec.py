"""``cbit exec``: a program that knows nothing of cbit walks /dev/sev, and ends as it would alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from redirect.conftest import ON_LINUX, Way, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

#: The walk of sev_client.c on a new Milan machine: status words and lengths are sev-api.md §1, §5 and §12.
TRANSCRIPT = """\
parameter sev: Y
status: ok, error 0, API 1.51, build 3, state 0, flags 0, guests 0
id: ok, error 0
id2 asked: EIO, error 4, length 64
id2: ok, error 0, length 64, same 1, second socket 0
status: ok, error 0, API 1.51, build 3, state 0, flags 0, guests 0
export: EIO, error 4, PDH 0x824, chain 0x186c, version 0 and 0
status: ok, error 0, API 1.51, build 3, state 1, flags 0x100, guests 0
export: ok, error 0, PDH 0x824, chain 0x186c, version 1 and 1
export: EIO, error 4, PDH 0x824, chain 0x186c, version 0 and 0
export: EFAULT, error 99, PDH 0x4001, chain 0x186c, version 0 and 0
csr: EIO, error 4, length 0x824, version 0, slots unused 0
csr: EIO, error 4, length 0x824, version 0, slots unused 0
csr: ok, error 0, length 0x824, version 1, slots unused 1
new PDH: ok, error 0
new PEK: ok, error 0
import of nonsense: EIO, error 6
import of too much: EINVAL, error 99
snp status: EINVAL, error 99
snp commit: EINVAL, error 99
snp config: EINVAL, error 99
snp vlek: EINVAL, error 99
out of range: EINVAL, error 99
bad pointer: EFAULT, error 0
reset: ok, error 0
status: ok, error 0, API 1.51, build 3, state 0, flags 0, guests 0
"""

REASONS = """\
cbit exec: GET_ID2: GET_ID: INVALID_LENGTH (0x0004): length 0, needs 64
cbit exec: PDH_CERT_EXPORT: INVALID_LENGTH (0x0004): PDH 0x0, chain 0x0: needs 0x824 and 0x186c
cbit exec: PDH_CERT_EXPORT: INVALID_LENGTH (0x0004): PDH 0x824, chain 0x186b: needs 0x824 and 0x186c
cbit exec: PDH_CERT_EXPORT: length 0x4001 is past the limit of 0x4000
cbit exec: PEK_CSR: INVALID_LENGTH (0x0004): length 0x0, needs 0x824
cbit exec: PEK_CSR: INVALID_LENGTH (0x0004): length 0x823, needs 0x824
cbit exec: PEK_CERT_IMPORT: INVALID_CERTIFICATE (0x0006): OCA: certificate: key usage or algorithm is INVALID
cbit exec: PEK_CERT_IMPORT: length 0x4001 is past the limit of 0x4000
cbit exec: SNP_PLATFORM_STATUS: SNP is not initialised: this platform has none
cbit exec: SNP_COMMIT: SNP is not initialised: this platform has none
cbit exec: SNP_SET_CONFIG: SNP is not initialised: this platform has none
cbit exec: SNP_VLEK_LOAD: SNP is not initialised: this platform has none
cbit exec: SEV_ISSUE_CMD: command 13 is out of range
cbit exec: PLATFORM_STATUS: the caller has no such memory at 0x8
"""


@pytest.fixture
def machine(made: Path, tmp_path: Path) -> Path:
    """A copy, for programs that change the platform."""
    copy = tmp_path / "machine"
    shutil.copytree(made, copy)
    return copy


def cbit(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cbit", *map(str, words)],
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def told(ended: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in ended.stderr.splitlines() if not line.startswith("cbit: making")]


def test_every_command_is_answered_alike_by_each_mechanism(mechanism: Way, client: Path) -> None:
    ended = cbit("exec", "--mechanism", mechanism.mechanism, "--", client)
    assert (42, TRANSCRIPT) == (ended.returncode, ended.stdout), ended.stderr
    for expected, line in zip(REASONS.splitlines(), told(ended), strict=True):
        assert line.startswith(expected)


def test_an_exported_chain_verifies(mechanism: Way, client: Path, machine: Path, tmp_path: Path) -> None:
    chain, certs = tmp_path / "chain.cert", machine / "certs"
    pdh = (certs / "pdh.cert").read_bytes()  # the walk ends with a factory reset
    ended = cbit("exec", "--state", machine, "--mechanism", mechanism.mechanism, "--", client, chain)
    assert 42 == ended.returncode, ended.stderr
    assert 4 * 0x824 == chain.stat().st_size
    words = ["owner", "verify", chain, certs / "cek.cert", "--ca", certs / "ask_ark.cert"]
    verified = cbit(*words, "--trust", certs / "ark.cert")
    assert 0 == verified.returncode, verified.stdout + verified.stderr
    assert "SIMULATED" in verified.stdout
    assert 1 == cbit(*words).returncode, "nobody trusts it unasked"
    content = bytearray(chain.read_bytes())
    assert pdh == content[:0x824], "the machine that was set up, and no other"
    content[0x20] ^= 1
    chain.write_bytes(content)
    assert 1 == cbit(*words, "--trust", certs / "ark.cert").returncode


def test_a_factory_reset_is_still_there_for_the_next_program(
    any_way: None, client: Path, machine: Path, tmp_path: Path
) -> None:
    chains = [tmp_path / "first", tmp_path / "second"]
    for chain in chains:  # each walk ends with a reset
        assert 42 == cbit("exec", "--state", machine, "--", client, chain).returncode
    first, second = (chain.read_bytes() for chain in chains)
    owned, chip = slice(0, 3 * 0x824), slice(3 * 0x824, None)
    assert first[owned] != second[owned]
    assert first[chip] == second[chip]


def test_without_a_state_nothing_is_left_behind(any_way: None, tmp_path: Path) -> None:
    ended = cbit("exec", "--", "cat", "/sys/module/kvm_amd/parameters/sev", TMPDIR=str(tmp_path))
    assert (0, "Y\n", []) == (ended.returncode, ended.stdout, told(ended))
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [0, 1, 2, 125, 255])
def test_the_programs_exit_code_is_ours(any_way: None, made: Path, code: int) -> None:
    ended = cbit("exec", "--state", made, "--", "sh", "-c", f"exit {code}")
    assert (code, "", []) == (ended.returncode, ended.stdout, told(ended))


def test_a_signal_that_ends_the_program_ends_us(any_way: None, made: Path, tmp_path: Path) -> None:
    words = ["exec", "--", "sh", "-c", "kill -TERM $$"]
    assert -signal.SIGTERM == cbit(*words, TMPDIR=str(tmp_path)).returncode
    assert [] == list(tmp_path.iterdir()), "the temporary machine is gone all the same"


def test_the_programs_words_are_its_own(any_way: None, made: Path) -> None:
    ended = cbit("exec", "--state", made, "--", "echo", "--json", "--state", "x", "--", "-h")
    assert (0, "--json --state x -- -h\n") == (ended.returncode, ended.stdout)


def test_a_program_that_is_not_there_or_is_none(any_way: None, made: Path, tmp_path: Path) -> None:
    ended = cbit("exec", "--state", made, "--", "no-such-program")
    assert 127 == ended.returncode
    assert ["cbit exec: no-such-program: No such file or directory"] == told(ended)
    ended = cbit("exec", "--state", made, "--", "")
    assert 127 == ended.returncode
    assert ["cbit exec: : No such file or directory"] == told(ended)
    (tmp_path / "text").write_text("text")
    ended = cbit("exec", "--state", made, "--", tmp_path / "text")
    assert 126 == ended.returncode
    assert ended.stderr.endswith("Permission denied\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--socket", "s", "--", "true"], "s: No such file or directory; 'cbit serve --socket s'"),
        (["--socket", "s", "--state", "m", "--", "true"], "--state or --socket: a machine of its own"),
        ([], "name a program"),
        (["--mechanism", "magic", "--", "true"], "--mechanism magic: it is one of namespace, opens, fuse"),
        (["--mechanism", "fuse", "--kvm", "host", "--", "true"], "--kvm host: through FUSE no requests of"),
        (["--mechanism", "fuse", "--kvm", "supplied", "--", "true"], "--kvm supplied: through FUSE no"),
        (["--state", "nowhere", "--", "true"], "nowhere: No such file or directory; make a machine with"),
    ],
)
def test_what_fails_before_the_program_is_125(
    any_way: None, words: list[str], reason: str, tmp_path: Path
) -> None:
    ended = cbit("exec", *words)
    assert (125, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.startswith(f"cbit exec: {reason}")
    assert 1 == len(ended.stderr.splitlines())


def test_cpuid_is_answered_or_said_to_be_impossible(any_way: None, made: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    source, program = tmp_path / "leaf.c", tmp_path / "leaf"
    source.write_text(
        "#include <cpuid.h>\n#include <stdio.h>\n"
        "int main(void) { unsigned a, b, c, d; __cpuid_count(0x8000001f, 0, a, b, c, d);\n"
        'printf("%u %u %u\\n", b & 63, b >> 6 & 63, c); return 0; }\n'
    )
    subprocess.run([compiler, "-o", program, source], check=True)
    from cbit.redirect.tracer import why_not

    ended = cbit("exec", "--state", made, "--cpuid", "--", program)
    if why := why_not():
        assert (125, "") == (ended.returncode, ended.stdout)
        assert "needs a processor on which CPUID can be made to fault" in ended.stderr
        assert f"ARCH_SET_CPUID): {why}" in ended.stderr
    else:
        assert (0, "47 5 15\n") == (ended.returncode, ended.stdout), ended.stderr


def test_a_command_line_that_makes_no_sense_is_125(any_way: None) -> None:
    ended = cbit("exec", "--nonsense", "--", "true")
    assert (125, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.endswith("cbit exec: unrecognized arguments: --nonsense\n")
    found = json.loads(cbit("exec", "--json", "--nonsense", "--", "true").stdout)
    assert ("exec", False) == (found["command"], found["ok"])
    assert 2 == cbit("setup", "--nonsense").returncode, "of all others the code stays"


def test_what_the_launcher_refuses_itself_is_explained_too(any_way: None, made: Path) -> None:
    script = (
        "import fcntl, os\nkvm = os.open('/dev/kvm', os.O_RDWR)\n"
        "for fd, request in ((99, 0xC0105300), (kvm, 0xAE00), (kvm, 0xAE47)):\n"
        "    try:\n        fcntl.ioctl(fd, request, 1)\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    words = ["--state", made, "--kvm", "supplied", "--mechanism", "opens", "--", sys.executable, "-c", script]
    ended = cbit("exec", *words)
    assert (0, "9\n22\n25\n") == (ended.returncode, ended.stdout), ended.stderr
    assert [
        "cbit exec: SEV_ISSUE_CMD: no descriptor 99",
        "cbit exec: KVM_GET_API_VERSION: argument 0x1: it has none",
        "cbit exec: KVM_SET_TSS_ADDR: cbit's /dev/kvm does not answer it",
    ] == told(ended)


def test_a_machine_that_does_not_start_runs_no_program(any_way: None, made: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    image = bytearray((broken / "spi/sev_firmware.bin").read_bytes())
    image[-1] ^= 1
    (broken / "spi/sev_firmware.bin").write_bytes(image)
    mark = tmp_path / "mark"
    ended = cbit("exec", "--state", broken, "--", "touch", mark)
    assert 125 == ended.returncode
    assert ended.stderr.startswith("cbit exec: ")
    assert "Traceback" not in ended.stderr
    assert not mark.exists()


def test_a_machine_is_for_one_at_a_time(any_way: None, made: Path) -> None:
    inner = [sys.executable, "-m", "cbit", "setup", "--state", str(made), "--profile", "naples"]
    ended = cbit("exec", "--state", made, "--", *inner)
    assert 2 == ended.returncode
    assert "in use by another cbit process" in ended.stderr


def test_as_data_the_answer_is_one_object(any_way: None, machine: Path, client: Path) -> None:
    ended = cbit("exec", "--json", "--state", machine, "--mechanism", "opens", "--", client)
    found = json.loads(ended.stdout)
    assert 42 == ended.returncode == found["result"]["exit_code"]
    assert ("exec", False) == (found["command"], found["ok"])
    assert len(REASONS.splitlines()) == len(found["result"]["refused"])
    assert [f"{client} ended with 42"] == found["reasons"]
    assert "status: ok" in ended.stderr, "the program's own output"
    ended = cbit("exec", "--json", "--state", machine, "--mechanism", "opens", "--", "true")
    found = json.loads(ended.stdout)
    assert (0, True, []) == (ended.returncode, found["ok"], found["reasons"])
    assert ("opens", "naples") == (found["result"]["mechanism"], found["result"]["profile"])


def test_the_program_inherits_no_file_of_the_machines(any_way: None, made: Path) -> None:
    script = (
        "import os, sys\n"
        "print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{n}')))\n"
    )
    ended = cbit("exec", "--state", made, "--", sys.executable, "-c", script)
    assert 0 == ended.returncode, ended.stderr
    assert "/dev/null" in ended.stdout, "standard input is seen"
    assert str(made) not in ended.stdout


def test_the_fork_comes_before_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A child made later would carry the machine's keys in its memory while it waits."""
    from cbit.cli import main
    from cbit.redirect.errors import RedirectError

    def start(*words: object, **options: object) -> None:
        raise RedirectError("the fork")

    monkeypatch.setattr("cbit.redirect.launcher.start", start)
    assert 125 == main(["exec", "--state", "nowhere", "--", "true"])
    assert "cbit exec: the fork\n" == capsys.readouterr().err


def test_reasons_that_nobody_reads_change_no_answer(any_way: None, client: Path, machine: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "cbit", "exec", "--state", str(machine), "--", str(client)]
    try:
        ended = subprocess.run(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        os.close(writing)
    status = (line for line in ended.stdout.splitlines() if not line.startswith("status"))
    expected = (line for line in TRANSCRIPT.splitlines() if not line.startswith("status"))
    assert list(expected) == list(status)
    assert 42 == ended.returncode
