"""A Linux guest and its owner, introduced to each other: the owner's session, the hypervisor's launch.

    exported chain → session, launch with it          only for a platform that verifies
    launch receipt → trusted, or BadMeasurement       only for a launch of exactly the owner's files

Paper: sev-crypto.md §7.2, §9, §10; DESIGN.md story lines 4 and 6.
"""

from __future__ import annotations

from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.linux_guest import LinuxGuest, Session
from cbit.owner.measure import DirectLaunch
from cbit.owner.session import Measuring, Trusted
from cbit.spec.linux_boot import BootImage


def launch(
    host: Host, image: BootImage, tenant: Tenant, *, entropy: Entropy, share_with: SevGuest | None = None
) -> tuple[Measuring, LinuxGuest]:
    """Let the owner open a session, and the hypervisor launch an image with it.

    Args:
        host: where.
        image: what the hypervisor loads, which the owner does not see.
        tenant: the owner.
        entropy: the owner's.
        share_with: a guest of the same owner whose memory key is shared.

    Returns:
        The owner's session, and the guest: measured, and not yet trusted by anybody.

    Raises:
        Untrusted: the owner does not trust the platform, with every reason.
        FirmwareError, OutOfMemory, NoAsid: it cannot be launched here.
    """
    measuring = tenant.open_session(host.export_chain(), entropy)
    made = measuring.session
    assert made is not None, "open_session makes one"
    words = Session(tenant.policy, bytes(made.godh), bytes(made.blob), share_with)
    return measuring, LinuxGuest(host, image, protection=Protection.SEV, session=words)


def check(tenant: Tenant, measuring: Measuring, guest: LinuxGuest, own: DirectLaunch) -> Trusted:
    """Let the owner compare a guest's receipt with what its own copies measure.

    Raises:
        BadMeasurement: something else was launched.
    """
    assert guest.receipt is not None, "a launch has a receipt"
    return tenant.check(measuring, guest.receipt, own.expectation())
