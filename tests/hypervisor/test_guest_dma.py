from __future__ import annotations

from pathlib import Path

import pytest

from cbit.hypervisor.guest_dma import GuestDma
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import NoSuchMemory, Vm
from cbit.secure_processor.image import BiosSettings
from cbit.spec.address import GIB, PAGE, Gpa
from hypervisor.worlds import PRIVATE, ROOM, TEXT, TEXT_AT, guest_reads, guest_writes, launched, with_text
from machine.worlds import host, machine


def dma_of(vm: Vm, *, c: bool | None = None) -> GuestDma:
    return GuestDma(vm, vm.host.machine.dma_port(), c=c)


def test_a_device_and_an_unencrypted_guest_share_memory(tmp_path: Path) -> None:
    vm = with_text(host(tmp_path), Protection.NONE)
    dma = dma_of(vm)
    assert TEXT == dma.read(TEXT_AT, PAGE)
    dma.write(PRIVATE + 100, b"from the device")
    assert b"from the device" == guest_reads(vm, PRIVATE + 100, 15)
    guest_writes(vm, PRIVATE, b"from the guest")
    assert b"from the guest" == dma.read(PRIVATE, 14)


def test_a_private_page_of_a_guest_with_sev_is_ciphertext_for_its_devices(tmp_path: Path) -> None:
    guest = launched(host(tmp_path))
    dma = dma_of(guest.vm)
    seen = dma.read(TEXT_AT, PAGE)
    assert TEXT != seen
    assert guest.vm.host.read(guest.vm.spa(TEXT_AT), PAGE) == seen
    assert TEXT[:16] not in seen
    assert TEXT == guest_reads(guest.vm, TEXT_AT)  # the control: its owner reads it


def test_what_a_device_writes_into_a_private_page_is_garbage_for_the_guest(tmp_path: Path) -> None:
    guest = launched(host(tmp_path))
    dma_of(guest.vm).write(TEXT_AT, b"sixteen bytes !!")
    guest.vm.host.flush_caches()
    seen = guest_reads(guest.vm, TEXT_AT)
    assert b"sixteen bytes !!" != seen[:16]
    assert TEXT[16:] == seen[16:]


@pytest.mark.parametrize(("c", "plain"), [(None, True), (True, True), (False, False)])
def test_under_sme_a_device_sees_plaintext_only_with_the_c_bit(
    tmp_path: Path, c: bool | None, plain: bool
) -> None:
    vm = with_text(host(tmp_path), Protection.SME)
    vm.host.flush_caches()
    assert plain is (TEXT == dma_of(vm, c=c).read(TEXT_AT, PAGE))


def test_a_request_may_cross_from_one_region_to_the_next(tmp_path: Path) -> None:
    vm = with_text(host(tmp_path), Protection.NONE)
    vm.host.frames.take_page()  # the next region lies elsewhere
    vm.add_memory(Gpa(TEXT_AT + ROOM), PAGE)
    dma, at = dma_of(vm), TEXT_AT + ROOM - 8
    dma.write(at, b"two regions, one")
    assert b"two regions, one" == dma.read(at, 16)
    assert b"two regi" == vm.host.read(vm.spa(Gpa(at), 8), 8)
    assert b"ons, one" == vm.host.read(vm.spa(Gpa(at + 8), 8), 8)


@pytest.mark.parametrize(
    "gpa", [0, TEXT_AT - 1, TEXT_AT + ROOM - 15, GIB, 1 << 39 | TEXT_AT, (1 << 64) - 16, -16]
)
def test_memory_that_the_guest_does_not_have_is_out_of_reach(tmp_path: Path, gpa: int) -> None:
    vm = with_text(host(tmp_path), Protection.NONE)
    before = vm.host.read(vm.spa(TEXT_AT, ROOM), ROOM)
    for request in (lambda: dma_of(vm).read(gpa, 16), lambda: dma_of(vm).write(gpa, bytes(16))):
        with pytest.raises(NoSuchMemory):
            request()
    assert before == vm.host.read(vm.spa(TEXT_AT, ROOM), ROOM)


def test_nothing_is_always_there(tmp_path: Path) -> None:
    vm = with_text(host(tmp_path), Protection.NONE)
    assert b"" == dma_of(vm).read(GIB, 0)
    dma_of(vm).write(GIB, b"")


def test_the_c_bit_needs_encryption_to_be_on(tmp_path: Path) -> None:
    off = machine(tmp_path, settings=BiosSettings(memory_encryption=0))
    vm = with_text(host(tmp_path / "other"), Protection.NONE)
    with pytest.raises(ValueError, match="encryption is off"):
        GuestDma(vm, off.dma_port(), c=True)
