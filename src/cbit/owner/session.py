"""From a verified platform to a sealed secret; each step is the only way to the next.

    Session.open(platform) -> Measuring ── check(measurement) ──> Trusted ── seal(secret) ──> packet

Paper: sev-crypto.md §7.2 (owner's procedure), §9 (measurement), §10 (packet).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Final, Self

from cbit.crypto import ec, packet, sev_cert
from cbit.crypto.entropy import Entropy, SystemEntropy
from cbit.crypto.measurement import measurement
from cbit.crypto.session import TransportKeys, wrap
from cbit.owner.errors import Untrusted
from cbit.owner.measure import Expectation
from cbit.owner.receipt import CheckedReceipt, SessionRecord
from cbit.owner.secret import check_plaintext
from cbit.owner.validate.launch import Minimum, validate_launch
from cbit.owner.verify.verdict import UnverifiedPlatform, VerifiedPlatform
from cbit.spec import session as wire
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.errors import BadMeasurement
from cbit.spec.firmware_table import Area
from cbit.spec.policy import ApiVersion, GuestPolicy

_CHECKED: Final = object()


@dataclass(frozen=True, slots=True)
class Session:
    """What the hypervisor carries to LAUNCH_START: the owner's certificate, and keys that it cannot read."""

    godh: SevCert
    blob: wire.Session

    @classmethod
    def open(
        cls, platform: VerifiedPlatform | UnverifiedPlatform, *, policy: int, entropy: Entropy | None = None
    ) -> Measuring:
        """Make fresh keys for one launch on one platform.

        Args:
            platform: whose chain was verified.
            policy: the policy word that the guest must be launched with.
            entropy: where keys come from; the operating system unless a test says otherwise.

        Raises:
            WireError: the policy sets reserved bits.
        """
        source = entropy or SystemEntropy()
        word = int(GuestPolicy.parse(policy))
        keys = TransportKeys.random(source)
        session = cls.make(
            platform.pdh,
            own=ec.random_key(source),
            keys=keys,
            policy=word,
            nonce=source.draw(16),
            wrap_iv=source.draw(16),
        )
        record = SessionRecord(
            policy=word,
            pdh_sha256=hashlib.sha256(bytes(platform.pdh)).hexdigest(),
            root=platform.root,
            simulated=platform.simulated,
            verified=isinstance(platform, VerifiedPlatform),
        )
        return Measuring(keys, policy=word, session=session, record=record)

    @classmethod
    def make(
        cls,
        pdh: SevCert,
        *,
        own: ec.PrivateKey,
        keys: TransportKeys,
        policy: int,
        nonce: bytes,
        wrap_iv: bytes,
    ) -> Self:
        """Do the arithmetic of §7.2 with every random value given.

        The owner's certificate carries version 0.0 and no signature: no firmware looks at them (§2, §2.5).
        """
        godh = sev_cert.build(
            usage=Usage.PDH, algo=Algo.ECDH_SHA256, key=own.public_key(), api=ApiVersion(0, 0)
        )
        z = ec.shared_secret(own, sev_cert.public_key(pdh))
        return cls(godh, wrap(keys, z=z, policy=policy, nonce=nonce, wrap_iv=wrap_iv))


class Measuring:
    """An open session: waits for the measurement of its launch.

    Attributes:
        keys: TEK and TIK; they stay with the owner.
        policy: the owner's policy word.
        session: what goes to the hypervisor; None if the session was taken up again from its keys.
        record: for whom it was made; None if that was not kept.
    """

    __slots__ = ("keys", "policy", "record", "session")

    def __init__(
        self,
        keys: TransportKeys,
        *,
        policy: int,
        session: Session | None = None,
        record: SessionRecord | None = None,
    ) -> None:
        self.keys: Final = keys
        self.policy: Final = int(GuestPolicy.parse(policy))
        self.session: Final = session
        self.record: Final = record
        if record is not None and record.policy != self.policy:
            raise Untrusted(
                [f"the session was opened for policy {record.policy:#x}, not for {self.policy:#x}"]
            )

    def check(
        self,
        blob: wire.MeasureBlob,
        expectation: Expectation,
        *,
        api: ApiVersion,
        build: int,
        reported_policy: int | None = None,
        minimum: Minimum | None = None,
    ) -> Trusted:
        """Decide whether the guest was launched from the owner's image under the owner's policy.

        Args:
            blob: MEASURE and MNONCE, as LAUNCH_MEASURE gave them.
            expectation: what the launch must measure.
            api: the platform's API version, as it reports it; the measurement covers it.
            build: likewise its build.
            reported_policy: the policy that the platform reports; compared and otherwise unused.
            minimum: the oldest firmware that is good enough.

        Raises:
            BadMeasurement: the measurement does not match; says what the platform reports differently.
            Untrusted: it matches, and the firmware is older than the owner or the policy allows.
            NotModelled: firmware of the legacy measurement.
        """
        violations = validate_launch(
            api=api,
            build=build,
            policy=self.policy,
            reported_policy=reported_policy,
            minimum=minimum or Minimum(),
        )
        receipt = CheckedReceipt(
            expectation=expectation,
            measure=blob.measure,
            mnonce=blob.mnonce,
            api=api,
            build=build,
            policy=self.policy,
            platform=self.record.root if self.record else "",
            simulated=self.record.simulated if self.record else False,
            verified=self.record.verified if self.record else None,
        )
        if not self._matches(receipt):
            raise BadMeasurement("; ".join((self._why(receipt, reported_policy), *violations)))
        if violations:
            raise Untrusted(violations)
        return Trusted(self.keys, receipt.measure, receipt=receipt, made_by=_CHECKED)

    def check_again(self, receipt: CheckedReceipt) -> Trusted:
        """Recompute a receipt that was checked before, trusting nothing that it says about itself.

        Raises:
            BadMeasurement: it does not match these keys.
            Untrusted: its policy is not this session's, or the policy asks for newer firmware.
        """
        expectation = receipt.expectation
        blob = wire.MeasureBlob(measure=receipt.measure, mnonce=receipt.mnonce)
        trusted = self.check(
            blob, expectation, api=receipt.api, build=receipt.build, reported_policy=receipt.policy
        )
        return Trusted(self.keys, trusted.measure, receipt=receipt, made_by=_CHECKED)

    def dangerously_trust(self, measure: bytes) -> Trusted:
        """Take a measurement unchecked, for the lab; what is sealed for it goes to whatever was launched.

        Raises:
            ValueError: not 32 bytes.
        """
        if len(measure) != 32:
            raise ValueError(f"a measurement has 32 bytes, not {len(measure)}")
        return Trusted(self.keys, measure, receipt=None, made_by=_CHECKED)

    def _matches(self, receipt: CheckedReceipt) -> bool:
        expected = measurement(
            self.keys.tik,
            api=receipt.api,
            build=receipt.build,
            policy=receipt.policy,
            digest=receipt.expectation.digest,
            mnonce=receipt.mnonce,
        )
        return hmac.compare_digest(expected, receipt.measure)

    def _why(self, receipt: CheckedReceipt, reported_policy: int | None) -> str:
        if reported_policy is not None and self._matches(replace(receipt, policy=reported_policy)):
            return f"this image was launched under policy {reported_policy:#x}, not under {self.policy:#x}"
        return (
            "the measurement does not match: another image, policy, firmware version or build was measured, "
            "or another session's keys were used"
        )


class Trusted:
    """A launch that was checked: the only thing that seals.

    Attributes:
        measure: the measurement that its packets are bound to.
        receipt: the evidence; None when it was dangerously trusted.
    """

    __slots__ = ("_keys", "measure", "receipt")

    def __init__(
        self, keys: TransportKeys, measure: bytes, *, receipt: CheckedReceipt | None, made_by: object
    ) -> None:
        if made_by is not _CHECKED:
            raise TypeError(
                "a Trusted launch comes from Measuring.check() only (or dangerously_trust(), in the lab)"
            )
        self._keys: Final = keys
        self.measure: Final = measure
        self.receipt: Final = receipt

    @property
    def secret_area(self) -> Area:
        """Where the image wants its secrets; size 0 if it does not say."""
        return self.receipt.expectation.secret_area if self.receipt else Area(0, 0)

    def seal(self, plaintext: bytes, *, entropy: Entropy | None = None) -> tuple[bytes, bytes]:
        """Seal a secret for this launch alone: (packet header, ciphertext).

        Args:
            plaintext: of ``secret.table_of`` or ``secret.raw``.
            entropy: where the IV comes from.  One TEK never uses an IV twice: each packet draws one.

        Raises:
            ValueError: not a multiple of 16 bytes, empty, or larger than the firmware or the image takes.
        """
        check_plaintext(plaintext, self.secret_area)
        header, data = packet.seal(
            self._keys,
            plaintext,
            context=wire.CONTEXT_SECRET,
            iv=(entropy or SystemEntropy()).draw(16),
            measure=self.measure,
        )
        return bytes(header), data
