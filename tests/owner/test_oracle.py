"""virt-qemu-sev-validate, which nobody here wrote, agrees with the owner's measurement and packets."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.crypto import packet
from cbit.crypto.session import TransportKeys
from cbit.owner.measure import Expectation, Kernel, Mode, expect
from cbit.owner.session import Measuring
from cbit.spec import firmware_table, secret_table
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import CONTEXT_SECRET, PacketHeader
from owner.images import debian_12s
from owner.worlds import a_launch, flipped

pytestmark = pytest.mark.oracle

KEYS = TransportKeys.parse(bytes(range(100, 132)))
OVMF = Path("/usr/share/ovmf/OVMF.fd")
OVMF_4M = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")

#: Package ovmf 2022.11-6+deb12u2, confirmed with sev-snp-measure 0.0.13.
GOLDEN = {
    OVMF: "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
    OVMF_4M: "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
}

Validate = Callable[..., int]


def image(path: Path = OVMF) -> bytes:
    if not path.is_file():
        pytest.skip(f"{path} is not here: apt install ovmf")
    return path.read_bytes()


@pytest.fixture
def validate(require_program: Callable[[str, str], list[str]], tmp_path: Path) -> Validate:
    """Run the program on a launch; returns its exit code (0 good, 1 mismatch)."""
    begin = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")
    probe = subprocess.run([*begin, "--help"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("virt-qemu-sev-validate does not start: apt install python3-lxml python3-libvirt")

    def run(launch: LaunchReceipt, firmware: bytes, *more: str) -> int:
        (tmp_path / "fw").write_bytes(firmware)
        (tmp_path / "tk").write_bytes(KEYS.material())
        words = {
            "--measurement": base64.b64encode(bytes(launch.blob)).decode(),
            "--api-major": str(launch.api.major),
            "--api-minor": str(launch.api.minor),
            "--build-id": str(launch.build),
            "--policy": str(launch.policy),
            "--firmware": str(tmp_path / "fw"),
            "--tk": str(tmp_path / "tk"),
        }
        call = [*begin, *(word for pair in words.items() for word in pair), *more]
        return subprocess.run(call, capture_output=True, check=False).returncode

    return run


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_the_digest_of_a_distributions_firmware(path: Path) -> None:
    assert GOLDEN[path] == expect(Mode.SEV, debian_12s(path)).digest.hex()


def accept(launch: LaunchReceipt, expectation: Expectation) -> None:
    Measuring(KEYS, policy=launch.policy).check(launch.blob, expectation, api=launch.api, build=launch.build)


def test_it_accepts_what_the_owner_accepts_and_refuses_one_changed_bit(validate: Validate) -> None:
    firmware = image()
    launch = a_launch(KEYS, digest=expect(Mode.SEV, firmware).digest, policy=1)
    accept(launch, expect(Mode.SEV, firmware))
    assert 0 == validate(launch, firmware)
    assert 1 == validate(launch, flipped(firmware, 4096))
    blob = flipped(bytes(launch.blob), 3)
    changed = LaunchReceipt(
        measure=blob[:32],
        mnonce=blob[32:],
        api=launch.api,
        build=launch.build,
        policy=launch.policy,
        chain=launch.chain,
    )
    assert 1 == validate(changed, firmware)


def with_hash_area(firmware: bytes) -> bytes:
    """A copy whose empty HASH_TABLE entry names an area, as AmdSev builds do."""
    at = firmware.rindex(firmware_table.HASH_TABLE.bytes_le) - 2 - 8
    return (
        firmware[:at] + (0x810C00).to_bytes(4, "little") + (0x400).to_bytes(4, "little") + firmware[at + 8 :]
    )


@pytest.mark.parametrize("cmdline", ["", "console=ttyS0 root=/dev/vda", " spaces kept "])
def test_it_agrees_on_kernel_hashes(validate: Validate, tmp_path: Path, cmdline: str) -> None:
    firmware = with_hash_area(image())
    kernel = Kernel(kernel=b"a kernel" * 999, initrd=b"an initrd" * 99, cmdline=cmdline)
    (tmp_path / "kernel").write_bytes(kernel.kernel)
    (tmp_path / "initrd").write_bytes(kernel.initrd)
    expectation = expect(Mode.SEV, firmware, kernel=kernel)
    launch = a_launch(KEYS, digest=expectation.digest)
    words = ["--kernel", str(tmp_path / "kernel"), "--initrd", str(tmp_path / "initrd"), "--cmdline"]
    assert 0 == validate(launch, firmware, *words, cmdline)
    assert 1 == validate(launch, firmware, *words, f"{cmdline}x")
    assert 1 == validate(launch, firmware)


def test_its_secret_packet_opens_like_ours(validate: Validate, tmp_path: Path) -> None:
    firmware = image()
    launch = a_launch(KEYS, digest=expect(Mode.SEV, firmware).digest)
    (tmp_path / "passphrase").write_bytes(b"correct horse")
    files = {"--secret-header": tmp_path / "header", "--secret-payload": tmp_path / "payload"}
    words = [str(word) for pair in files.items() for word in pair]
    entry = f"{secret_table.DISK_PASSPHRASE}:{tmp_path / 'passphrase'}"
    assert 0 == validate(launch, firmware, "--inject-secret", entry, *words)
    header, data = (base64.b64decode(path.read_bytes()) for path in files.values())
    theirs = packet.open_packet(
        KEYS,
        PacketHeader.parse(header),
        data,
        context=CONTEXT_SECRET,
        guest_len=len(data),
        measure=launch.measure,
    )
    # That program may count a trailing NUL as part of a secret; the guest's reader accepts both habits.
    ((guid, passphrase),) = secret_table.parse(theirs)
    assert (secret_table.DISK_PASSPHRASE, b"correct horse") == (guid, passphrase.rstrip(b"\x00"))
    ours = secret_table.build([(guid, passphrase)])
    assert ours[:16] == theirs[:16]
    assert secret_table.parse(ours) == secret_table.parse(theirs)
