"""SEV-ES through KVM: save areas are those of the published vectors, and are measured after the image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from cbit.driver.kvm_registers import KvmRegs, KvmSegment, KvmSregs, KvmTable
from cbit.driver.kvm_structs import KvmAttestationReport, KvmInit2, VmType
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.driver.kvm_vmsa import save_area
from cbit.owner.vmsa import Variant, Vcpus
from cbit.spec.address import PAGE, Spa
from cbit.spec.policy import Policy
from cbit.spec.vmsa import Segment, Vmsa
from driver.kvm_worlds import BLOBS, UNTOUCHED, Desk, Program

MILAN = 0x00A00F11
IMAGE = b"an image".ljust(PAGE, b"\xf4")


def test_the_page_is_the_published_one(vectors: Path) -> None:
    assert (vectors / "vmsa/vmsa0.bin").read_bytes() == save_area(KvmRegs(rdx=MILAN), KvmSregs(), fpu=False)


@pytest.mark.parametrize("variant", list(Variant))
def test_the_page_is_the_one_that_an_owner_expects(variant: Variant) -> None:
    (expected,) = Vcpus(signature=MILAN, variant=variant).pages(None)
    assert expected == save_area(KvmRegs(rdx=MILAN), KvmSregs(), fpu=variant is Variant.INIT2)


def test_what_a_program_sets_is_in_the_page() -> None:
    """Every register under its own name; KVM leaves SVME and MCE on and takes CR0's cache bits away."""
    names = [name for name in KvmRegs.FIELDS if name != "rflags"]
    values = {name: 0x1111_0000_0000_0001 * (at + 1) & (1 << 64) - 1 for at, name in enumerate(names)}
    segment = KvmSegment(
        base=0x1234_5678_9ABC, limit=0xFFFFF, selector=0x33, type=11, dpl=3, db=1, l=1, g=1, avl=1
    )
    sregs = KvmSregs(
        cs=segment,
        ss=segment.replace(unusable=1),
        gdt=KvmTable(base=0x7000, limit=0x27),
        cr0=0xE000_0031,
        cr2=2,
        cr3=0x3000,
        cr4=0x20,
        efer=0x501,
    )
    page = Vmsa.parse(save_area(KvmRegs(**values, rflags=0x202), sregs, fpu=False))
    assert values | {"rflags": 0x202} == {name: getattr(page, name) for name in KvmRegs.FIELDS}
    packed = Segment(selector=0x33, attributes=0xFFB, limit=0xFFFFF, base=0x1234_5678_9ABC)
    assert (packed, packed.replace(attributes=0xF7B), 3) == (page.cs, page.ss, page.cpl)
    assert Segment(limit=0x27, base=0x7000) == page.gdtr
    assert (0x8000_0031, 2, 0x3000, 0x60, 0x1501) == (page.cr0, page.cr2, page.cr3, page.cr4, page.efer)


def test_bits_that_a_segment_does_not_have_go_nowhere() -> None:
    wide = KvmSegment(type=0xFB, dpl=0xFF, s=0xFF, present=0xFF, db=2, l=2, g=2, avl=2)
    page = Vmsa.parse(save_area(KvmRegs(), KvmSregs(cs=wide), fpu=False))
    assert 0x0FB == page.cs.attributes


def test_registers_of_a_processor_that_there_is_not_are_refused(desk: Desk) -> None:
    program = desk.program(kind=VmType.SEV_ES)
    program.vm.create_vcpu(1)
    for registers in (KvmRegs(), KvmSregs()):
        program.vm.set_registers(1, registers)
        with pytest.raises(OSError, match="no virtual CPU 0"):
            program.vm.set_registers(0, registers)


def launched(program: Program, cpus: Mapping[int, KvmRegs], init: K | None) -> bytes:
    """Launch with ES; return the digest that the secure processor reports."""
    if init is None:
        program.must(K.INIT2, KvmInit2())
    else:
        program.do(init)
    for number, regs in cpus.items():
        program.vm.create_vcpu(number)
        program.vm.set_registers(number, regs)
        program.vm.create_vcpu(number)  # once more changes nothing: the kernel refuses it
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
    page = save_area(KvmRegs(), KvmSregs(), fpu=init is None)
    assert hashlib.sha256(IMAGE + cpus * page).digest() == launched(
        program, dict.fromkeys(range(cpus), KvmRegs()), init
    )
    memory = desk.host.machine.dram
    for frames in program.vm.save_areas:
        assert page[:64] != bytes(memory.cells(Spa(frames.start), 64))


def test_each_processor_has_its_own_save_area(desk: Desk) -> None:
    """Measured in the order in which they were made, whatever their numbers."""
    cpus = {number: KvmRegs(rdx=MILAN, rax=number) for number in (5, 2)}
    pages = [save_area(regs, KvmSregs(), fpu=True) for regs in cpus.values()]
    digest = launched(desk.program(kind=VmType.SEV_ES), cpus, None)
    assert hashlib.sha256(IMAGE + b"".join(pages)).digest() == digest
    assert hashlib.sha256(IMAGE + b"".join(reversed(pages))).digest() != digest


def test_a_machine_without_es_has_no_save_areas(desk: Desk) -> None:
    program = desk.program()
    assert ("ENOTTY", UNTOUCHED) == program.op(K.LAUNCH_UPDATE_VMSA)
    program.do(K.SEV_INIT)
    assert "ENOTTY" == program.op(K.LAUNCH_UPDATE_VMSA)[0]


def test_save_areas_come_after_the_start(desk: Desk) -> None:
    program = desk.program()
    program.do(K.SEV_ES_INIT)
    program.vm.create_vcpu(0)
    assert ("EBADF", UNTOUCHED) == program.op(K.LAUNCH_UPDATE_VMSA)  # the start names /dev/sev
