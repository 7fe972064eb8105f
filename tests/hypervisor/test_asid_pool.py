"""ASIDs: used again only after WBINVD and DF_FLUSH, and never more than there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.faults import ExitCode
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.asid_pool import AsidPool, NoAsid
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.command import Command
from cbit.spec.status import Status
from cbit.testing.worlds import a_host
from cbit.trace import Event, Trace
from hypervisor.worlds import TEXT, TEXT_AT, account, guest_reads, launched, with_text
from machine.worlds import host, machine


def test_a_pool_flushes_once_when_only_dirty_ones_are_left() -> None:
    flushes: list[int] = []
    pool = AsidPool("tests", first=1, last=3, flush=lambda: flushes.append(1))
    assert [1, 2, 3] == [pool.take() for _ in range(3)]
    assert len(flushes) == 1
    pool.give_back(2)
    pool.give_back(1)
    assert pool.take() == 1  # both are clean after one more flush
    assert pool.take() == 2
    assert len(flushes) == 2


def test_a_dirty_one_waits_while_clean_ones_last() -> None:
    pool = AsidPool("tests", first=1, last=3, flush=lambda: None)
    first = pool.take()
    pool.give_back(first)
    assert pool.take() == 2


def test_one_that_no_guest_had_is_clean_still() -> None:
    pool = AsidPool("tests", first=1, last=3, flush=lambda: None)
    pool.give_back(pool.take(), dirty=False)
    assert pool.take() == 1


def test_a_flush_that_fails_loses_no_asid() -> None:
    def fail() -> None:
        raise FirmwareError(Command.DF_FLUSH, Status.WBINVD_REQUIRED)

    pool = AsidPool("tests", first=1, last=3, flush=fail)
    with pytest.raises(FirmwareError):
        pool.take()
    assert pool.free == 3
    assert pool.in_use == frozenset()


def test_an_asid_comes_back_once() -> None:
    pool = AsidPool("tests", first=1, last=3, flush=lambda: None)
    asid = pool.take()
    pool.give_back(asid)
    for wrong in (asid, 0, 99):
        with pytest.raises(ValueError, match="was not taken"):
            pool.give_back(wrong)
    assert pool.free == 3


@given(steps=st.lists(st.booleans(), max_size=60))
def test_a_pool_never_gives_one_asid_to_two(steps: list[bool]) -> None:
    dirty: set[int] = set()
    pool = AsidPool("tests", first=5, last=9, flush=dirty.clear)
    held: list[int] = []
    for take in steps:
        if take and len(held) == 5:
            with pytest.raises(NoAsid):
                pool.take()
        elif take:
            held.append(pool.take())
            assert held[-1] not in dirty
        elif held:
            dirty.add(held[0])
            pool.give_back(held.pop(0))
        assert len(set(held)) == len(held)
        assert set(held) == pool.in_use
        assert pool.free + len(held) == 5


# ---- with a machine


def test_more_guests_than_asids_is_a_sentence_and_leaks_nothing(tmp_path: Path) -> None:
    few = host(tmp_path, "naples")
    start = account(few)
    guests = [launched(few) for _ in range(5, 16)]
    assert [guest.asid for guest in guests] == list(range(5, 16))
    full = account(few)
    vm = with_text(few, Protection.SEV)
    with pytest.raises(NoAsid, match=r"all ASIDs for guests without ES \(5\.\.15\) are in use"):
        SevGuest.start(vm, policy=0)
    vm.destroy()
    assert full == account(few)
    for guest in guests:
        assert guest_reads(guest.vm, TEXT_AT) == TEXT
        guest.end()
    assert start == account(few)


def test_no_asid_is_used_again_before_wbinvd_and_df_flush(tmp_path: Path) -> None:
    trace = Trace()
    few = a_host(machine(tmp_path, "naples", trace=trace))
    held = [launched(few) for _ in range(10)]
    events: list[Event] = []
    with trace.watched_by(events.append):
        asids = []
        for _ in range(5):
            asids.append((guest := launched(few)).asid)
            guest.end()
    assert asids == [15] * 5  # the last one that is free
    story = [event.what for event in events if event.what in {"ACTIVATE", "DEACTIVATE", "DF_FLUSH", "WBINVD"}]
    again = [story[at + 1 :] for at, what in enumerate(story) if what == "DEACTIVATE"][:-1]
    for after in again:
        until = after[: after.index("ACTIVATE")]
        assert until.index("WBINVD") < until.index("DF_FLUSH")
    assert len(again) == 4
    assert guest_reads(held[0].vm, TEXT_AT) == TEXT


def test_activating_a_dirty_asid_is_refused_by_the_secure_processor(tmp_path: Path) -> None:
    found = host(tmp_path)
    guest = launched(found)
    guest.deactivate()
    with pytest.raises(FirmwareError) as caught:
        guest.activate()
    assert caught.value.status == Status.DFFLUSH_REQUIRED
    with pytest.raises(FirmwareError) as caught:
        found.ccp.issue(Command.DF_FLUSH)
    assert caught.value.status == Status.WBINVD_REQUIRED
    found.flush()
    guest.activate()
    assert guest_reads(guest.vm, TEXT_AT) == TEXT
    guest.end()


def test_a_second_init_makes_every_asid_dirty_again(tmp_path: Path) -> None:
    found = host(tmp_path)
    launched(found)
    found.ccp.issue(Command.SHUTDOWN)  # guests are decommissioned with it
    found.initialise()
    guest = launched(found)
    assert guest_reads(guest.vm, TEXT_AT) == TEXT


def test_a_new_guest_under_an_old_asid_gets_no_old_translation(tmp_path: Path) -> None:
    """The TLB keeps entries by ASID: the hypervisor flushes when another VMCB uses it (§7 rule 3)."""
    few = host(tmp_path, "naples")
    held = [launched(few) for _ in range(10)]
    old = launched(few)
    assert guest_reads(old.vm, TEXT_AT) == TEXT
    where, vcpu = old.vm.spa(TEXT_AT), Vcpu(old.vm)
    vcpu.run().vmexit(ExitCode.INTR)
    assert vcpu.vmcb_at in few.last_vmcb.values()
    old.end()
    assert vcpu.vmcb_at not in few.last_vmcb.values()  # its frame may be the next guest's VMCB
    few.frames.take(8 * 4096)  # so that the next guest's memory lies elsewhere
    new = launched(few)
    assert old.asid == new.asid
    assert where != new.vm.spa(TEXT_AT)
    few.write(where, b"what is in the old guest's frame now".ljust(4096))
    assert guest_reads(new.vm, TEXT_AT) == TEXT
    assert len(held) == 10


def test_unencrypted_guests_have_asids_of_their_own(tmp_path: Path) -> None:
    few = host(tmp_path, "naples")
    plain = [Vm(few, Protection.NONE) for _ in range(3)]
    assert [16, 17, 18] == [vm.asid for vm in plain]
    for vm in plain:
        vm.destroy()


def test_too_many_unencrypted_guests(tmp_path: Path) -> None:
    few: Host = host(tmp_path, "naples")
    few.plain_asids = AsidPool("guests without SEV", first=16, last=16, flush=lambda: None)
    vm = Vm(few, Protection.NONE)
    before = account(few)
    with pytest.raises(NoAsid, match="guests without SEV"):
        Vm(few, Protection.SME)
    assert before == account(few)
    vm.destroy()
