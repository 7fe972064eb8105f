"""What a broker needs of a database, and nothing more: so that a server's database can take SQLite's place.

Every change takes the event that is recorded with it: an implementation makes both in one transaction, and
returns only when they are on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from cbit.crypto.key import Key
from cbit.owner.broker.audit import Event, Record
from cbit.spec.errors import CbitError

File = tuple[str, bytes]  #: name and content


class AlreadyReleased(CbitError):
    """This launch has had its secret; another launch may ask anew."""


class Withdrawn(CbitError):
    """This launch gets nothing any more: its policy was changed or removed, or its time is over."""


class Occupied(CbitError):
    """There is no room for what was asked: too many launches wait for their evidence."""


class StoreUnavailable(CbitError):
    """The database cannot be read or written now: nothing was changed, and the same may be asked again.

    Attributes:
        cause: what the database says, in its own words.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            "the database cannot be read or written, so that nothing was released: ask again later"
        )


class Kind(StrEnum):
    """What sort of evidence a policy asks for."""

    SEV = "sev"  #: SEV and SEV-ES: a session, then a launch receipt
    SNP = "snp"  #: an attestation report of the guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which guests get which secret.

    Attributes:
        name: what hosts and guests ask for.
        kind: the sort of evidence.
        wishes: the TOML file of what it must say.
        secret: what is released; it is shown nowhere.
        certificates: files that complete chains (AMD's ASK and ARK); they add nothing to what is trusted.
        roots: files of roots that are trusted besides AMD's.
        crls: files of revocation lists (SNP).
    """

    name: str
    kind: Kind
    wishes: bytes
    secret: Key
    certificates: tuple[File, ...] = ()
    roots: tuple[File, ...] = ()
    crls: tuple[File, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over all of it but the secret: tells whether a policy is still the same."""
        whole = hashlib.sha256(f"{self.name}\n{self.kind}\n".encode())
        for group in ((("wishes", self.wishes),), self.certificates, self.roots, self.crls):
            whole.update(len(group).to_bytes(4, "little"))
            for name, data in group:
                whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch that may get a secret once it has shown what it is.

    Attributes:
        id: names it on the wire; nobody guesses one.
        policy: name of its policy.
        policy_digest: which form of that policy it was opened under.
        kind: the sort of evidence it must bring.
        expires: until when.
        keys: TEK and TIK (SEV); wiped when the secret is released.
        record: for whom the session was made (``SessionRecord``), as JSON.
        nonce: what the report must cover (SNP).
        released: number of the record of its release; None if it has had none.
    """

    id: str
    policy: str
    policy_digest: str
    kind: Kind
    expires: datetime
    keys: Key | None = None
    record: str = ""
    nonce: bytes = b""
    released: int | None = None


def check_waiting(launch: Launch, policy: Policy | None, now: datetime) -> None:
    """Check that a launch may still have the secret of its policy.

    Args:
        launch: which one.
        policy: the policy of that name, as it is kept now; None if there is none.
        now: the moment.

    Raises:
        Withdrawn: the policy is gone or another one, or the launch has expired.
    """
    if policy is None or policy.digest != launch.policy_digest:
        raise Withdrawn(f"the policy {launch.policy!r} was changed or removed since this launch began")
    if now >= launch.expires:
        raise Withdrawn(f"the launch was to bring its evidence before {launch.expires.isoformat()}")


class Store(Protocol):
    """The database of one owner; may be called from any thread."""

    def add_policy(self, policy: Policy, event: Event) -> Record:
        """Keep a policy.

        Raises:
            ValueError: there is one of that name.
        """
        ...

    def remove_policy(self, name: str, event: Event) -> Record:
        """Forget a policy and its secret; launches that wait for it get nothing.

        Raises:
            ValueError: there is none of that name.
        """
        ...

    def policy(self, name: str) -> Policy | None:
        """Return a policy."""
        ...

    def policies(self) -> list[Policy]:
        """Return all policies, by name."""
        ...

    def open_launch(self, launch: Launch, event: Event, *, now: datetime, most: int) -> Record:
        """Keep a launch, after forgetting those that have expired without a release.

        Raises:
            Occupied: ``most`` launches wait already.
        """
        ...

    def launch(self, name: str) -> Launch | None:
        """Return a launch."""
        ...

    def release(
        self,
        launch: Launch,
        event: Event,
        *,
        policy: Policy,
        identity: str,
        clock: Callable[[], datetime],
    ) -> Record:
        """Mark a launch as released, wipe its keys, and record it: all of it or nothing.

        Between the judgement and this moment somebody else may have removed the policy, or time may have run
        out.  So the transaction looks again (``check_waiting``), at what the database holds then.

        Args:
            launch: which one.
            event: what is recorded.
            policy: what it was judged under, with the secret that is about to leave.
            identity: what tells this launch from every other one, whatever it is called on the wire.
            clock: tells the moment; asked when nobody else can write any more.

        Raises:
            Withdrawn: the policy or its secret is no longer this one, or the launch has expired.
            AlreadyReleased: this launch, or another one of the same identity, has had its release, or the
                launch is not open.
        """
        ...

    def note(self, event: Event) -> Record:
        """Record something that changes nothing else."""
        ...

    def records(self) -> Iterator[Record]:
        """Return the whole log, oldest first."""
        ...
