"""Programs that nobody here wrote agree on every digest, or differ where a named variant says they do."""

from __future__ import annotations

import base64
import itertools
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from cbit.crypto.session import TransportKeys
from cbit.owner.measure import Image, Kernel, Launch, Mode, Sections
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus
from cbit.spec.vmsa import SevFeatures
from owner.images import KERNEL, LONG, OVMF, OVMF_CODE_4M, an_image, debian_12s, installed, with_hash_area
from owner.worlds import VECTORS, a_launch

pytestmark = pytest.mark.oracle

Programs = Callable[[str, str], list[str]]

#: Package ovmf 2022.11-6+deb12u2: origin = sev-snp-measure 0.0.13.
GOLDEN = [
    (OVMF, Mode.SEV, "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"),
    (OVMF, Mode.SEV_ES, "8590d0b6d4beced4ec5d855960dd684f2887af7ae80bb6783610620c6aa34362"),
    (
        OVMF,
        Mode.SNP,
        "80479ca85a2b182c026f6a3a2f2b180ab968d84b17540dd30de39039e70b8c0c33ead2cae6d34e37750035fcff60bfc8",
    ),
    (OVMF_CODE_4M, Mode.SEV, "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c"),
]
MILAN = 0x00A00F11
CPUS = {"EPYC-Milan": MILAN, "EPYC-v4": 0x00800F12, "EPYC-Genoa": 0x00A10F10}


@pytest.mark.parametrize(("path", "mode", "digest"), GOLDEN, ids=lambda value: getattr(value, "name", None))
def test_the_digests_of_a_distributions_firmware(path: Path, mode: Mode, digest: str) -> None:
    launch = Launch(mode=mode, image=Image(debian_12s(path)), vcpus=Vcpus(signature=MILAN))
    assert digest == launch.digest().hex()


def images() -> dict[str, Callable[[], bytes]]:
    folder = VECTORS / "launch-digest"
    return {
        "OVMF": lambda: installed(OVMF),
        "OVMF with a hash area": lambda: with_hash_area(installed(OVMF)),
        "AmdSev": (folder / "ovmf_AmdSev_suffix.bin").read_bytes,
        "OvmfX64": (folder / "ovmf_OvmfX64_suffix.bin").read_bytes,
        "made here": an_image,
    }


class SevSnpMeasure:
    """Runs the program on a launch; None where it refuses."""

    modes: ClassVar = {Mode.SEV: "sev", Mode.SEV_ES: "seves", Mode.SNP: "snp"}
    names: ClassVar = {Hypervisor.QEMU: "QEMU", Hypervisor.EC2: "ec2", Hypervisor.GCE: "gce"}

    def __init__(self, begin: list[str], folder: Path) -> None:
        self.begin, self.folder = begin, folder
        (folder / "kernel").write_bytes(KERNEL.kernel)
        (folder / "initrd").write_bytes(KERNEL.initrd)

    def __call__(self, launch: Launch, *, cpu: str) -> bytes | None:
        assert launch.vcpus is not None
        (self.folder / "fw").write_bytes(launch.image.data)
        words = ["--mode", self.modes[launch.mode], "--ovmf", str(self.folder / "fw")]
        words += ["--vcpus", str(launch.vcpus.count), "--vcpu-type", cpu]
        words += ["--vmm-type", self.names[launch.vcpus.hypervisor]]
        if launch.vcpus.features is not None:
            words += ["--guest-features", hex(launch.vcpus.features)]
        if launch.kernel is not None:
            words += ["--kernel", str(self.folder / "kernel"), "--initrd", str(self.folder / "initrd")]
            words += ["--append", launch.kernel.cmdline]
        ended = subprocess.run([*self.begin, *words], capture_output=True, text=True, check=False)
        return None if ended.returncode else bytes.fromhex(ended.stdout.strip())


@pytest.fixture
def sev_snp_measure(require_program: Programs, tmp_path: Path) -> SevSnpMeasure:
    return SevSnpMeasure(require_program("sev-snp-measure", "pipx install sev-snp-measure==0.0.13"), tmp_path)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", images())
def test_sev_snp_measure_agrees(sev_snp_measure: SevSnpMeasure, name: str, mode: Mode) -> None:
    image = Image(images()[name]())
    hypervisors = [Hypervisor.QEMU] if mode is Mode.SEV else list(SevSnpMeasure.names)
    agreed = 0
    for kernel, count, hypervisor in itertools.product((None, KERNEL), (1, 2, 65), hypervisors):
        cpu, signature = list(CPUS.items())[count % len(CPUS)]
        vcpus = Vcpus(count=count, signature=signature, hypervisor=hypervisor)
        launch = Launch(mode=mode, image=image, kernel=kernel, vcpus=vcpus)
        theirs = sev_snp_measure(launch, cpu=cpu)
        ours = None if launch.unusable() else launch.digest()
        assert theirs == ours, (kernel is not None, count, hypervisor)
        agreed += ours is not None
    assert agreed


def test_sev_snp_measure_counts_the_first_page_of_long_sections(sev_snp_measure: SevSnpMeasure) -> None:
    image = Image(an_image(sections=LONG))
    for kernel, hypervisor in itertools.product((None, KERNEL), SevSnpMeasure.names):
        vcpus = Vcpus(count=2, signature=MILAN, hypervisor=hypervisor)
        launch = Launch(mode=Mode.SNP, image=image, kernel=kernel, vcpus=vcpus, sections=Sections.FIRST_PAGE)
        theirs = sev_snp_measure(launch, cpu="EPYC-Milan")
        assert theirs == launch.digest()
        assert theirs != replace(launch, sections=Sections.WHOLE).digest()


@pytest.mark.parametrize("features", [0x1, 0x21, 0x9, 0x200001])
def test_sev_snp_measure_agrees_on_features(sev_snp_measure: SevSnpMeasure, features: int) -> None:
    vcpus = Vcpus(count=2, signature=MILAN, features=SevFeatures(features))
    launch = Launch(mode=Mode.SNP, image=Image(an_image()), vcpus=vcpus)
    assert launch.digest() == sev_snp_measure(launch, cpu="EPYC-Milan")


def test_sev_snp_measure_knows_init2_only(sev_snp_measure: SevSnpMeasure) -> None:
    vcpus = Vcpus(signature=MILAN, variant=Variant.INIT)
    launch = Launch(mode=Mode.SEV_ES, image=Image(an_image()), vcpus=vcpus)
    theirs = sev_snp_measure(launch, cpu="EPYC-Milan")
    assert theirs != launch.digest()
    init2 = Vcpus(signature=MILAN, variant=Variant.INIT2)
    assert theirs == Launch(mode=Mode.SEV_ES, image=launch.image, vcpus=init2).digest()


def test_sev_snp_measure_dumps_our_pages(sev_snp_measure: SevSnpMeasure, tmp_path: Path) -> None:
    (tmp_path / "fw").write_bytes(an_image())
    words = ["--mode", "snp", "--ovmf", str(tmp_path / "fw"), "--vcpus", "2", "--vcpu-type", "EPYC-Milan"]
    call = [*sev_snp_measure.begin, *words, "--dump-vmsa"]
    subprocess.run(call, cwd=tmp_path, capture_output=True, check=True)
    theirs = [(tmp_path / f"vmsa{number}.bin").read_bytes() for number in (0, 1)]
    vcpus = Vcpus(count=2, signature=MILAN, features=SevFeatures.SNP_ACTIVE)
    assert theirs == list(vcpus.pages(Image(an_image()).table.ap_reset))


# -- virt-qemu-sev-validate: SEV and SEV-ES, whose pages it builds as KVM_SEV_ES_INIT does

KEYS = TransportKeys.parse(bytes(range(7, 39)))


@pytest.fixture
def validate(require_program: Programs, tmp_path: Path) -> Callable[[Launch, bytes], bool]:
    begin = require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")
    if subprocess.run([*begin, "--help"], capture_output=True, check=False).returncode:
        pytest.skip("virt-qemu-sev-validate does not start: apt install python3-lxml python3-libvirt")

    def run(launch: Launch, digest: bytes) -> bool:
        es = launch.mode is Mode.SEV_ES
        report = a_launch(KEYS, digest=digest, policy=5 if es else 1)
        contents = {"firmware": launch.image.data, "tk": KEYS.material()}
        if launch.kernel is not None:
            contents |= {"kernel": launch.kernel.kernel, "initrd": launch.kernel.initrd}
        words = []
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
            words += [f"--{name}", str(tmp_path / name)]
        if launch.kernel is not None:
            words += ["--cmdline", launch.kernel.cmdline]
        if es:
            assert launch.vcpus is not None
            words += ["--num-cpus", str(launch.vcpus.count)]
            words += ["--cpu-family", "25", "--cpu-model", "1", "--cpu-stepping", "1"]
        words += ["--measurement", base64.b64encode(bytes(report.blob)).decode()]
        words += ["--api-major", str(report.api.major), "--api-minor", str(report.api.minor)]
        words += ["--build-id", str(report.build), "--policy", str(report.policy)]
        ended = subprocess.run([*begin, *words], capture_output=True, text=True, check=False)
        assert ended.returncode in {0, 1}, ended.stderr
        return ended.returncode == 0

    return run


@pytest.mark.parametrize("mode", [Mode.SEV, Mode.SEV_ES])
@pytest.mark.parametrize("name", ["OVMF with a hash area", "AmdSev"])
def test_virt_qemu_sev_validate_agrees(
    validate: Callable[[Launch, bytes], bool], name: str, mode: Mode
) -> None:
    image = Image(images()[name]())
    kernels: tuple[Kernel | None, ...] = (None, KERNEL)
    for kernel, count in itertools.product(kernels, (1, 3)):
        vcpus = Vcpus(count=count, signature=MILAN, variant=Variant.INIT)
        launch = Launch(mode=mode, image=image, kernel=kernel, vcpus=vcpus)
        assert validate(launch, launch.digest())
        if mode is Mode.SEV_ES:  # it knows no other variant
            init2 = Vcpus(count=count, signature=MILAN, variant=Variant.INIT2)
            assert not validate(launch, Launch(mode=mode, image=image, kernel=kernel, vcpus=init2).digest())
