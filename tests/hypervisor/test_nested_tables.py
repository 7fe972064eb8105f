"""Nested tables live in DRAM: what is there is what the guest sees."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.faults import NestedPageFault
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import GIB, MIB, PAGE, Gpa, Gva, Spa
from hypervisor.worlds import TEXT, TEXT_AT, account, guest_reads, launched, with_text
from machine.worlds import ALL_PROFILES, host


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return host(tmp_path_factory.mktemp("nested"), memory_size=32 * MIB)


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_system_physical_is_not_guest_physical(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    guest = launched(found)
    spa = guest.vm.spa(TEXT_AT)
    assert int(spa) != int(TEXT_AT)
    assert guest.vm.tables.lookup(TEXT_AT) == (spa, False)
    with Vcpu(guest.vm).run() as view:
        assert view.walk(Gva(TEXT_AT)).page == spa


def test_an_entry_edited_in_dram_is_what_the_guest_gets(tmp_path: Path) -> None:
    """The bytes themselves are edited, with the power of a probe: nothing but DRAM says where memory is."""
    found = host(tmp_path)
    vm = with_text(found, Protection.NONE)
    vm.load(Gpa(TEXT_AT + PAGE), b"another page".ljust(PAGE))
    entry, other = vm.tables.entry_at(TEXT_AT), vm.tables.entry_at(Gpa(TEXT_AT + PAGE))
    assert entry is not None
    assert other is not None
    found.flush_caches()
    found.machine.probe.write(entry, found.machine.probe.read(other, 8))
    assert guest_reads(vm, TEXT_AT) == b"another page".ljust(PAGE)
    found.flush_caches()
    found.machine.probe.write(entry, bytes(8))
    with pytest.raises(NestedPageFault):
        guest_reads(vm, TEXT_AT)


def test_a_translation_in_use_stays_until_somebody_flushes_it(tmp_path: Path) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.NONE)
    vm.load(Gpa(TEXT_AT + PAGE), b"another page".ljust(PAGE))
    vcpu = Vcpu(vm)
    with vcpu.run() as view:
        assert view.read(Gva(TEXT_AT), PAGE) == TEXT
    there = vm.spa(Gpa(TEXT_AT + PAGE))
    vm.tables.map(TEXT_AT, range(there, there + PAGE, PAGE), c=False)
    with vcpu.run() as view:  # the same VMCB: no flush was asked for
        assert view.read(Gva(TEXT_AT), PAGE) == TEXT
    found.forget(vcpu.vmcb_at)
    with vcpu.run() as view:
        assert view.read(Gva(TEXT_AT), PAGE) == b"another page".ljust(PAGE)


def test_a_vcpu_that_moves_between_cores_finds_no_stale_translation(tmp_path: Path) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.NONE)
    first, second = Vcpu(vm), Vcpu(vm)
    for vcpu, core in ((first, 0), (second, 0), (first, 1), (second, 1), (first, 0)):
        with vcpu.run(core=core) as view:
            assert view.read(Gva(TEXT_AT), PAGE) == TEXT
    assert {0, 1} == {core for core, _ in found.last_vmcb}


@pytest.mark.parametrize(("protection", "encrypted"), [("none", False), ("sme", True), ("sev", False)])
def test_tables_are_ciphertext_under_sme(tmp_path: Path, protection: str, encrypted: bool) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection(protection))
    found.flush_caches()
    c_bit = 1 << found.machine.profile.features.c_bit
    assert encrypted is bool(vm.tables.ncr3 & c_bit)
    for table in vm.tables.frames():
        raw = found.machine.probe.read(table, PAGE)
        mostly_empty = raw.count(0) > PAGE * 3 // 4
        assert mostly_empty is not encrypted
    entry = vm.tables.entry_at(TEXT_AT)
    assert entry is not None
    plain = int.from_bytes(found.read(entry, 8, c=encrypted), "little")
    assert plain & ~c_bit & -PAGE & (1 << 52) - 1 == vm.spa(TEXT_AT)
    assert encrypted is bool(plain & c_bit)


def test_one_c_bit_less_in_the_root_and_the_walk_is_lost(tmp_path: Path) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.SME)
    vcpu = Vcpu(vm)
    found.flush_caches()
    c_bit = 1 << found.machine.profile.features.c_bit
    vcpu.write(vcpu.read().replace(ncr3=vm.tables.ncr3 & ~c_bit))
    with vcpu.run() as view, pytest.raises(NestedPageFault):
        view.read(Gva(TEXT_AT), 16)


def test_mapping_and_unmapping(tmp_path: Path) -> None:
    found = host(tmp_path)
    vm = Vm(found, Protection.NONE)
    frames = range(0x400000, 0x400000 + 3 * PAGE, PAGE)
    place = Gpa(GIB - 2 * PAGE)  # over the border of a leaf table, and of a directory
    vm.tables.map(place, frames, c=False)
    assert [(frame, False) for frame in frames] == [
        vm.tables.lookup(Gpa(place + number * PAGE)) for number in range(3)
    ]
    vm.tables.unmap(place, 2)
    assert vm.tables.lookup(place) is None
    assert vm.tables.lookup(Gpa(place + 2 * PAGE)) == (frames[2], False)
    vm.tables.unmap(Gpa(40 * GIB))  # nothing is there, nothing happens
    assert vm.tables.entry_at(Gpa(40 * GIB)) is None


@given(
    pages=st.dictionaries(
        st.integers(0, 1 << 30).map(lambda page: page * PAGE), st.integers(1, 1000), min_size=1, max_size=12
    ),
    c=st.booleans(),
    encrypted=st.booleans(),
)
def test_tables_remember_what_they_were_told(
    shared: Host, pages: dict[int, int], c: bool, encrypted: bool
) -> None:
    vm = Vm(shared, Protection.SME if encrypted else Protection.NONE)
    for gpa, number in pages.items():
        vm.tables.map(Gpa(gpa), range(number * PAGE, (number + 1) * PAGE, PAGE), c=c)
    assert {gpa: (Spa(number * PAGE), c) for gpa, number in pages.items()} == {
        gpa: vm.tables.lookup(Gpa(gpa)) for gpa in pages
    }
    vm.destroy()


def test_everything_comes_back(shared: Host) -> None:
    before = account(shared)
    for protection in Protection:
        vm = with_text(shared, protection)
        Vcpu(vm), Vcpu(vm)
        vm.destroy()
    assert before == account(shared)


@pytest.mark.parametrize("protection", Protection)
def test_a_guest_of_4_mib_is_mapped_at_once(shared: Host, protection: Protection) -> None:
    vm = Vm(shared, protection)
    begun = time.process_time()
    vm.add_memory(Gpa(0), 4 * MIB)
    assert time.process_time() - begun < 0.5  # 15 ms here; a second would mean entry by entry, or worse
    vm.destroy()
