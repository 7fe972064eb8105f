"""What the acts of the story share: one machine, its operator, and the owner of a guest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from cbit.attacks.tenant import Tenant
from cbit.attacks.victim import Arrival
from cbit.cli.demo.firmware import Image
from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.guest.builtin import image as builtin
from cbit.hypervisor.host import Host
from cbit.hypervisor.launch import SevGuest
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
from cbit.owner.session import Measuring, Trusted
from cbit.spec.address import MIB, PAGE, Gpa

MEMORY: Final = 64 * MIB
PLAIN_PAGE: Final = (b"The host's page: nothing in it is secret, all of it is text. " * 68)[:PAGE]


@dataclass(slots=True)
class World:
    """Each act works on what the acts before it left behind.

    Attributes:
        state: the manufactured machine.
        image: the guest firmware.
        secret: what the guest owner wants in its guest and nowhere else.
        place: where in the guest's memory it goes.
        message_key: what opens the owner's messages to a guest that executes.
        no_engine: why guests do not execute on this computer; empty if they do.
        entropy: everybody's randomness.
    """

    state: StateFolder
    image: Image
    secret: bytes
    place: Gpa
    message_key: Key
    no_engine: str
    entropy: Entropy
    machine: Machine = field(init=False)
    host: Host = field(init=False)
    tenant: Tenant = field(init=False)
    session: Measuring = field(init=False)
    trusted: Trusted = field(init=False)
    guest: SevGuest = field(init=False)

    @property
    def executes(self) -> bool:
        """Whether guests execute here: those with the built-in guest's image."""
        return not self.no_engine

    def arrival(self, *, policy: int | None = None) -> Arrival:
        """Describe a guest of the same owner: the built-in one if it executes, else the launched image.

        Args:
            policy: another policy than the owner's usual one.
        """
        image = builtin.image() if self.executes else self.image.data
        wanted = self.tenant.policy if policy is None else int(policy)
        return Arrival(
            replace(self.tenant, image=image, policy=wanted),
            self.secret,
            self.place,
            self.entropy,
            message_key=self.message_key if self.executes else None,
        )

    def new_machine(self, memory: int = MEMORY) -> Machine:
        """Build the machine of the state folder, powered off."""
        return Machine(self.state, Options(memory_size=memory, entropy=self.entropy))

    def new_host(self) -> Host:
        """Boot the machine with half the memory and initialise its platform: a stage for adversaries."""
        machine = self.new_machine(MEMORY // 2)
        machine.power_on()
        host = Host(machine)
        host.initialise()
        return host
