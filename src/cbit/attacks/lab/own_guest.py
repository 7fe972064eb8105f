"""A guest of the adversary's own: an encryption oracle under a key that nobody else uses.

What it stores at a page of the adversary's choice lies there as ciphertext under the tweaks of that page,
which are the same for all guests.

Paper: memory-encryption.md §9.3 (constants are shared by all VMs); attacks.md A10 step 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa, Gva
from cbit.spec.policy import Policy

_WINDOW: Final = Gpa(1 << 30)


class OwnGuest:
    """Stores and loads at system pages of the host's choice, under its own key.

    Mutable.
    """

    def __init__(self, host: Host, *, sev: bool) -> None:
        self._host = host
        protection = Protection.SEV if sev else Protection.SME
        self._vm = Vm(host, protection)
        self._vm.add_memory(Gpa(0), PAGE)
        self._sev: SevGuest | None = None
        if sev:
            self._sev = SevGuest.start(self._vm, policy=int(Policy.NODBG))
            self._sev.update(Gpa(0), PAGE)
            self._sev.measure()
            self._sev.finish()
        self._vcpu = Vcpu(self._vm)
        self._mapped: dict[int, Gpa] = {}

    def _window(self, spa: int) -> int:
        """Where the guest finds a system page; mapped at the first use."""
        page = spa & -PAGE
        if page not in self._mapped:
            gpa = Gpa(_WINDOW + PAGE * len(self._mapped))
            self._vm.tables.map(gpa, range(page, page + PAGE, PAGE), c=self._vm.c)
            self._mapped[page] = gpa
        return self._mapped[page] + spa % PAGE

    def store(self, spa: int, data: bytes) -> None:
        """Let the guest store at a system address, inside one page, through its nested tables."""
        where = self._window(spa)
        with self._vcpu.run() as view:
            view.write(Gva(where), data)

    def store_all(self, stores: Sequence[tuple[int, bytes]]) -> None:
        """Store at several places in one turn."""
        places = [(self._window(spa), data) for spa, data in stores]
        with self._vcpu.run() as view:
            for where, data in places:
                view.write(Gva(where), data)

    def load(self, spa: int, length: int) -> bytes:
        """Let the guest load from a system address."""
        where = self._window(spa)
        with self._vcpu.run() as view:
            return view.read(Gva(where), length)

    def end(self) -> None:
        """End it; its ASID and key are gone."""
        if self._sev is not None:
            self._sev.end()
        else:
            self._vm.destroy()
