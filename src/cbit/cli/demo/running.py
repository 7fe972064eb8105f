"""Act 7, where guests execute: what ours says, what others see, and what its registers give away."""

from __future__ import annotations

from typing import Final

from cbit.attacks.victim import SAYS, TEXT, Courier, start
from cbit.cli.demo.act import Act
from cbit.cli.demo.world import World
from cbit.crypto.key import Key
from cbit.guest.builtin import image as builtin
from cbit.guest.builtin.interface import PUBLISHED, RESULT, SEALED, TRANSFER, Request
from cbit.guest.builtin.sealed import KEY_BYTES, seal
from cbit.hypervisor.host import Protection
from cbit.hypervisor.small_guest import SmallGuest, Turn

NUMBER: Final = 100_000  #: below which the guest counts primes
REPLY: Final = b"block 7 of your disk"
MOST_INTERRUPTS: Final = 20_000


def run_guest(act: Act, world: World) -> None:
    """Launch the built-in guest as the firmware was launched; VMRUN, and everything that follows from it."""
    victim = start(world.host, Protection.SEV, world.arrival(), Courier())
    guest = victim.guest
    assert guest is not None
    act.fact(
        "cbit's own guest",
        f"{len(builtin.image()):#x} bytes assembled here, measured, accepted by its owner; it has its secret",
    )
    guest.turn()
    act.fact("VMRUN", f"ASID {victim.asid}, from the reset vector; it halts when nobody wants anything")
    _said(act, guest)
    c_bit, *number = guest.ask(Request.WHO).answers
    nonce = number[0] | number[1] << 32
    act.fact("hypervisor: who are you?", f"C-bit {c_bit}, and a number of its own: {nonce:#018x}")
    _compute(act, world, guest)
    _device(act, guest)
    _messages(act, world, guest)
    _registers(act, world, guest)
    guest.ask(Request.END)
    _said(act, guest)
    act.fact("exits", ", ".join(f"{name} {count}" for name, count in guest.exits.items()))
    victim.end()
    act.who_sees = (
        "What the guest prints, and what it puts into its shared page, is everybody's. Its private memory is "
        "its own. Its registers are not: under plain SEV every #VMEXIT hands them to the hypervisor. It is "
        "SEV-ES that encrypts them."
    )


def _said(act: Act, guest: SmallGuest) -> None:
    act.fact("the guest prints", guest.console.lines[-1])


def _compute(act: Act, world: World, guest: SmallGuest) -> None:
    guest.ask(Request.COMPUTE, NUMBER)
    _said(act, guest)
    written = world.host.flush_caches()
    act.fact("WBINVD", f"{written} pages written back, so that DRAM has all of it")
    probe, vm = world.machine.probe, guest.vm
    act.show("DRAM: its result, written to a private page", probe.read(vm.spa(RESULT), TRANSFER))
    act.show("DRAM: the same, written with C=0", probe.read(vm.spa(PUBLISHED), TRANSFER))


def _device(act: Act, guest: SmallGuest) -> None:
    """DMA reaches shared pages alone, so the guest copies what the device shall have."""
    for where, straight in (("the shared page", 0), ("the private page", 1)):
        guest.ask(Request.GIVE_TO_DEVICE, straight)
        act.show(f"a device takes the result from {where}", guest.copier.buffer[:TRANSFER])
    guest.copier.load(REPLY)
    guest.ask(Request.TAKE_FROM_DEVICE, 0)
    _said(act, guest)


def _messages(act: Act, world: World, guest: SmallGuest) -> None:
    """The owner seals; the hypervisor carries; the guest opens."""
    sealed = seal(world.message_key, TEXT, entropy=world.entropy)
    stranger = seal(Key(world.entropy.draw(KEY_BYTES)), TEXT, entropy=world.entropy)
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    act.show("a message of the owner's, as it is carried", sealed)
    for who, message in (
        ("the guest opens it with the injected key", sealed),
        ("the same with one bit changed on the way", changed),
        ("a message that somebody else sealed", stranger),
    ):
        guest.vm.load(SEALED, message)
        asked = guest.ask(Request.OPEN)
        opened = asked.status == 0 and guest.console.lines[-1] == SAYS + TEXT.decode()
        act.attempt(who, succeeded=opened, answer=guest.console.lines[-1])


def _registers(act: Act, world: World, guest: SmallGuest) -> None:
    """An interrupt after every block of code, while the guest uses its key."""
    key, found = world.message_key.material(), 0
    guest.vm.load(SEALED, seal(world.message_key, TEXT, entropy=world.entropy))
    asked, interrupts = guest.requests.ask(Request.OPEN), 0
    while asked.status is None and interrupts < MOST_INTERRUPTS and guest.turn(1) is not Turn.ENDED:
        interrupts += 1
        if not found and key in guest.registers:
            found = interrupts
    where = (
        f"its registers, at interrupt {found} of {interrupts}"
        if found
        else f"{interrupts} times its registers"
    )
    act.search("hypervisor interrupts it at work and looks for its key", found=bool(found), where=where)
