"""One launch as three parties see it, step by step, so that a test can stop and look anywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attacks.stage import Scene
from cbit.attacks.tenant import Tenant
from cbit.attacks.victim import RAM_BASE, RAM_SIZE
from cbit.crypto.entropy import SeededEntropy
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm, firmware_start
from cbit.owner.session import Measuring
from cbit.spec import firmware_table
from cbit.spec.address import Gpa
from cbit.spec.receipt import LaunchReceipt


@dataclass
class Launch:
    """A launch whose receipt was taken.

    Attributes:
        host: the operator's machine.
        tenant: the owner, with its own copy of the image.
        session: the owner's open session.
        guest: the launched guest.
        receipt: what the platform says was launched.
    """

    host: Host
    tenant: Tenant
    session: Measuring
    guest: SevGuest
    receipt: LaunchReceipt


def a_launch(
    scene: Scene, image: bytes, *, loaded: bytes | None = None, policy: int = 1, kernel_hashes: bytes = b""
) -> Launch:
    """Launch ``image``, or ``loaded`` in its place, up to LAUNCH_MEASURE."""
    host, tenant = scene.new_host(), replace(scene.tenant, image=image, policy=policy)
    session = tenant.open_session(host.export_chain(), SeededEntropy("owner"))
    assert session.session is not None
    vm, loaded = Vm(host, Protection.SEV), image if loaded is None else loaded
    vm.load_firmware(loaded)
    vm.add_memory(RAM_BASE, RAM_SIZE)
    godh, blob = bytes(session.session.godh), bytes(session.session.blob)
    guest = SevGuest.start(vm, policy=policy, godh=godh, session=blob)
    guest.update(firmware_start(loaded), len(loaded))
    if kernel_hashes:
        area = firmware_table.parse(loaded).hash_area
        vm.load(Gpa(area.base), kernel_hashes)
        guest.update(Gpa(area.base), len(kernel_hashes))
    return Launch(host, tenant, session, guest, guest.measure())
