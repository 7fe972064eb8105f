"""Programs that nobody here wrote judge what the emulated platform says about a launch."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.stage import Scene
from cbit.attacks.survey import flip_one_bit
from cbit.guest import generated_firmware
from cbit.owner.measure import Kernel, expect_sev
from scenarios.launches import Launch, a_launch

pytestmark = pytest.mark.oracle

OVMF = Path("/usr/share/ovmf/OVMF.fd")
GOLDEN_PACKAGE = "2022.11-6+deb12u2"
GOLDEN_DIGEST = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"
CMDLINE = "console=ttyS0 loglevel=7"

NewScene = Callable[[str], Scene]
RequireProgram = Callable[[str, str], list[str]]
Validate = Callable[..., int]


def debians() -> bytes:
    if not OVMF.is_file():
        pytest.skip(f"{OVMF} is not here: apt install ovmf")
    return OVMF.read_bytes()


@pytest.fixture
def validate(require_program: RequireProgram, tmp_path: Path) -> Validate:
    """Run virt-qemu-sev-validate on a receipt; 0: accepted, 1: refused."""
    program = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")
    if subprocess.run([*program, "--help"], capture_output=True, check=False).returncode:
        pytest.skip("virt-qemu-sev-validate does not start: apt install python3-lxml python3-libvirt")

    def run(launch: Launch, firmware: bytes, *more: str | Path) -> int:
        receipt, keys = launch.receipt, launch.session.keys
        (tmp_path / "firmware").write_bytes(firmware)
        (tmp_path / "tk").write_bytes(keys.tek.material() + keys.tik.material())
        words = {
            "--measurement": base64.b64encode(bytes(receipt.blob)).decode(),
            "--api-major": receipt.api.major,
            "--api-minor": receipt.api.minor,
            "--build-id": receipt.build,
            "--policy": receipt.policy,
            "--firmware": tmp_path / "firmware",
            "--tk": tmp_path / "tk",
        }
        call = [*program, *(str(word) for pair in words.items() for word in pair), *map(str, more)]
        return subprocess.run(call, capture_output=True, check=False).returncode

    return run


@pytest.mark.parametrize("profile", ["naples", "rome", "milan", "genoa"])
def test_the_receipt_of_every_profile_is_accepted(
    new_scene: NewScene, validate: Validate, profile: str
) -> None:
    image = generated_firmware.generate()
    launch = a_launch(new_scene(profile), image)
    assert validate(launch, image) == 0
    assert validate(launch, flip_one_bit(image)) == 1


def test_debians_ovmf_is_accepted_and_refused_with_one_bit_changed(
    new_scene: NewScene, validate: Validate
) -> None:
    image = debians()
    launch = a_launch(new_scene("milan"), image)
    assert validate(launch, image) == 0
    for at in (0, len(image) // 2, len(image) - 1):
        assert validate(launch, image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]) == 1


def test_an_image_changed_by_the_hypervisor_is_refused(new_scene: NewScene, validate: Validate) -> None:
    image = debians()
    assert validate(a_launch(new_scene("milan"), image, loaded=flip_one_bit(image)), image) == 1


@pytest.fixture
def direct_boot(tmp_path: Path) -> dict[str, Path]:
    """An empty kernel and initrd, as in the vectors."""
    files = {"--kernel": tmp_path / "kernel", "--initrd": tmp_path / "initrd"}
    for path in files.values():
        path.write_bytes(b"")
    return files


def test_kernel_hashes_are_accepted(
    vectors: Path, new_scene: NewScene, validate: Validate, direct_boot: dict[str, Path]
) -> None:
    image = (vectors / "launch-digest" / "ovmf_AmdSev_suffix.bin").read_bytes()
    kernel = Kernel(kernel=b"", initrd=b"", cmdline=CMDLINE)
    launch = a_launch(new_scene("milan"), image, kernel_hashes=kernel.table())
    words = [word for pair in direct_boot.items() for word in pair]
    assert validate(launch, image, *words, "--cmdline", CMDLINE) == 0
    assert validate(launch, image, *words, "--cmdline", "console=ttyS1 loglevel=7") == 1
    assert validate(launch, image) == 1


def test_sev_snp_measure_gives_the_same_digests(
    vectors: Path, require_program: RequireProgram, direct_boot: dict[str, Path], tmp_path: Path
) -> None:
    program = [*require_program("sev-snp-measure", "pip install sev-snp-measure==0.0.13"), "--mode", "sev"]
    suffix = vectors / "launch-digest" / "ovmf_AmdSev_suffix.bin"
    ours = tmp_path / "generated.fd"
    ours.write_bytes(generated_firmware.generate())
    words = [str(word) for pair in direct_boot.items() for word in pair]

    def digest(image: Path, *more: str) -> str:
        call = [*program, "--ovmf", str(image), *more]
        return subprocess.run(call, capture_output=True, check=True, text=True).stdout.strip()

    kernel = Kernel(kernel=b"", initrd=b"", cmdline=CMDLINE)
    for image in (suffix, ours):
        data = image.read_bytes()
        assert expect_sev(data).digest.hex() == digest(image)
        assert expect_sev(data, kernel=kernel).digest.hex() == digest(image, *words, "--append", CMDLINE)
    if OVMF.is_file():
        assert expect_sev(debians()).digest.hex() == digest(OVMF)


def test_the_digest_of_debians_image_is_the_known_one() -> None:
    image = debians()
    if not shutil.which("dpkg-query"):
        pytest.skip("dpkg-query is not here: nobody says which OVMF this is")
    query = ["dpkg-query", "--show", "--showformat=${Version}", "ovmf"]
    version = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    if version != GOLDEN_PACKAGE:
        pytest.skip(f"package ovmf is {version or 'not installed'}; the digest is known for {GOLDEN_PACKAGE}")
    assert expect_sev(image).digest.hex() == GOLDEN_DIGEST
