"""A virtio disk and a launched guest with SEV: what is shared moves as it is, what is private does not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.guest_dma import GuestDma
from cbit.hypervisor.host import Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa
from hypervisor.devices.driver import BUFFERS, DiskDriver, Piece
from hypervisor.devices.worlds import Desk, Memory
from hypervisor.worlds import TEXT, guest_reads
from machine.worlds import host

PRIVATE_AT = Gpa(0x10000)
IN, OUT = 0, 1
CLEAR = bytes(range(256)) * (PAGE // 256)


class GuestMemory(Memory):
    """The guest's memory as its devices reach it, and as the guest itself uses the pages that it shares."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(0)
        self._dma = GuestDma(vm, vm.host.machine.dma_port())

    def read(self, gpa: int, length: int) -> bytes:
        return self._dma.read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        self._dma.write(gpa, data)


def a_guest(folder: Path, protection: Protection) -> Vm:
    """A guest with a page of text that is private if it can be; everything else it shares."""
    vm = Vm(host(folder), protection)
    vm.add_memory(Gpa(0), 2 * BUFFERS)
    vm.load(PRIVATE_AT, TEXT)
    if protection is Protection.SEV:
        guest = SevGuest.start(vm, policy=0)
        guest.update(PRIVATE_AT, PAGE)
        guest.measure()
        guest.finish()
    return vm


def a_driver(vm: Vm, disk: MemoryDisk) -> DiskDriver:
    desk = Desk(disks=[disk], memory=GuestMemory(vm))
    desk.start_pics()
    return DiskDriver(desk).start()


def ask(driver: DiskDriver, kind: int, data: Piece) -> None:
    """One page, to or from sector 0."""
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", kind, 0, 0))
    driver.ask([Piece(BUFFERS, 16), data, Piece(BUFFERS + 16, 1, writable=True)])
    assert b"\0" == driver.desk.memory.read(BUFFERS + 16, 1)


@pytest.mark.parametrize("protection", [Protection.SEV, Protection.NONE])
def test_a_disk_gets_what_a_device_sees_of_the_page(tmp_path: Path, protection: Protection) -> None:
    vm, disk = a_guest(tmp_path, protection), MemoryDisk(bytes(PAGE))
    ask(a_driver(vm, disk), OUT, Piece(PRIVATE_AT, PAGE))
    assert TEXT == guest_reads(vm, PRIVATE_AT)
    if protection is Protection.NONE:
        assert TEXT == disk.data  # the control
    else:
        assert vm.host.read(vm.spa(PRIVATE_AT), PAGE) == disk.data
        assert not any(TEXT[at : at + 16] in disk.data for at in range(0, PAGE, 16))


@pytest.mark.parametrize("protection", [Protection.SEV, Protection.NONE])
def test_what_a_disk_puts_into_a_private_page_its_owner_cannot_read(
    tmp_path: Path, protection: Protection
) -> None:
    vm = a_guest(tmp_path, protection)
    ask(a_driver(vm, MemoryDisk(CLEAR)), IN, Piece(PRIVATE_AT, PAGE, writable=True))
    vm.host.flush_caches()
    assert (protection is Protection.NONE) is (CLEAR == guest_reads(vm, PRIVATE_AT))
    assert TEXT != guest_reads(vm, PRIVATE_AT)


def test_through_pages_that_it_shares_a_guest_with_sev_uses_its_disk(tmp_path: Path) -> None:
    vm, disk = a_guest(tmp_path, Protection.SEV), MemoryDisk(CLEAR)
    driver = a_driver(vm, disk)
    shared = BUFFERS + PAGE
    ask(driver, IN, Piece(shared, PAGE, writable=True))
    assert CLEAR == driver.desk.memory.read(shared, PAGE)
    driver.desk.memory.write(shared, b"bounced ".ljust(PAGE, b"."))
    ask(driver, OUT, Piece(shared, PAGE))
    assert b"bounced ".ljust(PAGE, b".") == disk.data
