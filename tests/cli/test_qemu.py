"""Debian's unmodified QEMU launches an encrypted guest against cbit, and another's validator accepts it.

With the host's KVM the guest itself runs unencrypted (its processor has no AES engine), and no later than
``cont``.  With the supplied one its pages are ciphertext, and it does not run.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli.test_exec import cbit
from cli.test_serve import serving
from conftest import RequireProgram
from owner.images import OVMF, installed, with_hash_area
from redirect.conftest import ON_LINUX, environment

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

SECRET_AT = 0x820000
SECRET = b"the disk's key, which nobody else sees.."
TIMEOUT_S = 100
DEBUGGER = Path(__file__).with_name("qemu_debugger.py")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = tmp_path_factory.mktemp("qemu") / "machine"
    ended = cbit("setup", "--state", machine, "--profile", "naples")
    assert 0 == ended.returncode, ended.stderr
    return machine


@dataclass(frozen=True)
class Host:
    """What a launch needs: whose virtual machines there are, QEMU, the machine, and where it is served."""

    kvm: str
    qemu: list[str]
    machine: Path
    socket: Path | None = None


@pytest.fixture
def supplied(any_way: None, machine: Path, require_program: RequireProgram) -> Host:
    return Host("supplied", require_program("qemu-system-x86_64", "apt install qemu-system-x86"), machine)


@pytest.fixture(params=["host", "supplied"])
def host(request: pytest.FixtureRequest, supplied: Host) -> Host:
    """With the kernel's virtual machines, and with cbit's."""
    if request.param == "host" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be used here; with the supplied KVM the same is tested")
    return replace(supplied, kvm=request.param)


@pytest.fixture
def validate(require_program: RequireProgram) -> list[str]:
    return require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")


@pytest.fixture
def session(machine: Path, tmp_path: Path) -> Path:
    return a_session(machine, tmp_path / "session")


def a_session(machine: Path, folder: Path, policy: int = 1) -> Path:
    words = ["owner", "session", "--chain", machine / "certs", "--trust", machine / "certs/ark.cert"]
    ended = cbit(*words, "--policy", hex(policy), "--out", folder)
    assert 0 == ended.returncode, ended.stderr
    return folder


class Qmp:
    """A running QEMU, asked through its standard streams."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.refused = ""

    def ask(self, what: str, **arguments: object) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"execute": what, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            said = json.loads(line)
            if "return" in said:
                return said["return"]
            if "error" in said:
                return said["error"]["desc"]
        raise AssertionError(f"QEMU ended: {self.end()}")

    def end(self) -> str:
        _, err = self.process.communicate(timeout=TIMEOUT_S)
        return err


def command(host: Host, session: Path, *more: str, firmware: Path = OVMF, policy: int = 1) -> list[str]:
    # CPUID is not answered: 0 is what fits.
    guest = f"sev-guest,id=sev0,cbitpos=0,reduced-phys-bits=1,policy={policy}"
    if "-kernel" in more:
        guest += ",kernel-hashes=on"
    files = f"dh-cert-file={session / 'godh.b64'},session-file={session / 'launch_blob.b64'}"
    machine = ("--socket", str(host.socket)) if host.socket else ("--state", str(host.machine))
    return [
        *(
            sys.executable,
            "-m",
            "cbit",
            "exec",
            *machine,
            "--kvm",
            host.kvm,
            "--",
            *host.qemu,
        ),
        *("-accel", "kvm", "-cpu", "qemu64", "-m", "128", "-S", "-display", "none", "-nodefaults"),
        *("-machine", "q35,smm=off,confidential-guest-support=sev0", "-object", f"{guest},{files}"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={firmware}", "-qmp", "stdio", *more),
    ]


@contextmanager
def running(host: Host, session: Path, *more: str, firmware: Path = OVMF, policy: int = 1) -> Iterator[Qmp]:
    words = command(host, session, *more, firmware=firmware, policy=policy)
    with subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            if not process.stdout.readline():  # the greeting
                assert process.stderr
                raise AssertionError(process.stderr.read())
            asked = Qmp(process)
            assert {} == asked.ask("qmp_capabilities")
            yield asked
        finally:
            process.kill()


def said_by(
    validate: list[str], session: Path, measurement: str, firmware: Path, *more: str, policy: int = 1
) -> int:
    words = [
        *validate,
        "--measurement",
        measurement,
        "--api-major",
        "0",
        "--api-minor",
        "17",
        "--build-id",
        "48",
    ]
    words += [
        "--policy",
        str(policy),
        "--firmware",
        str(firmware),
        "--tk",
        str(session / "tmp_tk.bin"),
        *more,
    ]
    return subprocess.run(words, capture_output=True, check=False).returncode


def test_a_launch_by_qemu_from_query_to_cont(
    host: Host, validate: list[str], session: Path, tmp_path: Path
) -> None:
    installed(OVMF)
    with running(host, session) as guest:
        found = guest.ask("query-sev")
        assert {"state": "launch-secret", "policy": 1, "api-major": 0, "api-minor": 17, "build-id": 48} == {
            name: found[name] for name in ("state", "policy", "api-major", "api-minor", "build-id")
        }
        able = guest.ask("query-sev-capabilities")
        assert (host.machine / "certs/pdh.cert").read_bytes() == base64.b64decode(able["pdh"])
        measurement = guest.ask("query-sev-launch-measure")["data"]
        assert 0 == said_by(validate, session, measurement, OVMF)

        receipt, key = tmp_path / "receipt.json", tmp_path / "key"
        key.write_bytes(SECRET)
        words = ["owner", "measure", "--mode", "sev", "--firmware", OVMF, "--tk", session / "tmp_tk.bin"]
        words += ["--measurement", measurement, "--api-major", "0", "--api-minor", "17", "--build-id", "48"]
        assert 0 == cbit(*words, "--policy", "0x1", "--receipt", receipt).returncode
        sealed = ["owner", "secret", "--receipt", receipt, "--tk", session / "tmp_tk.bin", "--raw", key]
        assert 0 == cbit(*sealed, "--out", tmp_path).returncode
        header = base64.b64encode((tmp_path / "packaged_secret_header.bin").read_bytes()).decode()
        payload = base64.b64encode((tmp_path / "packaged_secret.bin").read_bytes()).decode()
        inject = {"secret": payload, "gpa": SECRET_AT}
        zero = base64.b64encode(bytes(52)).decode()
        answer = guest.ask("sev-inject-launch-secret", **{"packet-header": zero}, **inject)
        assert "fw_error=11 'Bad measurement'" in answer
        assert {} == guest.ask("sev-inject-launch-secret", **{"packet-header": header}, **inject)
        dump = tmp_path / "memory"
        assert {} == guest.ask("pmemsave", val=SECRET_AT, size=64, filename=str(dump))
        arrived = dump.read_bytes()[: len(SECRET)]
        assert (host.kvm == "host") is (arrived == SECRET), "the host's KVM has no AES engine, ours is one"
        assert bytes(len(SECRET)) != arrived
        assert {} == guest.ask("cont")
        assert "running" == guest.ask("query-sev")["state"]
        status = guest.ask("query-status")
        if host.kvm == "supplied":
            while status["status"] in ("running", "paused"):  # until its processor has been told
                status = guest.ask("query-status")
        assert status["running"] is (host.kvm == "host")
        guest.ask("quit")
        log = guest.end()
        assert 0 == guest.process.returncode
    assert "cbit exec: KVM LAUNCH_SECRET: BAD_MEASUREMENT (0x000b)" in log
    told = "cbit exec: KVM_RUN: this KVM launches guests and runs none; cbit run does"
    assert (host.kvm == "supplied") is (told in log)


def test_qemus_pages_are_ciphertext_that_a_debugger_reads(supplied: Host, tmp_path: Path) -> None:
    """With the supplied KVM: in QEMU's own memory as in what QEMU saves of its guest's."""
    image = installed(OVMF)
    session = a_session(supplied.machine, tmp_path / "session", policy=0)
    program = [sys.executable, str(DEBUGGER), str(len(image)), "--", *supplied.qemu]
    words = command(replace(supplied, qemu=program), session, policy=0)
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == ended.returncode, ended.stderr
    said = {name: bytes.fromhex(value) for name, value in json.loads(ended.stdout).items()}
    assert (len(image), len(said["seen"])) == (len(said["saved"]), 0x2000)
    assert said["saved"].endswith(said["seen"])
    assert image.endswith(said["plain"])
    blocks = [(image[at : at + 16], said["saved"][at : at + 16]) for at in range(0, len(image), 16)]
    assert all(plain != there for plain, there in blocks)


#: QEMU asks whether the platform has ES before anything needs it: it has, once something did.
START_PLATFORM = """
import ctypes, fcntl, os, struct, sys
room = ctypes.create_string_buffer(24)
fd = os.open("/dev/sev", os.O_RDWR)
try:
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 5, ctypes.addressof(room), 0))
except OSError:
    os.close(fd)
    os.execv(sys.argv[1], sys.argv[1:])
"""


def launched_with_es(host: Host, session: Path, *more: str) -> str:
    """Return the measurement."""
    program = [sys.executable, "-c", START_PLATFORM, *host.qemu]
    with running(replace(host, qemu=program), session, *more, policy=5) as guest:
        found = guest.ask("query-sev")
        assert ("launch-secret", 5) == (found["state"], found["policy"])
        measurement: str = guest.ask("query-sev-launch-measure")["data"]
        guest.ask("quit")
        guest.end()
    return measurement


def cpus(count: int, *signature: int) -> list[str]:
    """What the validator is told of them: family, model, stepping."""
    words = ["--num-cpus", str(count)]
    for name, number in zip(("family", "model", "stepping"), signature, strict=True):
        words += [f"--cpu-{name}", str(number)]
    return words


NOBODYS = 6, 0, 0  # 0x600, which KVM puts there
QEMU64 = 15, 107, 1


def test_a_guest_with_es_is_measured_with_its_save_area(
    host: Host, validate: list[str], tmp_path: Path
) -> None:
    installed(OVMF)
    session = a_session(host.machine, tmp_path / "session", policy=5)
    measurement = launched_with_es(host, session)
    right, wrong = (NOBODYS, QEMU64) if host.kvm == "host" else (QEMU64, NOBODYS)
    assert 0 == said_by(validate, session, measurement, OVMF, *cpus(1, *right), policy=5)
    assert 1 == said_by(validate, session, measurement, OVMF, *cpus(1, *wrong), policy=5)
    assert 1 == said_by(validate, session, measurement, OVMF, *cpus(2, *right), policy=5)
    assert 1 == said_by(validate, session, measurement, OVMF, policy=1)


def test_every_processor_is_measured_where_qemu_starts_it(
    supplied: Host, validate: list[str], tmp_path: Path
) -> None:
    """The image says where all but the first start, and QEMU sets their registers accordingly."""
    installed(OVMF)
    session = a_session(supplied.machine, tmp_path / "session", policy=5)
    more = "-smp", "3", "-cpu", "EPYC-Milan"
    measurement = launched_with_es(supplied, session, *more)
    assert 0 == said_by(validate, session, measurement, OVMF, *cpus(3, 25, 1, 1), policy=5)
    assert 1 == said_by(validate, session, measurement, OVMF, *cpus(2, 25, 1, 1), policy=5)
    assert 1 == said_by(validate, session, measurement, OVMF, *cpus(3, 25, 1, 0), policy=5)
    with serving(supplied.machine, tmp_path) as daemon:
        measurement = launched_with_es(replace(supplied, socket=daemon.path), session, *more)
    assert 0 == said_by(validate, session, measurement, OVMF, *cpus(3, 25, 1, 1), policy=5)


def test_another_image_is_another_measurement(
    host: Host, validate: list[str], session: Path, tmp_path: Path
) -> None:
    image = bytearray(installed(OVMF))
    image[0x1000] ^= 1
    (tmp_path / "other.fd").write_bytes(image)
    with running(host, session, firmware=tmp_path / "other.fd") as guest:
        measurement = guest.ask("query-sev-launch-measure")["data"]
    assert 1 == said_by(validate, session, measurement, OVMF)
    assert 0 == said_by(validate, session, measurement, tmp_path / "other.fd")


def test_the_kernel_hashes_that_qemu_writes_are_measured(
    host: Host, validate: list[str], session: Path, tmp_path: Path
) -> None:
    """The image's hash area is given to it, as in the builds that support it."""
    firmware, kernel, initrd = tmp_path / "amdsev.fd", tmp_path / "kernel", tmp_path / "initrd"
    firmware.write_bytes(with_hash_area(installed(OVMF)))
    kernel.write_bytes(a_kernel())
    initrd.write_bytes(b"an initrd" * 700)
    line = "console=ttyS0 root=/dev/vda"
    boot = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
    with running(host, session, *boot, firmware=firmware) as guest:
        measurement = guest.ask("query-sev-launch-measure")["data"]
    given = ["--kernel", str(kernel), "--initrd", str(initrd), "--cmdline"]
    assert 0 == said_by(validate, session, measurement, firmware, *given, line)
    assert 1 == said_by(validate, session, measurement, firmware, *given, line + " init=/bin/sh")
    words = ["owner", "measure", "--mode", "sev", "--firmware", firmware, "--tk", session / "tmp_tk.bin"]
    words += ["--measurement", measurement, "--api-major", "0", "--api-minor", "17", "--build-id", "48"]
    words += ["--policy", "0x1", "--kernel", kernel, "--initrd", initrd, "--append"]
    assert 0 == cbit(*words, line).returncode
    assert 1 == cbit(*words, line + " init=/bin/sh").returncode


def test_a_session_for_another_machine_starts_nothing(host: Host, session: Path, tmp_path: Path) -> None:
    installed(OVMF)
    other = tmp_path / "other"
    assert 0 == cbit("setup", "--state", other, "--profile", "naples").returncode
    with pytest.raises(AssertionError) as refused, running(replace(host, machine=other), session):
        pass
    assert "fw_error=11 'Bad measurement'" in str(refused.value)
    assert "cbit exec: KVM LAUNCH_START: BAD_MEASUREMENT (0x000b): the session's" in str(refused.value)


def a_kernel() -> bytes:
    """A file with the header of a bzImage: one sector of setup, protocol 2.12, loaded high."""
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", 0x020C)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    return bytes(setup) + b"the rest of a kernel" * 400
