"""Configuration mechanism 1, windows that move, lines that are shared."""

from __future__ import annotations

import pytest

from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.devices.pci import HostBridge, PciBus
from cbit.hypervisor.devices.pic import Interrupts
from cbit.spec.acpi.board import pci_line
from hypervisor.devices.driver import DiskDriver, address, config_read, config_write
from hypervisor.devices.worlds import Desk

ONES = 0xFFFF_FFFF


def a_desk(disks: int = 1) -> Desk:
    desk = Desk(disks=[MemoryDisk(bytes(512)) for _ in range(disks)])
    desk.start_pics()
    return desk


def test_linux_finds_mechanism_1() -> None:
    desk = a_desk()
    desk.out(0xCFB, 1)
    before = desk.chipset.read(0xCF8, 4)
    desk.chipset.write(0xCF8, 4, 0x8000_0000)
    assert 0x8000_0000 == desk.chipset.read(0xCF8, 4)
    desk.chipset.write(0xCF8, 4, before)
    assert 0x0600 == config_read(desk, 0, 0x0A, 2)  # a host bridge


def test_only_what_is_there_answers() -> None:
    desk = a_desk(disks=2)
    found = [slot for slot in range(32) if config_read(desk, slot, 0, 4) != ONES]
    assert [0, 1, 2] == found
    # another bus, another function, a register past 256, not enabled
    for other in (1 << 31 | 1 << 16, 1 << 31 | 1 << 11 | 1 << 8, 1 << 31 | 1 << 24 | 1 << 11, 1 << 11):
        desk.chipset.write(0xCF8, 4, other)
        assert ONES == desk.chipset.read(0xCFC, 4)


def test_parts_of_a_register_can_be_read_and_a_read_past_it_finds_nothing() -> None:
    desk = a_desk()
    desk.chipset.write(0xCF8, 4, address(1, 0))
    assert 0x1042_1AF4 == desk.chipset.read(0xCFC, 4)
    assert (0x1AF4, 0x1042) == (desk.chipset.read(0xCFC, 2), desk.chipset.read(0xCFE, 2))
    assert 0x10 == desk.chipset.read(0xCFF, 1)
    assert 0xFFFF == desk.chipset.read(0xCFF, 2)
    desk.chipset.write(0xCFE, 4, 0)
    assert 0xFF == desk.inb(0xCF8)


@pytest.mark.parametrize("register", [0x00, 0x08, 0x2C, 0x34, 0x40, 0x14, 0x30])
def test_what_is_not_writable_stays(register: int) -> None:
    desk = a_desk()
    before = config_read(desk, 1, register, 4)
    config_write(desk, 1, register, 4, before ^ ONES)
    assert before == config_read(desk, 1, register, 4)


def test_a_window_tells_its_size_and_moves() -> None:
    desk = a_desk()
    driver = DiskDriver(desk)
    assert 0xC100 == driver.base
    assert 0x1F == config_read(desk, 1, 4, 2) | 0x1F
    config_write(desk, 1, 0x10, 4, ONES)
    assert ~0xFF & ONES | 1 == config_read(desk, 1, 0x10, 4)
    config_write(desk, 1, 0x10, 4, 0xD000)
    assert 0xFF == desk.inb(driver.base + 0x12)
    driver.base = 0xD000
    assert 1 == driver.get(0x12, 2)  # one queue
    config_write(desk, 1, 4, 2, 0)
    assert 0xFFFF == driver.get(0x12, 2)


@pytest.mark.parametrize("base", [0x0, 0x3F00, 0xC200, 0x1_0000, 0x600])
def test_a_window_where_others_answer_hides_behind_them(base: int) -> None:
    desk = a_desk(disks=2)
    DiskDriver(desk, 2)
    driver = DiskDriver(desk, 1)
    at_0x64, at_serial, at_disk = desk.inb(0x64), desk.inb(0x3FD), desk.chipset.read(0xC212, 2)
    config_write(desk, 1, 0x10, 4, base)
    assert 0xFFFF == driver.get(0x12, 2)
    assert (at_0x64, at_serial) == (desk.inb(0x64), desk.inb(0x3FD))
    assert base == 0xC200 or at_disk == desk.chipset.read(0xC212, 2)
    config_write(desk, 1, 0x10, 4, 0xC100)
    assert 1 == driver.get(0x12, 2)
    assert at_disk == desk.chipset.read(0xC212, 2)


def test_firmware_has_assigned_lines_and_software_may_note_others() -> None:
    desk = a_desk(disks=4)
    for slot in (1, 2, 3, 4):
        assert (pci_line(slot), 1) == (config_read(desk, slot, 0x3C, 1), config_read(desk, slot, 0x3D, 1))
    config_write(desk, 1, 0x3C, 1, 5)
    assert 5 == config_read(desk, 1, 0x3C, 1)
    assert 0 == config_read(desk, 0, 0x3D, 1)  # the bridge has no pin


def test_a_shared_line_is_active_while_one_pulls_it() -> None:
    desk = a_desk(disks=3)
    desk.out(0x4D1, 1 << pci_line(1) - 8)
    interrupts = desk.chipset.interrupts
    drivers = [DiskDriver(desk, slot).start() for slot in (1, 3)]  # 1 and 3 share
    for driver in drivers:
        driver.request(4, 0)
    assert interrupts.pending
    assert 1 == drivers[0].isr()
    assert interrupts.pending
    assert 1 == drivers[1].isr()
    assert not interrupts.pending


def test_interrupts_can_be_disabled_and_the_status_tells_of_them_still() -> None:
    desk = a_desk()
    driver = DiskDriver(desk).start()
    config_write(desk, 1, 4, 2, 0x405)
    driver.request(4, 0)
    assert not desk.chipset.interrupts.pending
    assert 0x18 == config_read(desk, 1, 6, 1)
    config_write(desk, 1, 4, 2, 5)
    assert 0x28 + pci_line(1) - 8 == desk.chipset.interrupts.acknowledge()
    driver.isr()
    assert 0x10 == config_read(desk, 1, 6, 1)


def test_a_bus_has_32_slots() -> None:
    with pytest.raises(ValueError, match="slots 0 to 31"):
        PciBus({32: HostBridge()}, interrupts=Interrupts())
