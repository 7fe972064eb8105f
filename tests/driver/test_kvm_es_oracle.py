"""SEV-ES launched through KVM's requests: the firmware measured what other people's programs expect."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.driver.kvm_structs import KvmAttestationReport, KvmInit2, VmType
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.firmware_table import parse
from cbit.spec.session import MeasureBlob
from cbit.testing.guests import a_session
from conftest import RequireProgram
from driver.kvm_worlds import BLOBS, Desk, Program, a_desk
from owner.images import OVMF, an_image, installed
from secure_processor.worlds import Chips

pytestmark = pytest.mark.oracle

MILAN = 0x00A00F11
POLICY = 0x5  # ES, no debugging
PIECE = 0x20000
#: Where every processor starts after a reset: an image that names it gives all processors the same save area.
RESET = 0xFFFFFFF0
IMAGES: dict[str, tuple[int, Callable[[], bytes]]] = {
    "OVMF, one processor": (1, lambda: installed(OVMF)),
    "OVMF, four processors": (4, lambda: installed(OVMF)),
    "made here, one processor": (1, an_image),
    "made here, four processors": (4, lambda: an_image(reset=RESET)),
}
every_image = pytest.mark.parametrize("name", IMAGES)


def launched(desk: Desk, image: bytes, *, cpus: int, legacy: bool) -> tuple[Program, MeasureBlob, bytes]:
    """Launch for an owner; return the program, the measurement, and the owner's TEK and TIK."""
    program = desk.program(kind=VmType.DEFAULT if legacy else VmType.SEV_ES)
    if legacy:
        program.do(K.SEV_ES_INIT)
    else:
        program.must(K.INIT2, KvmInit2())
    others = parse(image).ap_reset or RESET
    for start in (RESET, *[others] * (cpus - 1)):
        program.add_cpu(signature=MILAN, start=start)
    session, keys = a_session(desk.host.export_chain()[:CERT_SIZE], policy=POLICY)
    program.start(POLICY, bytes(session.godh), bytes(session.blob))
    for at in range(
        0, len(image), PIECE
    ):  # one after the other in the same pages: where they lie is not measured
        program.load(image[at : at + PIECE])
    program.do(K.LAUNCH_UPDATE_VMSA)
    return program, program.measure(), keys.material()


def reported(program: Program) -> str:
    program.must(K.GET_ATTESTATION_REPORT, KvmAttestationReport(mnonce=bytes(16), uaddr=BLOBS, len=0xD0))
    return program.read(BLOBS + 0x10, 32).hex()


@every_image
def test_the_digest_is_the_one_that_sev_snp_measure_computes(
    chips: Chips, tmp_path: Path, require_program: RequireProgram, name: str
) -> None:
    program = require_program("sev-snp-measure", "pipx install sev-snp-measure==0.0.13")
    cpus, make = IMAGES[name]
    (tmp_path / "fw").write_bytes(make())
    words = [
        "--mode",
        "seves",
        "--ovmf",
        str(tmp_path / "fw"),
        "--vcpu-sig",
        hex(MILAN),
        "--vmm-type",
        "QEMU",
    ]

    def theirs(count: int) -> str:
        ended = subprocess.run(
            [*program, *words, "--vcpus", str(count)], capture_output=True, text=True, check=True
        )
        return ended.stdout.strip()

    with a_desk(chips) as desk:
        ours = reported(launched(desk, make(), cpus=cpus, legacy=False)[0])
    assert theirs(cpus) == ours
    assert theirs(cpus + 1) != ours


@every_image
def test_the_measurement_is_one_that_virt_qemu_sev_validate_accepts(
    chips: Chips, tmp_path: Path, require_program: RequireProgram, name: str
) -> None:
    program = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")
    if subprocess.run([*program, "--help"], capture_output=True, check=False).returncode:
        pytest.skip("virt-qemu-sev-validate does not start: apt install python3-lxml python3-libvirt")
    cpus, make = IMAGES[name]
    with a_desk(chips) as desk:  # it builds save areas as machines of SEV_ES_INIT have them
        _, blob, keys = launched(desk, make(), cpus=cpus, legacy=True)
        _, other, other_keys = launched(desk, make(), cpus=cpus, legacy=False)
    (tmp_path / "fw").write_bytes(make())
    (tmp_path / "tk").write_bytes(keys)
    assert keys == other_keys
    words = ["--firmware", str(tmp_path / "fw"), "--tk", str(tmp_path / "tk"), "--policy", str(POLICY)]
    words += ["--api-major", "0", "--api-minor", "17", "--build-id", "48"]
    words += ["--cpu-family", "25", "--cpu-model", "1", "--cpu-stepping", "1"]

    def accepts(measured: MeasureBlob, count: int) -> bool:
        said = ["--measurement", base64.b64encode(bytes(measured)).decode(), "--num-cpus", str(count)]
        return subprocess.run([*program, *words, *said], capture_output=True, check=False).returncode == 0

    assert accepts(blob, cpus)
    assert not accepts(blob, cpus + 1)
    assert not accepts(other, cpus)
