"""The broker's rules: who gets a session, who gets a secret, and what is written down about it.

Every method takes bytes that came over the wire and trusts nothing in them.  Evidence that does not hold is
``Refused`` with every reason, and recorded.

Paper: sev-crypto.md §7.2 (session), §9 (measurement), §10 (packet); launch-inputs.md §8, §9 (report).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cbit.crypto.entropy import Entropy, SystemEntropy
from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.owner.broker import evidence, packet
from cbit.owner.broker.audit import Event, Record
from cbit.owner.broker.evidence import Reported
from cbit.owner.broker.store import AlreadyReleased, Kind, Launch, Policy, Store, Withdrawn, check_waiting
from cbit.owner.errors import Missing, Untrusted
from cbit.owner.receipt import SessionRecord
from cbit.owner.secret import raw
from cbit.owner.session import Measuring, Session
from cbit.spec.errors import BadMeasurement, BadSignature, CbitError, InvalidCertificate

SESSION_LIFETIME: Final = timedelta(hours=1)  #: from a session to its receipt
CHALLENGE_LIFETIME: Final = timedelta(minutes=5)  #: from a challenge to its report
MOST_WAITING: Final = 10_000

#: Evidence that was read and does not hold, or does not suffice.
NOT_HELD: Final = (Untrusted, Missing, BadMeasurement, BadSignature, InvalidCertificate)


class Refused(CbitError):
    """The evidence does not hold; nothing was released.

    Attributes:
        reasons: all that were found.
        record: number of the record that says so.
    """

    def __init__(self, reasons: Iterable[str], *, record: int) -> None:
        self.reasons, self.record = tuple(reasons), record
        super().__init__("; ".join(self.reasons))


class Unknown(CbitError):
    """No policy or launch of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """What the host gets for LAUNCH_START: certificate, session blob and policy word."""

    launch: str
    godh: bytes
    blob: bytes
    policy: int
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What the guest's report must cover."""

    launch: str
    nonce: bytes
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class SevRelease:
    """A packet for LAUNCH_SECRET: header and ciphertext, bound to one measurement."""

    header: bytes
    data: bytes
    measure: bytes
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRelease:
    """A packet for the guest's own key."""

    packet: packet.GuestPacket
    record: Record


class Broker:
    """One owner's broker, over any ``Store``; may be called from any thread.

    Args:
        store: the database.
        clock: tells the moment, with its zone.
        entropy: where keys, nonces and names come from.
        most_waiting: how many launches may wait for their evidence at once.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime],
        entropy: Entropy | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._store: Final = store
        self._clock: Final = clock
        self._entropy: Final = entropy or SystemEntropy()
        self._most: Final = most_waiting

    def add_policy(self, policy: Policy) -> Record:
        """Take up a policy, after looking whether anything could ever fulfil it, and not everything does.

        Raises:
            BadWishes, WireError, InvalidCertificate, ValueError: the policy cannot be meant; says why.
        """
        evidence.check_policy(policy)
        details = {"kind": policy.kind.value, "digest": policy.digest}
        return self._store.add_policy(policy, self._event("policy added", policy.name, details=details))

    def remove_policy(self, name: str) -> Record:
        """Forget a policy and its secret.

        Raises:
            ValueError: there is none of that name.
        """
        return self._store.remove_policy(name, self._event("policy removed", name))

    def open_session(self, policy_name: str, chain: bytes) -> OpenedSession:
        """Make a session for a platform (SEV, SEV-ES).

        Args:
            policy_name: under which policy.
            chain: the platform's certificates, one blob (sev-crypto.md §4).

        Raises:
            Unknown: no such policy.
            Refused: the chain does not hold.
            WireError: the chain cannot be read.
            Occupied: too many launches wait.
        """
        policy = self._policy(policy_name, Kind.SEV)
        try:
            platform = evidence.platform(policy, chain)
        except NOT_HELD as error:
            raise self._refuse(error, policy_name) from None
        word = evidence.policy_word(policy)
        measuring = Session.open(platform, policy=word, entropy=self._entropy)
        if measuring.session is None or measuring.record is None:
            raise AssertionError("Session.open() gives both")
        launch = self._launch(
            policy,
            SESSION_LIFETIME,
            keys=measuring.keys,
            record=measuring.record.to_json(measuring.keys.tik),
        )
        details = {
            "platform": platform.root,
            "pdh": measuring.record.pdh_sha256,
            "policy word": f"{word:#x}",
            "policy digest": policy.digest,
        }
        record = self._open(launch, "session", details)
        godh, blob = bytes(measuring.session.godh), bytes(measuring.session.blob)
        return OpenedSession(launch=launch.id, godh=godh, blob=blob, policy=word, record=record)

    def open_challenge(self, policy_name: str) -> Challenge:
        """Give a guest the nonce that its report must cover (SNP).

        Raises:
            Unknown: no such policy.
            Occupied: too many launches wait.
        """
        policy = self._policy(policy_name, Kind.SNP)
        launch = self._launch(policy, CHALLENGE_LIFETIME, nonce=self._entropy.draw(packet.NONCE_SIZE))
        record = self._open(launch, "challenge", {"policy digest": policy.digest})
        return Challenge(launch=launch.id, nonce=launch.nonce, record=record)

    def take_receipt(self, launch_id: str, reported: Reported) -> SevRelease:
        """Judge what the platform reports about a launch, and release the secret for it (SEV, SEV-ES).

        Raises:
            Unknown: no such launch.
            Refused: the launch is not the one that is wanted.
            AlreadyReleased: it has had its secret.
        """
        launch, policy = self._waiting(launch_id, Kind.SEV)
        if launch.keys is None:
            raise AssertionError("a waiting session has its keys")
        keys = TransportKeys.parse(launch.keys.material())
        measuring = Measuring(
            keys, policy=evidence.policy_word(policy), record=SessionRecord.from_json(launch.record, keys.tik)
        )
        try:
            trusted = evidence.judge_launch(policy, measuring, reported)
        except NOT_HELD as error:
            raise self._refuse(error, policy.name, launch) from None
        header, data = trusted.seal(raw(policy.secret.material()), entropy=self._entropy)
        details = {"identity": f"sev {launch.id}", "measurement": trusted.measure.hex()}
        record = self._release(launch, policy, details)
        return SevRelease(header=header, data=data, measure=trusted.measure, record=record)

    def take_report(
        self, launch_id: str, *, report: bytes, certificates: bytes, public_key: bytes
    ) -> SnpRelease:
        """Judge a guest's report, and release the secret to the key that it covers (SNP).

        MODEL CHOICE: REPORT_ID alone tells one launch from another.  The dossier says where it stands, not
        how it is made; with CHIP_ID beside it, a host could mask that the second time and ask twice.

        Args:
            launch_id: the challenge.
            report: 0x4A0 bytes.
            certificates: the leaf, and what else of its chain the guest has: PEM, DER or a host's table.
            public_key: the guest's, DER.

        Raises:
            Unknown: no such launch.
            Refused: the guest is not the one that is wanted.
            AlreadyReleased: it has had its secret, under this challenge or another.
            WireError: something cannot be read.
        """
        launch, policy = self._waiting(launch_id, Kind.SNP)
        guest = packet.read_public_key(public_key)
        bound = packet.report_data(launch.nonce, public_key)
        try:
            verified = evidence.judge_report(
                policy, report, certificates=certificates, report_data=bound, now=self._clock()
            )
        except NOT_HELD as error:
            raise self._refuse(error, policy.name, launch) from None
        sealed = packet.seal(policy.secret, guest=guest, report=report, entropy=self._entropy)
        details = {
            "identity": f"snp {verified.report.report_id.hex()}",
            "measurement": verified.report.measurement.hex(),
            "chip": verified.report.chip_id.hex(),
            "root": verified.endorser.root,
        }
        return SnpRelease(packet=sealed, record=self._release(launch, policy, details))

    def _policy(self, name: str, kind: Kind) -> Policy:
        policy = self._store.policy(name)
        if policy is None or policy.kind is not kind:
            raise Unknown(f"there is no policy {name!r} for {kind}")
        return policy

    def _launch(
        self,
        policy: Policy,
        lifetime: timedelta,
        *,
        keys: TransportKeys | None = None,
        record: str = "",
        nonce: bytes = b"",
    ) -> Launch:
        return Launch(
            id=self._entropy.draw(16).hex(),
            policy=policy.name,
            policy_digest=policy.digest,
            kind=policy.kind,
            expires=self._clock() + lifetime,
            keys=None if keys is None else Key(keys.material()),
            record=record,
            nonce=nonce,
        )

    def _open(self, launch: Launch, what: str, details: dict[str, str]) -> Record:
        event = self._event(what, launch.policy, launch=launch, details=details)
        return self._store.open_launch(launch, event, now=self._clock(), most=self._most)

    def _waiting(self, name: str, kind: Kind) -> tuple[Launch, Policy]:
        launch = self._store.launch(name)
        if launch is None or launch.kind is not kind:
            raise Unknown(f"there is no launch {name!r} that waits for evidence of {kind}")
        if launch.released is not None:
            again = AlreadyReleased(f"launch {name} has had its secret (record {launch.released})")
            self._refuse(again, launch.policy, launch)
            raise again
        policy = self._store.policy(launch.policy)
        try:
            check_waiting(launch, policy, self._clock())
        except Withdrawn as error:
            raise self._refuse(error, launch.policy, launch) from None
        if policy is None:
            raise AssertionError("check_waiting() insists on a policy")
        return launch, policy

    def _release(self, launch: Launch, policy: Policy, details: dict[str, str]) -> Record:
        event = self._event("release", launch.policy, launch=launch, details=details)
        try:
            return self._store.release(
                launch, event, policy=policy, identity=details["identity"], clock=self._clock
            )
        except Withdrawn as error:  # between the judgement and the release
            raise self._refuse(error, launch.policy, launch) from None
        except AlreadyReleased as error:
            self._refuse(error, launch.policy, launch)
            raise

    def _refuse(self, error: Exception, policy: str, launch: Launch | None = None) -> Refused:
        reasons = error.reasons if isinstance(error, Untrusted) else (str(error),)
        details = {str(number): reason for number, reason in enumerate(reasons, 1)}
        record = self._store.note(self._event("refusal", policy, launch=launch, details=details))
        return Refused(reasons, record=record.number)

    def _event(
        self, what: str, policy: str, *, launch: Launch | None = None, details: dict[str, str] | None = None
    ) -> Event:
        time = self._clock().isoformat(timespec="microseconds")
        name = "" if launch is None else launch.id
        return Event(time=time, what=what, policy=policy, launch=name, details=details or {})
