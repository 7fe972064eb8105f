"""Scenes: a machine's folder, its tenant, and as many hosts and victims as a test wants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from cbit.attacks.adversaries import Stage
from cbit.attacks.tenant import Tenant
from cbit.attacks.victim import Arrival, Courier, start
from cbit.crypto.entropy import SeededEntropy
from cbit.guest import generated_firmware
from cbit.hypervisor.host import Host, Protection
from cbit.machine.state_folder import StateFolder
from cbit.spec.address import MIB, Gpa
from cbit.spec.policy import Policy
from cbit.testing.worlds import a_host, a_machine
from machine.worlds import state

SECRET = b"correct horse battery staple"


@dataclass
class Scene:
    state: StateFolder
    tenant: Tenant
    boots: itertools.count[int] = field(default_factory=itertools.count)

    def new_host(self) -> Host:
        return a_host(a_machine(self.state, seed=next(self.boots), memory_size=8 * MIB))

    def arrival(self, *, secret: bytes = SECRET, image: bytes | None = None) -> Arrival:
        tenant = self.tenant
        if image is not None:
            tenant = Tenant(image, tenant.policy, tenant.vendor_certs, tenant.trust)
        return Arrival(tenant, secret, Gpa(0x810000), SeededEntropy(f"owner {next(self.boots)}"))

    def stage(self, protection: Protection, arrival: Arrival | None = None) -> Stage:
        host = self.new_host()
        return Stage(host, protection, start(host, protection, arrival or self.arrival(), Courier()))


def a_scene(folder: Path, profile: str) -> Scene:
    opened = state(folder, profile)
    tenant = Tenant.beside(opened, policy=int(Policy.NODBG), image=generated_firmware.generate())
    return Scene(opened, tenant)
