"""Act 8 for guests that execute: four of them on one core in turn, and what others get of their memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cbit.attacks.helper_guest import HelperGuest
from cbit.attacks.victim import Courier, Victim, start
from cbit.cli.demo.act import Act
from cbit.cli.demo.world import World
from cbit.crypto.key import Key
from cbit.driver.errors import FirmwareError
from cbit.guest.builtin.interface import RESULT, TRANSFER, Request, reset_state
from cbit.guest.builtin.sealed import KEY_BYTES
from cbit.hypervisor.host import Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.small_guest import PATIENCE, SmallGuest
from cbit.spec.address import PAGE, Spa
from cbit.spec.policy import Policy

SLICE: Final = 20_000  #: blocks of code that a guest executes before the next one has its turn


@dataclass(frozen=True, slots=True)
class Resident:
    """One of the guests.

    Attributes:
        name: what the story calls it.
        what: what is special about it.
        victim: it.
        number: below which it counts primes.
    """

    name: str
    what: str
    victim: Victim
    number: int

    @property
    def guest(self) -> SmallGuest:
        """The guest that executes."""
        assert self.victim.guest is not None
        return self.victim.guest


def many_guests(world: World) -> Act:
    """Own key each; a shared key where the policy permits; an unencrypted guest beside them."""
    act = Act(8, "Many guests: in turn on one core, each in its own memory")
    residents = _move_in(world)
    a, b, *_ = residents
    for each in residents:
        act.fact(f"guest {each.name}", f"ASID {each.victim.asid}, {each.what}")
    _in_turn(act, residents)
    for each in residents:
        each.victim.use_secret()
        act.fact(f"{each.name} opens its message", each.guest.console.lines[-1])
    _wrong_mail(act, a, b)
    world.host.flush_caches()
    for each in (a, residents[-1]):
        cells = world.machine.probe.read(each.victim.vm.spa(RESULT), TRANSFER)
        act.show(f"DRAM: what {each.name} computed", cells)
    _mapped_elsewhere(act, world, a)
    try:
        start(
            world.host, Protection.SEV, world.arrival(policy=Policy.NOKS), Courier(), share_with=b.victim.sev
        )
    except FirmwareError as refusal:
        act.attempt("a guest asks for B's key", succeeded=False, answer=refusal)
    _spoof(act, a, b)
    for each in residents:
        each.guest.ask(Request.END)
        each.victim.end()
    act.who_sees = (
        "Cache lines and translations carry the ASID, so another ASID never hits them. Under a spoofed ASID "
        "a guest's own code and page tables become garbage before it can load anything."
    )
    return act


def _move_in(world: World) -> list[Resident]:
    def launched(name: str, protection: Protection, policy: int, sharing: SevGuest | None = None) -> Victim:
        arrival = replace(
            world.arrival(policy=policy),
            message_key=Key(world.entropy.draw(KEY_BYTES)),
            text=f"{name}, the lamp is lit.".encode(),
        )
        return start(world.host, protection, arrival, Courier(), share_with=sharing)

    a = launched("A", Protection.SEV, 0)
    b = launched("B", Protection.SEV, Policy.NOKS)
    c = launched("C", Protection.SEV, 0, a.sev)
    d = launched("D", Protection.NONE, 0)
    return [
        Resident("A", "a memory key of its own", a, 100_000),
        Resident("B", "another key; policy NOKS: nobody may share it", b, 150_000),
        Resident("C", "shares A's memory key; same owner, same policy", c, 200_000),
        Resident("D", "not encrypted", d, 250_000),
    ]


def _in_turn(act: Act, residents: list[Resident]) -> None:
    """Let all compute at the same time: each runs until its slice is over."""
    asked = [(each, each.guest.requests.ask(Request.COMPUTE, each.number)) for each in residents]
    turns = dict.fromkeys((each.name for each in residents), 0)
    for _ in range(PATIENCE // SLICE):
        waiting = [each for each, request in asked if request.status is None]
        if not waiting:
            break
        for each in waiting:
            each.guest.turn(SLICE)
            turns[each.name] += 1
    for each in residents:
        act.fact(f"{each.name} prints, after {turns[each.name]} turns", each.guest.console.lines[-1])


def _wrong_mail(act: Act, a: Resident, b: Resident) -> None:
    """Hand A's message to B."""
    assert a.victim.letter is not None
    asked = b.victim.deliver(a.victim.letter.sealed)
    b.guest.finish([asked])
    act.attempt(
        "hypervisor hands A's message to B", succeeded=not asked.status, answer=b.guest.console.lines[-1]
    )


def _mapped_elsewhere(act: Act, world: World, a: Resident) -> None:
    """Map A's page into guests of the hypervisor's own: the key decides what they read."""
    page = a.victim.vm.spa(RESULT)
    for who, protection, sharing in (
        ("a guest with another key", Protection.SEV, None),
        ("a guest that shares A's key", Protection.SEV, a.victim.sev),
        ("a guest without encryption", Protection.NONE, None),
    ):
        policy = Policy(0) if sharing else Policy.NODBG
        with HelperGuest.start(
            world.host,
            protection,
            onto=Spa(page & -PAGE),
            executes=True,
            policy=policy,
            share_with=sharing,
        ) as helper:
            data, _ = helper.run(page % PAGE, TRANSFER)
        act.show(f"A's page mapped into {who}: it reads", data)


def _spoof(act: Act, a: Resident, b: Resident) -> None:
    """Run B's virtual CPU with A's ASID in its VMCB; then see whether A and B are the same as before."""
    before = [each.guest.ask(Request.WHO).answers for each in (a, b)]
    lost = SmallGuest(b.victim.vm, reset_state(), asid=a.victim.asid)
    turn = lost.turn(SLICE)
    act.attempt(
        "hypervisor runs B under A's ASID",
        succeeded=bool(lost.console.lines),
        answer=lost.stopped if lost.stop else f"{turn.value}, and it has said nothing",
    )
    after = [each.guest.ask(Request.WHO).answers for each in (a, b)]
    answer = "both as before" if before == after else "changed"
    act.attempt("A and B, each under its own ASID again", succeeded=before == after, answer=answer)
