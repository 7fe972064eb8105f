"""Acts 8 and 9: guests beside each other, and the end of one."""

from __future__ import annotations

from typing import Final

from cbit.cli.demo import side_by_side
from cbit.cli.demo.act import Act
from cbit.cli.demo.world import PLAIN_PAGE, World
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa, Gva
from cbit.spec.command import Command
from cbit.spec.policy import Policy
from cbit.spec.states import PlatformState

TEXT_AT: Final = Gpa(0x10000)
WINDOW: Final = Gpa(0x110000)


def many_guests(world: World) -> Act:
    """Own key each; a shared key where the policy permits; an unencrypted guest beside them."""
    if world.executes:
        return side_by_side.many_guests(world)
    act = Act(8, "Many guests: each ASID reads what its own key opens")
    host = world.host
    guest_a, guest_b = _small_guest(host, Policy(0)), _small_guest(host, Policy.NOKS)
    guest_c = _small_guest(host, Policy(0), share_with=guest_a)
    plain = _with_text(host, Protection.NONE)
    host.flush_caches()
    act.fact("guest A", f"ASID {guest_a.asid}, a key of its own")
    act.fact("guest B", f"ASID {guest_b.asid}, another key; policy NOKS: nobody may share it")
    act.fact("guest C", f"ASID {guest_c.asid}, shares A's key; same owner, same policy")
    act.fact("guest D", f"ASID {plain.asid}, not encrypted")
    act.show("D's text in DRAM", host.read(plain.spa(TEXT_AT), PAGE))
    act.show("A's text in DRAM", host.read(guest_a.vm.spa(TEXT_AT), PAGE))
    for name, guest in (("A", guest_a), ("B", guest_b), ("C", guest_c)):
        act.show(f"A's page mapped into {name}: {name} reads", _look(guest, onto=guest_a))
    try:
        _small_guest(host, Policy.NOKS, share_with=guest_b)
    except FirmwareError as refusal:
        act.attempt("a guest asks for B's key", succeeded=False, answer=refusal)
    _spoof(act, victim=guest_a, helper=guest_b)
    for guest in (guest_a, guest_b, guest_c):
        guest.end()
    plain.destroy()
    act.who_sees = (
        "Cache lines and TLB entries carry the ASID, so another ASID never hits them. Under a spoofed ASID a "
        "guest's own code and page tables become garbage before it can load anything."
    )
    return act


def _with_text(host: Host, protection: Protection) -> Vm:
    vm = Vm(host, protection)
    vm.add_memory(TEXT_AT, PAGE)
    vm.load(TEXT_AT, PLAIN_PAGE)
    return vm


def _small_guest(host: Host, policy: Policy, *, share_with: SevGuest | None = None) -> SevGuest:
    """Launch one page of text, without an owner's session."""
    vm = _with_text(host, Protection.SEV)
    try:
        guest = SevGuest.start(vm, policy=int(policy), share_with=share_with)
    except FirmwareError:
        vm.destroy()
        raise
    guest.update(TEXT_AT, PAGE)
    guest.measure()
    guest.finish()
    return guest


def _look(guest: SevGuest, *, onto: SevGuest) -> bytes:
    """Map another guest's page into a guest and let it read: the key decides what comes."""
    spa = onto.vm.spa(TEXT_AT)
    guest.vm.tables.map(WINDOW, range(spa, spa + PAGE, PAGE), c=False)
    with Vcpu(guest.vm).run() as view:
        return view.read(Gva(WINDOW), PAGE)


def _spoof(act: Act, *, victim: SevGuest, helper: SevGuest) -> None:
    with Vcpu(helper.vm, asid=victim.asid).run() as view:
        fetched = view.fetch(Gva(TEXT_AT), 16)
    act.attempt(
        "hypervisor runs B under A's ASID",
        succeeded=fetched == PLAIN_PAGE[:16],
        answer=f"B's code arrives as {fetched.hex()}, it is {PLAIN_PAGE[:16].hex()}",
    )


def the_end(world: World) -> Act:
    """DEACTIVATE, WBINVD, DF_FLUSH, DECOMMISSION."""
    act = Act(9, "The end: no ASID is used again before the caches are flushed")
    host, guest = world.host, world.guest
    for name, step in (
        ("DECOMMISSION while it holds its ASID", guest.decommission),
        ("DEACTIVATE", guest.deactivate),
        (f"ACTIVATE with ASID {guest.asid} at once", guest.activate),
        ("DF_FLUSH without WBINVD", lambda: host.ccp.issue(Command.DF_FLUSH)),
        ("WBINVD on all cores, DF_FLUSH", host.flush),
        (f"ACTIVATE with ASID {guest.asid} now", guest.activate),
        ("DEACTIVATE, DECOMMISSION", guest.end),
    ):
        try:
            step()
        except FirmwareError as refusal:
            act.attempt(name, succeeded=False, answer=refusal)
        else:
            act.attempt(name, succeeded=True, answer="SUCCESS")
    status = host.status()
    act.fact("platform", f"state {PlatformState(status.state).name}, {status.guest_count} guests")
    act.who_sees = (
        "The guest's key is nobody's any more; its memory stays ciphertext until somebody overwrites it."
    )
    return act
