"""A guest with a secret in its memory, under each kind of protection, and the host it runs on.

With the built-in guest's image it executes; any other image is launched, and a reference model of its page
walks loads the secret in its place.

Without SEV there is no measured launch and nobody to seal for: the owner hands the secret to the host.
With SEV it goes through the whole launch; the hypervisor carries packets.

Paper: sev-api.md §7 (launch); sev-crypto.md §10 (the sealed secret); DESIGN.md story lines 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cbit.attacks.launch import launch
from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.guest.builtin.interface import MESSAGE_KEY, SEALED, Request, reset_state
from cbit.guest.builtin.sealed import seal
from cbit.hypervisor.devices.requests import Asked
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.small_guest import SmallGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm, firmware_start
from cbit.owner import secret as secrets
from cbit.spec import firmware_table
from cbit.spec.address import MIB, Gpa, Gva
from cbit.spec.secret_table import DISK_PASSPHRASE

RAM_SIZE: Final = 2 * MIB
RAM_BASE: Final = Gpa(0x800000)  #: where OVMF builds keep their SEV pages, and the built-in guest everything
TEXT: Final = b"Meet me where the third lamp burns."  #: of a letter to a guest that executes
SAYS: Final = "the message says: "
DATA_AT: Final = 40  #: in a secret table: behind the table's and the first entry's headers, 20 bytes each


@dataclass(slots=True)
class Courier:
    """The hypervisor as a carrier: everything that passes through its hands is kept."""

    carried: list[tuple[str, bytes]] = field(default_factory=list)

    def carry(self, what: str, data: bytes) -> bytes:
        """Hand something on, and keep a copy."""
        self.carried.append((what, data))
        return data

    def everything(self) -> bytes:
        """All copies, for somebody who looks for something in them."""
        return b"".join(data for _, data in self.carried)


@dataclass(slots=True)
class Victim:
    """A guest that holds a secret.

    Attributes:
        vm: its memory.
        asid: the ASID it runs under.
        secret: the bytes that nobody else should read.
        secret_gpa: where they are.
        sev: its firmware context, with SEV.
        courier: what the hypervisor carried for it.
        guest: it, if it executes.
        letter: what its owner sealed for it, if it executes.
    """

    vm: Vm
    asid: int
    secret: bytes
    secret_gpa: Gpa
    sev: SevGuest | None
    courier: Courier
    guest: SmallGuest | None = None
    letter: Letter | None = None

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Everything that nobody else should read."""
        return (self.secret,) if self.letter is None else (self.secret, self.letter.key.material())

    @property
    def proof(self) -> bytes:
        """What comes of `use_secret` if the guest has its secret."""
        return self.secret if self.letter is None else self.letter.text

    def use_secret(self) -> bytes:
        """Let the guest use its secret; return what came of it.

        A guest that executes opens a sealed message and prints it.  In the place of one that does not, the
        secret is loaded as its code would: paging is off, so data is private.
        """
        if self.guest is None or self.letter is None:
            vcpu = Vcpu(self.vm)
            try:
                with vcpu.run() as view:
                    return view.read(Gva(self.secret_gpa), len(self.secret))
            finally:
                vcpu.free()
        self.guest.finish([self.deliver(self.letter.sealed)])
        return self.guest.console.lines[-1].removeprefix(SAYS).encode()

    def deliver(self, message: bytes) -> Asked:
        """Put a message where the guest can read it, and ask the guest to open it."""
        assert self.guest is not None, "a guest that does not execute opens nothing"
        self.vm.load(SEALED, message)
        return self.guest.requests.ask(Request.OPEN)

    def end(self) -> None:
        """End the guest; all that it had goes back to the host."""
        if self.sev is not None:
            self.sev.end()
        else:
            self.vm.destroy()


@dataclass(frozen=True, slots=True)
class Letter:
    """A message for one guest.

    Attributes:
        key: what opens it.
        text: what it says.
        sealed: what the hypervisor carries.
    """

    key: Key
    text: bytes
    sealed: bytes


Tamper = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A guest to be started: who owns it, what for, and what a malicious host changes.

    Attributes:
        tenant: the owner.
        secret: what the guest needs.
        secret_gpa: where the owner wants it, if the image does not announce a place.
        entropy: the owner's randomness.
        message_key: what opens the owner's messages, for an image that executes: the built-in guest's.
        text: what the owner writes to it.
        change_image: applied by the host to the image that it loads.
        change_policy: applied by the host to the policy that it launches with.
    """

    tenant: Tenant
    secret: bytes
    secret_gpa: Gpa
    entropy: Entropy
    message_key: Key | None = None
    text: bytes = TEXT
    change_image: Tamper = bytes
    change_policy: int = 0

    def place(self) -> Gpa:
        """Where the secret goes: the image's own secret area, else where the owner says."""
        area = firmware_table.parse(self.tenant.image).secret_area
        return Gpa(area.base) if area else self.secret_gpa

    @property
    def secret_table(self) -> bytes:
        """What is injected: the secret, and the key for messages if there is one."""
        return secret_table(self.secret, self.message_key)

    @property
    def executes(self) -> bool:
        """Whether the guest will execute."""
        return self.message_key is not None

    def letter(self) -> Letter | None:
        """Write to the guest; None if it does not execute."""
        if self.message_key is None:
            return None
        return Letter(self.message_key, self.text, seal(self.message_key, self.text, entropy=self.entropy))


def secret_table(secret: bytes, message_key: Key | None) -> bytes:
    """Lay out what an owner injects."""
    entries = [(DISK_PASSPHRASE, secret)]
    if message_key is not None:
        entries.append((MESSAGE_KEY, message_key.material()))
    return secrets.table_of(entries)


def start(
    host: Host,
    protection: Protection,
    arrival: Arrival,
    courier: Courier,
    *,
    share_with: SevGuest | None = None,
) -> Victim:
    """Start the guest as its protection wants it; if that fails, nothing of it is left on the host.

    Args:
        host: where.
        protection: how its memory is protected.
        arrival: which guest, and whose.
        courier: keeps what passes through the hypervisor's hands.
        share_with: with SEV: a guest of the same owner whose memory key it gets, its policy permitting.

    Raises:
        NoEngine: it should execute, and this computer cannot.
        FirmwareError, BadMeasurement, Untrusted: with SEV, the secure processor or the owner refuses;
            ``courier`` has what the host saw until then.
        NoAsid, OutOfMemory, NoSuchMemory: the host or the guest has no room for it.
    """
    vm, sev = Vm(host, protection), None
    try:
        image = arrival.change_image(arrival.tenant.image)
        vm.load_firmware(image)
        vm.add_memory(RAM_BASE, RAM_SIZE)
        place = arrival.place()
        plaintext = arrival.secret_table
        vm.spa(place, len(plaintext))  # is there memory?  Better asked now than after the launch
        if protection is Protection.SEV:
            sev = launch(
                vm,
                [(firmware_start(image), image)],
                plaintext,
                place,
                tenant=arrival.tenant,
                entropy=arrival.entropy,
                policy=arrival.tenant.policy ^ arrival.change_policy,
                share_with=share_with,
                carry=courier.carry,
            )
        else:
            # Nothing proves what was launched: the owner has to hand the secret over.
            vm.load(place, courier.carry("the secret, in the clear", plaintext))
        letter = arrival.letter()
        running = SmallGuest(vm, reset_state()) if letter else None
        return Victim(
            vm, vm.asid, arrival.secret, Gpa(place + DATA_AT), sev, courier, guest=running, letter=letter
        )
    except BaseException:
        if sev is not None:
            sev.release()
        vm.destroy()
        raise
