"""What the owner's figures are measured on: a firmware image, a made-up SNP chain, a broker that serves."""

from __future__ import annotations

import base64
import http.client
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from cbit.crypto import ec
from cbit.crypto.entropy import SystemEntropy
from cbit.crypto.key import Key
from cbit.owner.broker import Broker, Kind, Policy
from cbit.owner.broker.audit import Event
from cbit.owner.broker.packet import public_bytes, report_data
from cbit.owner.broker.server import Server
from cbit.owner.broker.sqlite import SqliteStore
from cbit.owner.broker.tls import CERTIFICATE, client_context, make_certificate, server_context
from cbit.owner.verify.snp_chain import (
    Endorser,
    TrustedRoot,
    assemble_snp,
    certificates_of,
    verify_snp_chain,
)
from cbit.spec import firmware_table, sev_metadata
from cbit.spec.firmware_table import AP_RESET, HASH_TABLE, SEV_METADATA, SEV_SECRET
from cbit.spec.sev_metadata import MetadataSection, SectionType
from cbit.spec.snp_report import SIGNED_SIZE, PlatformInfo, SnpReport

_ARC: Final = "1.3.6.1.4.1.3704.1."
_TCB: Final = bytes((4, 0, 0, 0, 0, 0, 24, 219))
_CHIP: Final = bytes(range(64))
_MEASUREMENT: Final = b"M" * 48


def firmware(size: int) -> bytes:
    """Make an image of random bytes that announces what an AmdSev build does (launch-inputs.md §7.3)."""
    sections = sev_metadata.build(
        tuple(
            MetadataSection(base=base, size=length, kind=SectionType(kind))
            for base, length, kind in (
                (0x800000, 0x9000, 1),
                (0x80D000, 0x1000, 2),
                (0x80E000, 0x1000, 3),
                (0x80F000, 0x1000, 4),
                (0x810000, 0x1000, 0x10),
            )
        )
    )

    def words(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in numbers)

    entries: dict[UUID, bytes] = {
        AP_RESET: words(0x0080B004),
        SEV_SECRET: words(0x810000, 0xC00),
        HASH_TABLE: words(0x810C00, 0x400),
        SEV_METADATA: words(0),
    }
    entries[SEV_METADATA] = words(len(sections) + len(firmware_table.build(entries)) + 32)
    tail = sections + firmware_table.build(entries) + bytes(16) + b"\xe9\xfe\xff" + bytes(13)
    return os.urandom(size - len(tail)) + tail


@dataclass(frozen=True, slots=True)
class Snp:
    """A chip under a root that is nobody's: its verified chain, a report, and what makes more of them."""

    endorser: Endorser
    report: bytes
    key: ec.PrivateKey
    chain: bytes
    root: bytes

    def signed(self, **fields: Any) -> bytes:
        """Return a report with some fields changed."""
        raw = bytes(SnpReport.parse(self.report, canonical=False).replace(**fields))[:SIGNED_SIZE]
        return raw + bytes(ec.sign(self.key, raw, hashes.SHA384()))


def snp() -> Snp:
    """Make a chain and a report; one RSA key does for both authorities, since nobody is to trust them."""
    authority, own = rsa.generate_private_key(65537, 4096), ec.random_key(SystemEntropy())
    parts = {"1": 0, "3.1": _TCB[0], "3.2": _TCB[1], "3.3": _TCB[6], "3.8": _TCB[7]}
    parts |= dict.fromkeys(("3.4", "3.5", "3.6", "3.7"), 0)
    extensions = {f"{_ARC}{part}": _integer(number) for part, number in parts.items()}
    extensions |= {f"{_ARC}2": b"\x16\x05Milan", f"{_ARC}4": _CHIP}
    ders = [
        _issue("SEV-VCEK", "SEV-Milan", own.public_key(), authority, extensions),
        _issue("SEV-Milan", "ARK-Milan", authority.public_key(), authority, None),
        _issue("ARK-Milan", "ARK-Milan", authority.public_key(), authority, None),
    ]
    chain = assemble_snp(certificates_of(b"".join(ders), source="made up"))
    endorser = verify_snp_chain(chain, trust=[TrustedRoot(authority.public_key(), None)])
    fields: dict[str, Any] = dict.fromkeys(
        (
            *("guest_svn", "vmpl", "key_info", "launch_mit_vector", "current_mit_vector", "r", "s"),
            *("current_build", "current_minor", "committed_build", "committed_minor"),
        ),
        0,
    )
    fields |= dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), _TCB)
    fields |= dict.fromkeys(("family_id", "image_id"), bytes(16))
    fields |= dict.fromkeys(("id_key_digest", "author_key_digest"), bytes(48))
    blank = SnpReport(
        **fields,
        version=3,
        policy=0x30000,
        platform_info=PlatformInfo.ECC,
        report_data=bytes(64),
        measurement=_MEASUREMENT,
        host_data=bytes(32),
        report_id=b"R" * 32,
        report_id_ma=b"\xff" * 32,
        cpuid_family=0x19,
        cpuid_model=1,
        cpuid_stepping=1,
        chip_id=_CHIP,
        current_major=1,
        committed_major=1,
    )
    unsigned = Snp(endorser, bytes(blank), own, b"".join(ders), ders[2])
    return Snp(endorser, unsigned.signed(), own, unsigned.chain, unsigned.root)


def _integer(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes((2, len(body))) + body


def _issue(
    subject: str, issuer: str, key: Any, signer: rsa.RSAPrivateKey, extensions: dict[str, bytes] | None
) -> bytes:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if extensions is None:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
        )
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    made = builder.sign(signer, hashes.SHA384(), rsa_padding=pss)
    return made.public_bytes(serialization.Encoding.DER)


@contextmanager
def broker(launches: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Serve a broker whose guests have their reports ready: (release one, commit one row)."""
    world = snp()
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as name:
        folder = Path(name)
        now = datetime.now(UTC)
        make_certificate(folder, ["localhost"], now=now - timedelta(minutes=1), entropy=SystemEntropy())
        SqliteStore.create(folder / "broker.db", Event(time=now.isoformat(), what="created")).close()
        store = SqliteStore(folder / "broker.db")
        rules = Broker(store, clock=lambda: datetime.now(UTC), most_waiting=launches)
        rules.add_policy(
            Policy(
                name="bench",
                kind=Kind.SNP,
                wishes=f'measurement = "{_MEASUREMENT.hex()}"'.encode(),
                secret=Key(b"a secret of the bench"),
                roots=(("root.der", world.root),),
            )
        )
        requests = iter([_request(rules, world, number) for number in range(launches)])
        server = Server(("localhost", 0), rules, context=server_context(folder), log=lambda _: None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        client = http.client.HTTPSConnection(
            "localhost", server.server_port, context=client_context(folder / CERTIFICATE)
        )
        plain = _plain_database(folder / "plain.db")

        def release() -> None:
            client.request("POST", *next(requests))
            answer = client.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"the broker refused: {body.decode()}")

        def commit() -> None:
            plain.execute("INSERT INTO bench (line) VALUES (?)", ("x" * 400,))

        try:
            yield release, commit
        finally:
            client.close()
            server.shutdown()
            thread.join()
            server.server_close()
            store.close()
            plain.close()


def _request(rules: Broker, world: Snp, number: int) -> tuple[str, str]:
    challenge = rules.open_challenge("bench")
    guest = public_bytes(world.key.public_key())
    report = world.signed(
        report_data=report_data(challenge.nonce, guest), report_id=number.to_bytes(31, "big") + b"\x01"
    )
    parts = {"report": report, "certificates": world.chain, "public_key": guest}
    body = json.dumps({name: base64.b64encode(part).decode() for name, part in parts.items()})
    return f"/v1/launches/{challenge.launch}/report", body


def _plain_database(path: Path) -> sqlite3.Connection:
    plain = sqlite3.connect(path, isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL").fetchall()
    plain.execute("PRAGMA synchronous = FULL")
    plain.execute("CREATE TABLE bench (number INTEGER PRIMARY KEY, line TEXT)")
    return plain
