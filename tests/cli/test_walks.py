"""One transcript, whoever asks (C, static C, Go), by each mechanism, of its own machine or a served one."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.test_exec import TRANSCRIPT, cbit
from cli.test_serve import Served, serving
from conftest import RequireProgram
from redirect.conftest import ON_LINUX, Way, compiled, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

HERE = Path(__file__).parent
SEV_WALK = TRANSCRIPT.replace("API 1.51, build 3", "API 0.17, build 48")

#: The walk of kvm_client.c: errno and status words are sev-api.md §1, §7, §10 and §13.
KVM_WALK = """\
version 12
machine: ok
memory: ok
probe: ok
start too early: ENOTTY, error 99
no such sub-command: EINVAL, error 99
init: ok, error 99
init again: EINVAL, error 99
processor: ok
region: ok
no region: EINVAL
another region back: EINVAL
start at a bad address: EFAULT, error 99
start, policy of tomorrow: EIO, error 7
start without /dev/sev: EBADF, error 99
start with another file: EBADF, error 99
start: ok, error 0
guest: ok, error 0
  state 1, policy 0, handle 1
update: ok, error 0
  pages changed CHANGED
update of part of a block: EIO, error 4
update of nothing: EINVAL, error 99
update at a bad address: ENOMEM, error 99
measure asked: EIO, error 4
  length 48
measure: ok, error 0
  length 48
update too late: EIO, error 2
secret of nobody: EIO, error 11
finish: ok, error 0
finish again: EIO, error 2
guest: ok, error 0
  state 3, policy 0, handle 1
report asked: EIO, error 4
  length 208
decrypt: ok, error 0
  as it was 1
encrypt: ok, error 0
decrypt: ok, error 0
  as it was written 1
region back: ok
guests 1
machine: ok
memory: ok
guests 0
init: ok, error 99
start, sharing with nobody: EIO, error 16
start: ok, error 0
guests 1
"""


def kvm_walk(*, encrypted: bool) -> str:
    return KVM_WALK.replace("CHANGED", str(int(encrypted)))


def kvm_can_be_opened() -> bool:
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


@pytest.fixture(scope="session", params=["dynamic", "static", "go"])
def walks(request: pytest.FixtureRequest, open_folder: Path) -> Callable[[str], list[str]]:
    """The words that begin a walk, "sev" or "kvm"."""
    if request.param == "go":
        compiler = shutil.which("go")
        if compiler is None:
            pytest.skip("go is not here: apt install golang-go")
        program = open_folder / "walks-go"
        words = [compiler, "build", "-o", str(program), str(HERE / "walks.go")]
        settings = {"CGO_ENABLED": "0", "GOCACHE": str(open_folder / "go-cache")}
        subprocess.run(words, check=True, env=environment() | settings)
        return lambda which: [str(program), which]
    options = ("-static",) if request.param == "static" else ()

    def walk(which: str) -> list[str]:
        name = f"{which}-{request.param}"
        return [str(compiled(open_folder, name, *options, source=HERE / f"{which}_client.c"))]

    return walk


@pytest.fixture(scope="module")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(shutil.copytree(made, folder / "machine"), folder) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def walked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine that every walk resets: its published certificates are soon of an older identity."""
    return shutil.copytree(made, tmp_path_factory.mktemp("walked") / "machine")


@pytest.fixture(params=["own", "served"])
def where(request: pytest.FixtureRequest, walked: Path, served: Served) -> list[str]:
    if request.param == "own":
        return ["--state", str(walked)]
    assert served.ask("reset")["ok"], "as new, whoever was there before"
    return ["--socket", str(served.path)]


def test_every_command_of_dev_sev(
    mechanism: Way, where: list[str], walks: Callable[[str], list[str]]
) -> None:
    ended = cbit("exec", *where, "--mechanism", mechanism.mechanism, "--kvm", "none", "--", *walks("sev"))
    assert (42, SEV_WALK) == (ended.returncode, ended.stdout), ended.stderr


@pytest.mark.parametrize("kvm", ["supplied", "host"])
def test_a_whole_launch(
    kvm_mechanism: Way, where: list[str], kvm: str, walks: Callable[[str], list[str]]
) -> None:
    if kvm == "host" and not kvm_can_be_opened():
        pytest.skip("/dev/kvm cannot be opened here")
    words = ["exec", *where, "--mechanism", kvm_mechanism.mechanism, "--kvm", kvm, "--", *walks("kvm")]
    ended = cbit(*words)
    assert (42, kvm_walk(encrypted=kvm == "supplied")) == (ended.returncode, ended.stdout), ended.stderr


@pytest.mark.parametrize("rule", ["encrypted", "plain"])
def test_the_memory_rule_can_be_chosen_and_is_named(any_way: None, served: Served, rule: str) -> None:
    script = "import os, time\nprint(os.path.exists('/dev/kvm'), flush=True)\ninput()\n"
    words = [sys.executable, "-m", "cbit", "exec", "--json", "--socket", str(served.path)]
    words += ["--kvm", "supplied", "--guest-memory", rule, "--", sys.executable, "-c", script]
    with subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        status = served.settled(lambda status: any(one["guest_memory"] == rule for one in status["clients"]))
        assert any(one["guest_memory"] == rule for one in status["clients"])
        out, _ = running.communicate("\n", timeout=100)
    found = json.loads(out)["result"]
    assert ("supplied", rule) == (found["kvm"], found["guest_memory"])
    assert any(f"guest memory: {rule}" in line for line in served.log)


def test_plain_pages_stay_as_they_are(any_way: None, made: Path, open_folder: Path) -> None:
    client = compiled(open_folder, "kvm-dynamic", source=HERE / "kvm_client.c")
    ended = cbit("exec", "--state", made, "--kvm", "supplied", "--guest-memory", "plain", "--", client)
    assert (42, kvm_walk(encrypted=False)) == (ended.returncode, ended.stdout)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--kvm", "magic"], "--kvm magic: it is one of host, supplied, none"),
        (["--guest-memory", "x"], "--guest-memory x: it is one of encrypted, plain"),
    ],
)
def test_a_choice_that_is_none_is_125(any_way: None, words: list[str], why: str) -> None:
    ended = cbit("exec", *words, "--", "true")
    assert (125, f"cbit exec: {why}\n") == (ended.returncode, ended.stderr)


class Owner:
    """The owner's files for one machine, and the client that carries them."""

    def __init__(self, machine: Path, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        trust = machine / "certs/ark.cert"
        words = ["owner", "session", "--chain", machine / "certs", "--trust", trust, "--policy", "0x1"]
        ended = cbit(*words, "--out", folder)
        assert 0 == ended.returncode, ended.stderr
        self.image, self.blob = folder / "image", folder / "blob"
        self.image.write_bytes(bytes(range(256)) * 32)

    def client(self, program: Path) -> list[str]:
        files = [self.folder / "godh.cert", self.folder / "launch_blob.bin", self.image, self.blob]
        return [str(program), *map(str, files)]

    def measurement(self) -> str:
        return base64.b64encode(self.blob.read_bytes()).decode()


@pytest.mark.parametrize("rule", ["encrypted", "plain"])
def test_an_owner_accepts_the_launch_and_the_secret_arrives(
    any_way: None, made: Path, open_folder: Path, tmp_path: Path, rule: str
) -> None:
    owner = Owner(made, tmp_path)
    program = compiled(open_folder, "kvm-dynamic", source=HERE / "kvm_client.c")
    words = [sys.executable, "-m", "cbit", "exec", "--state", str(made), "--kvm", "supplied"]
    words += ["--guest-memory", rule, "--", *owner.client(program)]
    with subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        for line in running.stdout:
            if line == "  length 48\n":
                break
        receipt, key = tmp_path / "receipt.json", tmp_path / "key"
        asked = [
            "owner",
            "measure",
            "--mode",
            "sev",
            "--firmware",
            owner.image,
            "--tk",
            tmp_path / "tmp_tk.bin",
        ]
        asked += ["--measurement", owner.measurement(), "--api-major", "0", "--api-minor", "17"]
        accepted = cbit(*asked, "--build-id", "48", "--policy", "0x1", "--receipt", receipt)
        assert 0 == accepted.returncode, accepted.stdout + accepted.stderr
        key.write_bytes(b"the disk's key, which nobody else sees...")
        sealed = ["owner", "secret", "--receipt", receipt, "--tk", tmp_path / "tmp_tk.bin", "--raw", key]
        made_secret = cbit(*sealed, "--out", tmp_path)
        assert 0 == made_secret.returncode, made_secret.stderr
        (tmp_path / "blob.hdr").write_bytes((tmp_path / "packaged_secret_header.bin").read_bytes())
        (tmp_path / "blob.bin").write_bytes((tmp_path / "packaged_secret.bin").read_bytes())
        out, err = running.communicate("go\n", timeout=100)
    assert 42 == running.returncode, err
    assert "secret, a bit flipped: EIO, error 11\nsecret: ok, error 0\nfinish: ok, error 0\n" in out
    assert f"secret is readable here {int(rule == 'plain')}\n" in out
    assert "cbit exec: KVM LAUNCH_SECRET: BAD_MEASUREMENT (0x000b)" in err


@pytest.mark.oracle
def test_another_validator_accepts_the_measurement(
    any_way: None, made: Path, open_folder: Path, tmp_path: Path, require_program: RequireProgram
) -> None:
    validate = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")
    owner = Owner(made, tmp_path)
    program = compiled(open_folder, "kvm-dynamic", source=HERE / "kvm_client.c")
    cbit(
        "exec", "--state", made, "--kvm", "supplied", "--", *owner.client(program)
    )  # its input ends: so does it
    words = [*validate, "--measurement", owner.measurement(), "--api-major", "0", "--api-minor", "17"]
    words += ["--build-id", "48", "--policy", "1", "--firmware", str(owner.image)]
    words += ["--tk", str(tmp_path / "tmp_tk.bin")]
    assert 0 == subprocess.run(words, capture_output=True, check=False).returncode
    owner.image.write_bytes(owner.image.read_bytes()[:-1] + b"?")
    assert 1 == subprocess.run(words, capture_output=True, check=False).returncode
