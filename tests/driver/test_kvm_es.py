"""SEV-ES through KVM: save areas are those of the published vectors, and are measured after the image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cbit.driver.kvm_structs import KvmAttestationReport, KvmInit2, VmType
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.driver.kvm_vmsa import after_reset
from cbit.owner.vmsa import Variant, Vcpus
from cbit.spec.address import PAGE, Spa
from cbit.spec.policy import Policy
from driver.kvm_worlds import BLOBS, UNTOUCHED, Desk, Program

MILAN = 0x00A00F11
IMAGE = b"an image".ljust(PAGE, b"\xf4")


def test_the_page_is_the_published_one(vectors: Path) -> None:
    assert (vectors / "vmsa/vmsa0.bin").read_bytes() == after_reset(signature=MILAN, fpu=False)


@pytest.mark.parametrize("variant", list(Variant))
def test_the_page_is_the_one_that_an_owner_expects(variant: Variant) -> None:
    (expected,) = Vcpus(signature=MILAN, variant=variant).pages(None)
    assert expected == after_reset(signature=MILAN, fpu=variant is Variant.INIT2)


def launched(program: Program, cpus: int, init: K | None) -> bytes:
    """Launch with ES; return the digest that the secure processor reports."""
    if init is None:
        program.must(K.INIT2, KvmInit2())
    else:
        program.do(init)
    for _ in range(cpus):
        program.vm.create_vcpu()
    program.start(int(Policy.ES))
    program.load(IMAGE)
    program.do(K.LAUNCH_UPDATE_VMSA)
    program.measure()
    program.must(K.GET_ATTESTATION_REPORT, KvmAttestationReport(mnonce=bytes(16), uaddr=BLOBS, len=0xD0))
    digest = program.read(BLOBS + 0x10, 32)
    program.do(K.LAUNCH_FINISH)
    return digest


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("init", [K.SEV_ES_INIT, None], ids=["legacy", "INIT2"])
def test_save_areas_are_measured_after_the_image_and_encrypted(desk: Desk, cpus: int, init: K | None) -> None:
    program = desk.program(kind=VmType.DEFAULT if init else VmType.SEV_ES)
    page = after_reset(fpu=init is None)
    assert hashlib.sha256(IMAGE + cpus * page).digest() == launched(program, cpus, init)
    memory = desk.host.machine.dram
    for frames in program.vm.save_areas:
        assert page[:64] != bytes(memory.cells(Spa(frames.start), 64))


def test_a_machine_without_es_has_no_save_areas(desk: Desk) -> None:
    program = desk.program()
    assert ("ENOTTY", UNTOUCHED) == program.op(K.LAUNCH_UPDATE_VMSA)
    program.do(K.SEV_INIT)
    assert "ENOTTY" == program.op(K.LAUNCH_UPDATE_VMSA)[0]


def test_save_areas_come_after_the_start(desk: Desk) -> None:
    program = desk.program()
    program.do(K.SEV_ES_INIT)
    program.vm.create_vcpu()
    assert ("EBADF", UNTOUCHED) == program.op(K.LAUNCH_UPDATE_VMSA)  # the start names /dev/sev
