"""A guest with a secret in its memory, under each kind of protection, and the host it runs on.

Without SEV there is no measured launch and nobody to seal for: the owner hands the secret to the host.
With SEV it goes through the whole launch; the hypervisor carries packets.

Paper: sev-api.md §7 (launch); sev-crypto.md §10 (the sealed secret); DESIGN.md story lines 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm, firmware_start
from cbit.owner import secret as secrets
from cbit.spec import firmware_table
from cbit.spec.address import MIB, Gpa, Gva
from cbit.spec.secret_table import DISK_PASSPHRASE

RAM_SIZE: Final = 2 * MIB
RAM_BASE: Final = Gpa(0x800000)  #: where OVMF builds keep their SEV pages
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
        vcpu: its virtual CPU.
        asid: the ASID it runs under.
        secret: the bytes that nobody else should read.
        secret_gpa: where they are.
        sev: its firmware context, with SEV.
        courier: what the hypervisor carried for it.
    """

    vm: Vm
    vcpu: Vcpu
    asid: int
    secret: bytes
    secret_gpa: Gpa
    sev: SevGuest | None
    courier: Courier

    def use_secret(self) -> bytes:
        """Let the guest load its secret, as its own code would: paging is off, so data is private."""
        with self.vcpu.run() as view:
            return view.read(Gva(self.secret_gpa), len(self.secret))


Tamper = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A guest to be started: who owns it, what for, and what a malicious host changes.

    Attributes:
        tenant: the owner.
        secret: what the guest needs.
        secret_gpa: where the owner wants it, if the image does not announce a place.
        entropy: the owner's randomness.
        change_image: applied by the host to the image that it loads.
        change_policy: applied by the host to the policy that it launches with.
    """

    tenant: Tenant
    secret: bytes
    secret_gpa: Gpa
    entropy: Entropy
    change_image: Tamper = bytes
    change_policy: int = 0

    def place(self) -> Gpa:
        """Where the secret goes: the image's own secret area, else where the owner says."""
        area = firmware_table.parse(self.tenant.image).secret_area
        return Gpa(area.base) if area else self.secret_gpa


def start(host: Host, protection: Protection, arrival: Arrival, courier: Courier) -> Victim:
    """Start the guest as its protection wants it; if that fails, nothing of it is left on the host.

    Raises:
        FirmwareError, BadMeasurement, Untrusted: with SEV, the secure processor or the owner refuses;
            ``courier`` has what the host saw until then.
        NoAsid, OutOfMemory, NoSuchMemory: the host or the guest has no room for it.
    """
    vm = Vm(host, protection)
    try:
        image = arrival.change_image(arrival.tenant.image)
        vm.load_firmware(image)
        vm.add_memory(RAM_BASE, RAM_SIZE)
        place = arrival.place()
        plaintext = secrets.table_of([(DISK_PASSPHRASE, arrival.secret)])
        vm.spa(place, len(plaintext))  # is there memory?  Better asked now than after the launch
        if protection is Protection.SEV:
            sev = _launch(vm, arrival, courier, firmware_start(image), len(image))
        else:
            # Nothing proves what was launched: the owner has to hand the secret over.
            vm.load(place, courier.carry("the secret, in the clear", plaintext))
            sev = None
        return Victim(vm, Vcpu(vm), vm.asid, arrival.secret, Gpa(place + DATA_AT), sev, courier)
    except BaseException:
        vm.destroy()
        raise


def _launch(vm: Vm, arrival: Arrival, courier: Courier, image_at: Gpa, image_size: int) -> SevGuest:
    """Carry the owner's session, the receipt and the sealed secret; end the guest if anything is refused."""
    session = arrival.tenant.open_session(courier.carry("chain", vm.host.export_chain()), arrival.entropy)
    assert session.session is not None
    guest = SevGuest.start(
        vm,
        policy=arrival.tenant.policy ^ arrival.change_policy,
        godh=courier.carry("godh.cert", bytes(session.session.godh)),
        session=courier.carry("launch_blob.bin", bytes(session.session.blob)),
    )
    try:
        guest.update(image_at, image_size)
        receipt = guest.measure()
        courier.carry("launch receipt", receipt.to_json().encode())
        trusted = arrival.tenant.check(session, receipt)
        plaintext = secrets.table_of([(DISK_PASSPHRASE, arrival.secret)])
        header, payload = trusted.seal(plaintext, entropy=arrival.entropy)
        guest.inject(
            arrival.place(),
            courier.carry("packaged_secret_header.bin", header),
            courier.carry("packaged_secret.bin", payload),
        )
        guest.finish()
    except BaseException:
        guest.release()
        raise
    return guest
