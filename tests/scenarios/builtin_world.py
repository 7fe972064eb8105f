"""The built-in guest on a host: launched, with the secrets that its owner injected, ready to run."""

from __future__ import annotations

from cbit.attacks.victim import secret_table
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import IMAGE, IMAGE_SIZE, MEMORY, MEMORY_SIZE, SEALED, SECRET, reset_state
from cbit.guest.builtin.sealed import seal
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.small_guest import SmallGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa
from cbit.spec.certificate import CERT_SIZE
from cbit.testing.guests import OwnedGuest, a_session

KEY = bytes(range(0x40, 0x50))
PASSPHRASE = b"correct horse battery staple"
SECRETS = secret_table(PASSPHRASE, Key(KEY))


class BuiltIn:
    """One built-in guest, and what its end takes.

    Attributes:
        vm: its memory.
        sev: its firmware context, with SEV.
        guest: it.
    """

    def __init__(
        self, host: Host, protection: Protection, *, secrets: bytes = SECRETS, policy: int = 0
    ) -> None:
        self.vm = Vm(host, protection)
        self.vm.load_firmware(image())
        self.vm.add_memory(MEMORY, MEMORY_SIZE)
        self.sev: SevGuest | None = None
        if protection is Protection.SEV:
            self.sev = self._launch(host, secrets, policy)
        elif secrets:
            self.vm.load(SECRET, secrets)
        self.guest = SmallGuest(self.vm, reset_state())

    def _launch(self, host: Host, secrets: bytes, policy: int) -> SevGuest:
        session, keys = a_session(host.export_chain()[:CERT_SIZE], policy=policy)
        sev = SevGuest.start(self.vm, policy=policy, godh=bytes(session.godh), session=bytes(session.blob))
        sev.update(IMAGE, IMAGE_SIZE)
        owned = OwnedGuest(sev, keys, image(), sev.measure())
        if secrets:
            sev.inject(SECRET, *owned.seal(secrets))
        sev.finish()
        return sev

    def deliver(self, text: bytes, *, key: bytes = KEY, message: bytes | None = None) -> None:
        """Put a message into the shared page."""
        sealed = message if message is not None else seal(Key(key), text, entropy=SeededEntropy("a letter"))
        self.vm.load(SEALED, sealed)

    def cells(self, gpa: Gpa, length: int = PAGE) -> bytes:
        """DRAM, after a WBINVD."""
        self.vm.host.flush_caches()
        return self.vm.host.machine.probe.read(self.vm.spa(gpa, length), length)

    def end(self) -> None:
        if self.sev is not None:
            self.sev.end()
        else:
            self.vm.destroy()
