"""A launch either succeeds or leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbit.cpu.faults import ExitCode
from cbit.driver.ccp import Ccp
from cbit.driver.errors import FirmwareError, MailboxTimeout
from cbit.hypervisor.frames import OutOfMemory
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import NoSuchMemory, Vm, firmware_start
from cbit.spec.address import GIB, MIB, PAGE, Gpa, Hva, Spa
from cbit.spec.command import Command
from cbit.spec.key_id import HOST
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from hypervisor.worlds import PRIVATE, TEXT, TEXT_AT, account, guest_reads, guest_writes, launched, with_text
from machine.worlds import ALL_PROFILES, host


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_every_profile_launches(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    before = account(found)
    guest = launched(found)
    assert guest.status().state == GuestState.RUNNING
    assert guest_reads(guest.vm, TEXT_AT) == TEXT
    assert TEXT[:64] not in found.read(guest.vm.spa(TEXT_AT), PAGE)
    assert TEXT[:64] not in found.read(guest.vm.spa(TEXT_AT), PAGE, c=True)
    guest.end()
    assert before == account(found)


# ---- refusals


Failure = Callable[[Host, Vm], object]
REFUSED: dict[str, tuple[int, Failure]] = {
    "reserved policy bits": (
        Status.POLICY_FAILURE,
        lambda host, vm: SevGuest.start(vm, policy=1 << 15),
    ),
    "a policy for newer firmware": (
        Status.POLICY_FAILURE,
        lambda host, vm: SevGuest.start(vm, policy=0xFF << 16),
    ),
    "a session of the wrong length": (
        Status.INVALID_LENGTH,
        lambda host, vm: SevGuest.start(vm, policy=0, godh=bytes(0x824), session=b"short"),
    ),
    "a certificate that is none": (
        Status.INVALID_CERTIFICATE,
        lambda host, vm: SevGuest.start(vm, policy=0, godh=bytes(0x824), session=bytes(0x80)),
    ),
    "ES without ES": (Status.UNSUPPORTED, lambda host, vm: SevGuest.start(vm, policy=int(Policy.ES))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_start_leaves_nothing(tmp_path: Path, name: str) -> None:
    status, attempt = REFUSED[name]
    found = host(tmp_path)
    vm = with_text(found, Protection.SEV)
    before, content = account(found), found.read(vm.spa(TEXT_AT), PAGE)
    with pytest.raises(FirmwareError) as caught:
        attempt(found, vm)
    assert status == caught.value.status
    assert before == account(found)
    assert content == found.read(vm.spa(TEXT_AT), PAGE)
    assert vm.asid == 0


def test_a_start_refused_gives_its_asid_to_the_next(tmp_path: Path) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.SEV)
    with pytest.raises(FirmwareError):
        SevGuest.start(vm, policy=1 << 15)
    assert SevGuest.start(vm, policy=0).asid == found.machine.profile.features.min_sev_no_es_asid


def test_a_refused_activation_decommissions_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.SEV)
    before = account(found)
    monkeypatch.setattr(found.asids, "_flush", lambda: None)  # a hypervisor that forgets WBINVD and DF_FLUSH
    with pytest.raises(FirmwareError, match="DFFLUSH_REQUIRED"):
        SevGuest.start(vm, policy=0)
    assert before == account(found)
    monkeypatch.undo()
    found.flush()
    assert SevGuest.start(vm, policy=0).status().state == GuestState.LUPDATE


@pytest.mark.parametrize("dies_at", [Command.LAUNCH_START, Command.ACTIVATE])
def test_a_machine_that_dies_in_between_costs_no_asid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: Command
) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.SEV)
    before = found.asids.free, found.frames.free_bytes
    call = Ccp.call

    def die(self: Ccp, command: Command, buffer: Any) -> Any:
        if command is dies_at:
            found.machine.power_off()
        return call(self, command, buffer)

    monkeypatch.setattr(Ccp, "call", die)
    with pytest.raises(MailboxTimeout):
        SevGuest.start(vm, policy=0)
    assert before == (found.asids.free, found.frames.free_bytes)


def test_commands_out_of_order_are_refused_and_the_guest_can_still_end(tmp_path: Path) -> None:
    found = host(tmp_path)
    before = account(found)
    guest = SevGuest.start(with_text(found, Protection.SEV), policy=0)
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        guest.finish()
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        guest.inject(TEXT_AT, bytes(0x34), bytes(16))
    guest.measure()
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        guest.update(TEXT_AT, PAGE)
    guest.end()
    assert before == account(found)
    launched(found)
    with pytest.raises(FirmwareError, match="INVALID_GUEST"):
        SevGuest(guest.vm, handle=99, asid=guest.asid, policy=0).end()


@pytest.mark.parametrize("state", [GuestState.LUPDATE, GuestState.LSECRET, GuestState.RUNNING])
def test_a_guest_ends_in_any_state(tmp_path: Path, state: GuestState) -> None:
    found = host(tmp_path)
    before = account(found)
    guest = SevGuest.start(with_text(found, Protection.SEV), policy=0)
    if state is not GuestState.LUPDATE:
        guest.measure()
    if state is GuestState.RUNNING:
        guest.finish()
        Vcpu(guest.vm).run().vmexit(ExitCode.INTR)  # the frame of its VMCB goes with the guest
    assert guest.status().state == state
    guest.end()
    assert before == account(found)


def test_a_packet_for_no_memory_is_refused_before_the_command(tmp_path: Path) -> None:
    found = host(tmp_path)
    guest = SevGuest.start(with_text(found, Protection.SEV), policy=0)
    guest.measure()
    before = account(found)
    with pytest.raises(NoSuchMemory, match="guest memory has nothing at 0x900000"):
        guest.inject(Gpa(0x900000), bytes(0x34), bytes(16))
    assert before == account(found)


# ---- memory


@pytest.mark.parametrize("protection", Protection)
def test_an_image_larger_than_memory_is_refused(tmp_path: Path, protection: Protection) -> None:
    found = host(tmp_path, memory_size=2 * MIB)
    vm = Vm(found, protection)
    before = account(found)
    with pytest.raises(OutOfMemory, match="0x400000 contiguous bytes wanted"):
        vm.load_firmware(bytes(4 * MIB))
    assert before == account(found)
    assert vm.regions == []
    vm.load_firmware(bytes(MIB // 2))  # what fits still fits


def test_memory_that_runs_out_for_the_tables_leaves_the_guest_as_it_was(tmp_path: Path) -> None:
    found = host(tmp_path, memory_size=2 * MIB)
    vm = Vm(found, Protection.SEV)
    region = vm.add_memory(TEXT_AT, PAGE)
    hoard = []
    while found.frames.free_bytes > 3 * PAGE:
        hoard.append(found.frames.take_page())
    with pytest.raises(OutOfMemory):
        vm.add_memory(Gpa(GIB - PAGE), 2 * PAGE)  # one frame is left for tables: the first page gets it
    assert [region] == vm.regions
    assert [None, None] == [vm.tables.lookup(Gpa(GIB - PAGE)), vm.tables.lookup(Gpa(GIB))]
    assert found.frames.free_bytes == 2 * PAGE  # the table stays, empty, until the guest goes
    vm.destroy()
    assert found.frames.free_bytes > 2 * PAGE
    for page in hoard:
        found.frames.give_back(range(page, page + PAGE, PAGE))


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(0x10001, PAGE), (-PAGE, PAGE), (0x20000, 0), (0x20000, -1), (0x10000, 1), (0xF000, 2 * PAGE)],
)
def test_memory_that_makes_no_sense_is_refused(tmp_path: Path, gpa: int, size: int) -> None:
    found = host(tmp_path)
    vm = with_text(found, Protection.NONE)
    before = account(found)
    with pytest.raises(ValueError, match="guest memory"):
        vm.add_memory(Gpa(gpa), size)
    assert before == account(found)


@pytest.mark.parametrize("size", [16, PAGE - 16, PAGE, PAGE + 16, 3 * PAGE])
def test_an_image_ends_at_4_gib_whatever_its_size(tmp_path: Path, size: int) -> None:
    """Only the image is measured: what else is in its first page is none of the owner's business."""
    found = host(tmp_path)
    image = bytes(range(256))[:16] * (size // 16)
    vm = Vm(found, Protection.SEV)
    region = vm.load_firmware(image)
    assert firmware_start(image) == 4 * GIB - size
    assert region.gpa + region.size == 4 * GIB
    guest = SevGuest.start(vm, policy=0)
    guest.update(firmware_start(image), size)
    guest.measure()
    guest.finish()
    assert guest_reads(vm, 4 * GIB - 16, 16) == image[-16:]


@pytest.mark.parametrize("size", [0, 4 * GIB + 16])
def test_no_image_and_an_endless_one_have_no_start(size: int) -> None:
    class Sized(bytes):
        def __len__(self) -> int:
            return size

    with pytest.raises(ValueError, match="cannot end at 4 GiB"):
        firmware_start(Sized())


# ---- memory that changes hands, on parts whose caches are not coherent


@pytest.mark.parametrize("profile", ["naples", "rome"])
def test_what_an_ended_guest_left_in_the_cache_harms_nobody(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    guest = launched(found)
    guest_writes(guest.vm, PRIVATE, b"dirty lines under the guest's tag" * 100)
    spa = guest.vm.spa(PRIVATE)
    guest.end()
    found.write(spa, TEXT)
    found.machine.cores[0].clflush(Hva(spa))
    found.flush_caches()
    assert found.read(spa, PAGE) == TEXT


@pytest.mark.parametrize("profile", ["naples", "rome"])
@pytest.mark.parametrize("protection", [Protection.SME, Protection.SEV])
def test_what_the_host_left_in_the_cache_harms_no_guest(
    tmp_path: Path, profile: str, protection: Protection
) -> None:
    found = host(tmp_path, profile)
    launched(found)  # so that no flush of the ASID pool helps later
    run = found.frames.take(64 * PAGE)
    found.write(Spa(run.start), b"dirty lines with C=0" * 1000)
    found.frames.give_back(run)
    guest = launched(found) if protection is Protection.SEV else None
    vm = guest.vm if guest else with_text(found, protection)
    assert vm.spa(PRIVATE) in run
    guest_writes(vm, PRIVATE, b"the guest's own".ljust(PAGE))
    # The worst order: what the guest wrote leaves the cache before what is left of the host's.
    key = guest_key_id(guest.asid) if guest else HOST
    found.machine.memory.clflush(vm.spa(PRIVATE), key)
    found.flush_caches()
    assert guest_reads(vm, PRIVATE) == b"the guest's own".ljust(PAGE)
    assert guest_reads(vm, TEXT_AT) == TEXT


@pytest.mark.parametrize("profile", ["naples", "rome"])
def test_what_the_host_left_in_the_cache_harms_no_encrypted_table(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    run = found.frames.take(8 * PAGE)
    found.write(Spa(run.start), b"dirty lines with C=0" * 1000)
    found.frames.give_back(run)
    vm = Vm(found, Protection.SME)
    (root,) = vm.tables.frames()
    assert root in run
    found.machine.memory.clflush(root, HOST)
    found.flush_caches()
    assert bytes(PAGE) == found.read(root, PAGE, c=True)


# ---- guests of one owner


def test_guests_share_a_key_where_the_policy_permits(tmp_path: Path) -> None:
    found = host(tmp_path)
    first, second = launched(found), launched(found)
    sharing = launched(found, share_with=first)
    assert len({first.asid, second.asid, sharing.asid}) == 3
    window, spa = Gpa(0x200000), first.vm.spa(TEXT_AT)
    for guest in (second, sharing):
        guest.vm.tables.map(window, range(spa, spa + PAGE, PAGE), c=False)
    assert guest_reads(sharing.vm, window) == TEXT
    assert guest_reads(second.vm, window) != TEXT
    first.end()  # the key lives on with the guest that shares it
    assert guest_reads(sharing.vm, TEXT_AT) == TEXT


@pytest.mark.parametrize(
    ("theirs", "mine", "why"),
    [
        (Policy.NOKS, Policy.NOKS, "NOKS"),
        (Policy(0), Policy.NODBG, "differs"),
        (Policy.NODBG, Policy(0), "differs"),
    ],
)
def test_a_policy_decides_who_shares(tmp_path: Path, theirs: Policy, mine: Policy, why: str) -> None:
    found = host(tmp_path)
    other = launched(found, policy=int(theirs))
    vm = with_text(found, Protection.SEV)
    before = account(found)
    with pytest.raises(FirmwareError, match=why) as caught:
        SevGuest.start(vm, policy=int(mine), share_with=other)
    assert caught.value.status == Status.POLICY_FAILURE
    assert before == account(found)


def test_unencrypted_guests_run_beside_encrypted_ones(tmp_path: Path) -> None:
    found = host(tmp_path)
    sev, none, sme = launched(found), with_text(found, Protection.NONE), with_text(found, Protection.SME)
    found.flush_caches()
    assert [TEXT] * 3 == [guest_reads(vm, TEXT_AT) for vm in (sev.vm, none, sme)]
    in_dram = [found.machine.probe.read(vm.spa(TEXT_AT), PAGE) for vm in (sev.vm, none, sme)]
    assert [False, True, False] == [content == TEXT for content in in_dram]
    assert len(set(in_dram)) == 3
