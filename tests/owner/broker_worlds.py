"""A broker with policies, and both kinds of launches that ask it for secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from cbit.crypto import ec, packet, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys, unwrap
from cbit.owner.broker import Broker, Kind, Policy
from cbit.owner.broker.audit import Event
from cbit.owner.broker.evidence import Reported
from cbit.owner.broker.packet import public_bytes, report_data
from cbit.owner.broker.rules import Challenge, OpenedSession, SevRelease, SnpRelease
from cbit.owner.broker.sqlite import SqliteStore
from cbit.spec.certificate import SevCert
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import CONTEXT_SECRET, PacketHeader, Session
from owner.snp_worlds import World, as_pem
from owner.worlds import a_launch, emulated, scalar

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
API = ApiVersion(0, 24)  # what the platform's exported CEK says
SECRET = b"correct horse battery staple, 64"
DIGEST = b"L" * 32
SEV_WISHES = f'measurement = "{DIGEST.hex()}"\n[policy]\nword = 1\n[minimum]\napi = "0.24"\n'
SNP_WISHES = f'measurement = "{(b"M" * 48).hex()}"\n[minimum.reported_tcb]\nsnp = 24\n'
CREATED = Event(time=NOW.isoformat(), what="created")


@cache
def world() -> World:
    return World()


@cache
def _pems() -> tuple[bytes, ...]:
    return tuple(as_pem(cert.raw).encode() for cert in world().certificates())


def leaf_pem() -> bytes:
    return _pems()[0]


def ca_pem() -> bytes:
    return b"".join(_pems()[1:])


def root_pem() -> bytes:
    return _pems()[2]


def sev_policy(name: str = "web", *, wishes: str = SEV_WISHES) -> Policy:
    chain = emulated().chain
    return Policy(
        name=name,
        kind=Kind.SEV,
        wishes=wishes.encode(),
        secret=Key(SECRET),
        certificates=(("ask.cert", chain.ask.raw), ("cek.cert", chain.cek.raw)),
        roots=(("ark.cert", chain.ark.raw),),
    )


def snp_policy(name: str = "db", *, wishes: str = SNP_WISHES, crls: tuple[bytes, ...] = ()) -> Policy:
    return Policy(
        name=name,
        kind=Kind.SNP,
        wishes=wishes.encode(),
        secret=Key(SECRET),
        certificates=(("ca.pem", ca_pem()),),
        roots=(("root.pem", root_pem()),),
        crls=tuple((f"{n}.crl", raw) for n, raw in enumerate(crls)),
    )


@dataclass
class Clock:
    """Time that stands still until a test moves it."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: int) -> None:
        self.now += timedelta(**time)


@dataclass
class Office:
    """A broker on a database of its own."""

    folder: Path
    step: Callable[[str], None] = lambda _: None
    most: int = 10_000
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        path = self.folder / "broker.db"
        if not path.exists():
            SqliteStore.create(path, CREATED).close()
        self.store = SqliteStore(path, step=self.step)
        self.broker = Broker(self.store, clock=self.clock, most_waiting=self.most)

    def with_policies(self) -> Office:
        self.broker.add_policy(sev_policy())
        self.broker.add_policy(snp_policy())
        return self


def exported() -> bytes:
    return emulated().exported()


def keys_of(session: OpenedSession) -> TransportKeys:
    """What the platform unwraps."""
    godh = SevCert.parse(session.godh)
    z = ec.shared_secret(scalar("pdh"), sev_cert.public_key(godh))
    return unwrap(Session.parse(session.blob), z=z, policy=session.policy)


def launched(session: OpenedSession, *, digest: bytes = DIGEST) -> LaunchReceipt:
    """What the platform reports after launching with a session."""
    return a_launch(keys_of(session), digest=digest, policy=session.policy, api=API)


def reported(session: OpenedSession, *, digest: bytes = DIGEST) -> Reported:
    return Reported.of_receipt(launched(session, digest=digest))


def opened(session: OpenedSession, release: SevRelease) -> bytes:
    """What LAUNCH_SECRET puts into the guest."""
    header = PacketHeader.parse(release.header)
    return packet.open_packet(
        keys_of(session),
        header,
        release.data,
        context=CONTEXT_SECRET,
        guest_len=len(release.data),
        measure=release.measure,
    )


def guest_key(seed: int = 7) -> ec.PrivateKey:
    return ec.random_key(SeededEntropy(seed))


def a_report(challenge: Challenge, key: ec.PrivateKey, **changes: object) -> bytes:
    """A guest's report that covers a challenge and a key."""
    data = report_data(challenge.nonce, public_bytes(key.public_key()))
    return world().report({"report_data": data, **changes})


def ask(
    office: Office, challenge: Challenge | None = None, report: bytes | None = None, **changes: object
) -> SnpRelease:
    """What a guest gets for its report; nothing said, it is the one that is wanted."""
    challenge = challenge or office.broker.open_challenge("db")
    key = guest_key()
    return office.broker.take_report(
        challenge.launch,
        report=a_report(challenge, key, **changes) if report is None else report,
        certificates=leaf_pem(),
        public_key=public_bytes(key.public_key()),
    )


def pem_of(key: ec.PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
