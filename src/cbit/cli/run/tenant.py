"""The guest's owner, in the same process for convenience: own copies of the files, and nothing of the host's.

    exported chain → session          only for a platform that verifies
    launch receipt → sealed secret    only for a launch of exactly these files

Paper: sev-crypto.md §7.2, §9, §10; DESIGN.md story lines 4 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cbit.crypto.entropy import Entropy
from cbit.owner import secret
from cbit.owner.measure import DirectLaunch
from cbit.owner.session import Measuring, Session, Trusted
from cbit.owner.verify.chain import assemble
from cbit.owner.verify.files import pieces_of
from cbit.owner.verify.verdict import verify_chain
from cbit.spec import secret_table
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.secret_table import DISK_PASSPHRASE


@dataclass(frozen=True, slots=True)
class Owner:
    """What the owner knows and wants.

    Attributes:
        launch: its own copies of kernel, initrd and command line.
        policy: what the guest must be launched with.
        entropy: where its keys come from.
    """

    launch: DirectLaunch
    policy: int
    entropy: Entropy

    def open(self, exported: bytes, *, vendor_certs: tuple[bytes, ...], root: bytes) -> Measuring:
        """Verify a platform and make a session for it.

        Raises:
            Untrusted: with every reason.
        """
        published = (piece for blob in vendor_certs for piece in pieces_of(blob, source="vendor"))
        chain = assemble([*pieces_of(exported, source="platform"), *published])
        platform = verify_chain(chain, trust=[AmdCert.parse(root)])
        return Session.open(platform, policy=self.policy, entropy=self.entropy)

    def check(self, session: Measuring, receipt: LaunchReceipt) -> Trusted:
        """Compare a receipt with what the own copies measure.

        Raises:
            BadMeasurement: something else was launched.
        """
        return session.check(
            receipt.blob,
            self.launch.expectation(),
            api=receipt.api,
            build=receipt.build,
            reported_policy=receipt.policy,
        )

    def result(self, receipt: LaunchReceipt) -> dict[str, Any]:
        """Describe a launch that was checked."""
        return {
            "digest": self.launch.expectation().digest.hex(),
            "measure": receipt.measure.hex(),
            "nonce": receipt.mnonce.hex(),
            "policy": receipt.policy,
            "api": str(receipt.api),
            "build": receipt.build,
            "verdict": "trusted",
        }


def table_of(data: bytes) -> bytes:
    """Make the table of secrets that user space finds: a file that is one already, or a disk's passphrase.

    Raises:
        ValueError: empty, or larger than the firmware takes.
    """
    if data.startswith(secret_table.TABLE.bytes_le):
        secret_table.parse(data)
        return secret.raw(data)
    return secret.table_of([(DISK_PASSPHRASE, data)])
