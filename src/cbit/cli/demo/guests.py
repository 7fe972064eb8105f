"""Acts 8 and 9: guests beside each other, and the end of one."""

from __future__ import annotations

from cbit.cli.demo.act import Act
from cbit.cli.demo.story import PLAIN_PAGE, World
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec import buffers
from cbit.spec.address import PAGE, Gpa, Gva
from cbit.spec.command import Command
from cbit.spec.policy import Policy
from cbit.spec.states import PlatformState

TEXT_AT = Gpa(0x10000)


def _small_guest(world: World, policy: Policy, *, share_with: SevGuest | None = None) -> SevGuest:
    """Launch one page of text, without an owner's session."""
    vm = Vm(world.host, Protection.SEV)
    vm.add_memory(TEXT_AT, PAGE)
    vm.load(TEXT_AT, PLAIN_PAGE)
    guest = SevGuest.start(vm, policy=int(policy), share_with=share_with)
    guest.update(TEXT_AT, PAGE)
    guest.measure()
    guest.finish()
    return guest


def many_guests(world: World) -> Act:
    """Own key each; a shared key where the policy permits; an unencrypted guest beside them."""
    act = Act(8, "Many guests: the ASID in every cache line and TLB entry says whose key")
    host = world.host
    first, alone = _small_guest(world, Policy(0)), _small_guest(world, Policy.NOKS)
    sharing = _small_guest(world, Policy(0), share_with=first)
    plain = Vm(host, Protection.NONE)
    plain.add_memory(TEXT_AT, PAGE)
    plain.load(TEXT_AT, PLAIN_PAGE)
    host.machine.wbinvd_on_all_cores()
    guests = {
        "guest with its own key": first,
        "guest with another key": alone,
        "guest that shares the first's": sharing,
    }
    for name, guest in guests.items():
        act.fact(name, f"handle {guest.handle}, ASID {guest.asid}")
    act.show("unencrypted guest's text in DRAM", host.read(plain.spa(TEXT_AT), PAGE))
    where = first.vm.spa(TEXT_AT)
    act.show("first guest's text in DRAM", host.read(where, PAGE))
    for name, guest in guests.items():
        seen = _look(world, guest, onto=first)
        act.show(f"first guest's page, seen by: {name}", seen)
    act.fact(
        "same key, other ASID",
        "reads the text" if _look(world, sharing, onto=first) == PLAIN_PAGE else "garbage",
    )
    try:
        _small_guest(world, Policy.NOKS, share_with=alone)
    except FirmwareError as refusal:
        act.attempt("share the key of a guest whose policy has NOKS", succeeded=False, answer=refusal)
    _spoof(act, world, first, alone)
    for guest in (first, alone, sharing):
        guest.end()
    act.who_sees = "Each ASID reads what its key opens. A spoofed ASID opens data, but its own code and tables become garbage."
    return act


def _look(world: World, guest: SevGuest, *, onto: SevGuest) -> bytes:
    """Map another guest's page into a guest and let it read: the hypervisor can, the key decides what comes."""
    window = Gpa(TEXT_AT + 0x100000)
    spa = onto.vm.spa(TEXT_AT)
    guest.vm.tables.map(window, range(spa, spa + PAGE, PAGE), c=False)
    with Vcpu(guest.vm, asid=guest.asid, sev=True).run() as view:
        return view.read(Gva(window), PAGE)


def _spoof(act: Act, world: World, victim: SevGuest, helper: SevGuest) -> None:
    with Vcpu(helper.vm, asid=victim.asid, sev=True).run() as view:
        fetched = view.fetch(Gva(TEXT_AT), 16)
    act.attempt(
        f"VMCB of ASID {helper.asid} rewritten to ASID {victim.asid}: fetch its own code",
        succeeded=fetched == PLAIN_PAGE[:16],
        answer=f"the CPU fetches {fetched.hex()}, its code is {PLAIN_PAGE[:16].hex()}",
    )


def the_end(world: World) -> Act:
    """DEACTIVATE, WBINVD, DF_FLUSH, DECOMMISSION."""
    act = Act(9, "The end: an ASID is not used again before the caches are flushed")
    host, guest = world.host, world.guest
    handle = buffers.GuestHandle(handle=guest.handle)
    again = buffers.Activate(handle=guest.handle, asid=guest.asid)
    steps = (
        ("DECOMMISSION while it holds its ASID", lambda: host.ccp.call(Command.DECOMMISSION, handle)),
        ("DEACTIVATE", lambda: host.ccp.call(Command.DEACTIVATE, handle)),
        (f"ACTIVATE with ASID {guest.asid} at once", lambda: host.ccp.call(Command.ACTIVATE, again)),
        ("DF_FLUSH without WBINVD", lambda: host.ccp.issue(Command.DF_FLUSH)),
        ("WBINVD on all cores, DF_FLUSH", host.flush),
        (f"ACTIVATE with ASID {guest.asid} now", lambda: host.ccp.call(Command.ACTIVATE, again)),
        ("DEACTIVATE", lambda: host.ccp.call(Command.DEACTIVATE, handle)),
        ("DECOMMISSION", lambda: host.ccp.call(Command.DECOMMISSION, handle)),
    )
    for name, step in steps:
        try:
            step()
        except FirmwareError as refusal:
            act.attempt(name, succeeded=False, answer=refusal)
        else:
            act.attempt(name, succeeded=True, answer="SUCCESS")
    act.fact(
        "platform", f"state {PlatformState(host.status().state).name}, {host.status().guest_count} guests"
    )
    act.who_sees = (
        "The guest's key is nobody's any more; its memory stays ciphertext until somebody overwrites it."
    )
    return act
