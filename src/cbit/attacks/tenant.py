"""The guest owner as a scenario meets it: another computer, bytes in and bytes out.

    chain → session (only for a chain that verifies)
    receipt → sealed secret (only for a receipt that checks out)

Paper: sev-crypto.md §7.2, §9, §10; DESIGN.md story lines 4 and 6.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cbit.crypto.entropy import Entropy
from cbit.machine.state_folder import StateFolder
from cbit.owner.measure import Expectation, Input, Mode, expect_sev, sev, snp
from cbit.owner.session import Measuring, Session, Trusted
from cbit.owner.verify.chain import Chain, assemble
from cbit.owner.verify.files import pieces_of
from cbit.owner.verify.verdict import VerifiedPlatform, verify_chain
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.errors import BadMeasurement
from cbit.spec.firmware_table import Area
from cbit.spec.receipt import LaunchReceipt


def expect_memory(contents: bytes) -> Expectation:
    """Compute what a plain SEV launch of bare memory measures: of what needs no firmware to start.

    Paper: launch-inputs.md §1 (the digest covers contents and nothing else).
    """
    digest = sev.digest(contents, table=None, vmsas=())
    return Expectation(Mode.SEV, digest, (Input.of("memory", "", contents),), Area(0, 0))


@dataclass(frozen=True, slots=True)
class Tenant:
    """What the owner knows and wants.

    Attributes:
        image: the owner's own copy of the firmware image.
        policy: the policy word it asks for.
        vendor_certs: the files the vendor publishes: the signed CEK, and ASK ‖ ARK.
        trust: a root to trust besides AMD's: the emulated one, explicitly.
        expected: what a launch has to measure; None for that of the image, as a firmware image.
        layout: guest address and contents of each part of the image, for an owner who wants a digest that
            covers addresses; empty for one who trusts the secure processor's.
    """

    image: bytes
    policy: int
    vendor_certs: tuple[bytes, ...]
    trust: AmdCert
    expected: Expectation | None = None
    layout: tuple[tuple[int, bytes], ...] = ()

    @classmethod
    def beside(cls, state: StateFolder, *, policy: int, image: bytes = b"") -> Tenant:
        """Make an owner who has what the vendor published of a machine, and trusts its emulated root."""
        published = (state.read("certs/cek.cert"), state.read("certs/ask_ark.cert"))
        return cls(image, policy, published, AmdCert.parse(state.read("certs/ark.cert")))

    def chain(self, exported: bytes) -> Chain:
        """Put the platform's exported chain and the vendor's certificates together."""
        published = (piece for blob in self.vendor_certs for piece in pieces_of(blob, source="vendor"))
        return assemble([*pieces_of(exported, source="platform"), *published])

    def verify(self, exported: bytes) -> VerifiedPlatform:
        """Verify the platform.

        Raises:
            Untrusted: with every reason.
        """
        return verify_chain(self.chain(exported), trust=[self.trust])

    def open_session(self, exported: bytes, entropy: Entropy) -> Measuring:
        """Verify the platform and make a session for it; raises as ``verify``."""
        return Session.open(self.verify(exported), policy=self.policy, entropy=entropy)

    def check_addresses(self, digest: bytes) -> None:
        """Compare a digest that covers addresses with what should lie where.

        Raises:
            BadMeasurement: something lies where it should not.
        """
        chain = snp.Chain()
        for at, data in sorted(self.layout):
            chain.add_data(at, data)
        if not hmac.compare_digest(digest, chain.digest):
            raise BadMeasurement(
                "a digest that covers addresses is not the owner's: something lies where it should not"
            )

    def check(
        self, session: Measuring, receipt: LaunchReceipt, expected: Expectation | None = None
    ) -> Trusted:
        """Compare the receipt with what the owner's own copy measures.

        Args:
            session: the owner's.
            receipt: the platform's.
            expected: what was to be launched, if it is neither what this owner expects nor its image.

        Raises:
            BadMeasurement: something else was launched.
        """
        return session.check(
            receipt.blob,
            expected or self.expected or expect_sev(self.image),
            api=receipt.api,
            build=receipt.build,
            reported_policy=receipt.policy,
        )
