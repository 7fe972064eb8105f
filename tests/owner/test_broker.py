"""The broker's rules: who gets a secret, who does not and why, and that all of it is written down."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cbit.crypto.key import Key
from cbit.owner.broker import AlreadyReleased, Refused, verify_records
from cbit.owner.broker.audit import Record
from cbit.owner.broker.evidence import Reported
from cbit.owner.broker.packet import GuestPacket, public_bytes, read_public_key, report_data, unseal
from cbit.owner.broker.rules import Unknown
from cbit.owner.broker.sqlite import SqliteStore
from cbit.owner.broker.store import Occupied, Policy
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.errors import BadMeasurement, NotModelled, WireError
from cbit.spec.snp_report import CRL_GUID, VCEK_GUID, VLEK_GUID, SigningKey, build_cert_table
from owner.broker_worlds import (
    CREATED,
    DIGEST,
    SECRET,
    SEV_WISHES,
    SNP_WISHES,
    Office,
    a_report,
    ask,
    exported,
    guest_key,
    launched,
    opened,
    reported,
    sev_policy,
    snp_policy,
    world,
)
from owner.snp_worlds import World, crl
from owner.worlds import flipped


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path).with_policies()
    yield found
    found.store.close()


def last(office: Office) -> Record:
    found = verify_records(office.store.records())
    assert found is not None
    return found


# ---- SEV


def test_a_launch_that_is_wanted_gets_its_secret(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    release = office.broker.take_receipt(session.launch, reported(session))
    assert SECRET == opened(session, release)
    assert ("release", session.launch) == (last(office).event.what, last(office).event.launch)
    assert release.record == last(office)


def test_what_qemu_answers_will_do_in_place_of_a_receipt(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    launch = launched(session)
    value: dict[str, Any] = {
        "data": base64.b64encode(launch.measure + launch.mnonce).decode(),
        "api-major": 0,
        "api-minor": 24,
        "build-id": 3,
        "policy": 1,
    }
    with pytest.raises(WireError):
        Reported.of_qemu(value | {"build-id": 256})
    assert SECRET == opened(session, office.broker.take_receipt(session.launch, Reported.of_qemu(value)))


def test_a_launch_gets_its_secret_once(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    evidence = reported(session)
    office.broker.take_receipt(session.launch, evidence)
    with pytest.raises(AlreadyReleased, match=r"record \d+"):
        office.broker.take_receipt(session.launch, evidence)
    assert 1 == len(office.store.releases())
    kept = office.store.launch(session.launch)
    assert kept is not None
    assert kept.keys is None, "the keys are wiped with the release"


def test_every_bit_of_a_receipt_counts(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    good = launched(session)
    twins = {
        "does not match": [
            replace(good, measure=flipped(good.measure, 3)),
            replace(good, mnonce=flipped(good.mnonce, 77)),
            replace(good, build=good.build ^ 1),
        ],
        "policy": [replace(good, policy=good.policy ^ 4)],
        "PDH|CEK|PEK|OCA|does not verify": [
            *(replace(good, chain=flipped(good.chain, bit)) for bit in range(5, 8 * len(good.chain), 6007)),
            *(replace(good, chain=flipped(good.chain, 8 * (3 * CERT_SIZE + at))) for at in range(0x30)),
        ],
    }
    for reason, receipts in twins.items():
        for receipt in receipts:
            with pytest.raises(Refused, match=reason) as caught:
                office.broker.take_receipt(session.launch, Reported.of_receipt(receipt))
            assert caught.value.record == last(office).number
    assert {} == office.store.releases()
    assert office.broker.take_receipt(session.launch, Reported.of_receipt(good))


@pytest.mark.parametrize(
    ("digest", "wishes", "reason"),
    [
        (b"X" * 32, SEV_WISHES, "does not match"),
        (
            DIGEST,
            SEV_WISHES.replace("0.24", "0.25"),
            r"firmware API 0\.24 build 3, wanted at least API 0\.25",
        ),
        (DIGEST, "simulated = false\n" + SEV_WISHES, "simulated: true, wanted false"),
        (DIGEST, SEV_WISHES.replace("word = 1", "word = 1\nes = true"), "policy.es: false, wanted true"),
    ],
)
def test_a_launch_that_is_not_wanted_gets_nothing(
    office: Office, digest: bytes, wishes: str, reason: str
) -> None:
    office.broker.add_policy(sev_policy("other", wishes=wishes))
    session = office.broker.open_session("other", exported())
    with pytest.raises(Refused, match=reason):
        office.broker.take_receipt(session.launch, reported(session, digest=digest))
    assert {} == office.store.releases()
    assert "refusal" == last(office).event.what


def test_one_of_several_digests_will_do(office: Office) -> None:
    wishes = SEV_WISHES.replace(f'"{DIGEST.hex()}"', f'["{"00" * 32}", "{DIGEST.hex()}"]')
    office.broker.add_policy(sev_policy("several", wishes=wishes))
    session = office.broker.open_session("several", exported())
    assert SECRET == opened(session, office.broker.take_receipt(session.launch, reported(session)))


def test_no_session_for_a_platform_that_does_not_hold(office: Office) -> None:
    with pytest.raises(Refused, match="does not verify"):
        office.broker.open_session("web", flipped(exported(), 8 * 0x20))
    assert "refusal" == last(office).event.what
    with pytest.raises(WireError):
        office.broker.open_session("web", exported()[:-1])


def test_the_receipt_of_another_platform_is_refused(office: Office, vectors: Path) -> None:
    session = office.broker.open_session("web", exported())
    good = launched(session)
    real = b"".join(
        (vectors / "sev-chain-milan" / f"{role}.cert").read_bytes() for role in ("pdh", "pek", "oca", "cek")
    )
    with pytest.raises(Refused):
        office.broker.take_receipt(session.launch, Reported.of_receipt(replace(good, chain=real)))


def test_a_session_of_one_launch_does_not_open_another(office: Office) -> None:
    one, two = (office.broker.open_session("web", exported()) for _ in range(2))
    with pytest.raises(Refused, match="does not match"):
        office.broker.take_receipt(one.launch, reported(two))


# ---- SNP


def test_a_guest_that_is_wanted_gets_its_secret(office: Office) -> None:
    challenge = office.broker.open_challenge("db")
    report = a_report(challenge, guest_key())
    release = ask(office, challenge, report)
    assert SECRET == unseal(release.packet, own=guest_key(), report=report).material()
    for own, other in ((guest_key(8), report), (guest_key(), flipped(report, 9))):
        with pytest.raises(BadMeasurement):
            unseal(release.packet, own=own, report=other)
    with pytest.raises(BadMeasurement):
        unseal(replace(release.packet, data=flipped(release.packet.data, 1)), own=guest_key(), report=report)


def test_the_same_launch_under_another_challenge_gets_nothing(office: Office) -> None:
    ask(office)
    with pytest.raises(AlreadyReleased, match="another name"):
        ask(office)
    with pytest.raises(AlreadyReleased, match="another name"):
        ask(office, chip_id=bytes(64), key_info=2)  # the host masks the chip's id the second time
    assert ["release", "challenge", "refusal", "challenge", "refusal"] == [
        record.event.what for record in office.store.records()
    ][-5:]
    ask(office, report_id=b"S" * 32)
    assert 2 == len(office.store.releases())


def test_a_report_for_another_challenge_or_key_is_refused(office: Office) -> None:
    old, new = (office.broker.open_challenge("db") for _ in range(2))
    with pytest.raises(Refused, match="does not cover the broker's challenge and the guest's key"):
        ask(office, new, a_report(old, guest_key()))
    with pytest.raises(Refused, match="does not cover"):
        ask(office, new, a_report(new, guest_key(8)))


def test_every_byte_of_a_report_counts(office: Office) -> None:
    challenge = office.broker.open_challenge("db")
    good = a_report(challenge, guest_key())
    for at in range(len(good)):
        with pytest.raises((Refused, NotModelled)):
            ask(office, challenge, flipped(good, 8 * at + at % 8))
    assert {} == office.store.releases()
    assert ask(office, challenge, good)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measurement": b"N" * 48}, "measurement"),
        ({"policy": 0xB001F}, "policy.debug: true, wanted false"),
        ({"vmpl": 0xFFFFFFFF}, "vmpl: host"),
        ({"report_id": bytes(32)}, "report_id: is zero"),
        ({"report_data": bytes(64)}, "report_data"),
    ],
)
def test_a_guest_that_is_not_wanted_gets_nothing(
    office: Office, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        ask(office, **changes)
    assert {} == office.store.releases()


def test_dates_and_lists_are_judged_now(office: Office) -> None:
    office.broker.add_policy(snp_policy("listed", crls=(crl(world(), revoked=(2,)),)))
    challenge = office.broker.open_challenge("listed")
    with pytest.raises(Refused, match="revoked by"):
        ask(office, challenge)
    office.clock.pass_(days=365 * 9)
    with pytest.raises(Refused, match="expired"):
        ask(office)


def test_a_guest_may_hand_on_its_hosts_whole_table(office: Office) -> None:
    challenge, key = office.broker.open_challenge("db"), guest_key()
    vlek = World(kind=SigningKey.VLEK).leaf.make()
    entries = {CRL_GUID: b"a list", VLEK_GUID: vlek, VCEK_GUID: world().leaf.make(), UUID(int=7): b"else"}
    report = a_report(challenge, key)
    release = office.broker.take_report(
        challenge.launch,
        report=report,
        certificates=report + build_cert_table(entries),
        public_key=public_bytes(key.public_key()),
    )
    assert SECRET == unseal(release.packet, own=key, report=report).material()
    # Without the leaf that signed, the table gives nothing.
    del entries[VCEK_GUID]
    with pytest.raises(Refused, match="no ASVK"):
        office.broker.take_report(
            office.broker.open_challenge("db").launch,
            report=report,
            certificates=build_cert_table(entries),
            public_key=public_bytes(key.public_key()),
        )


def test_a_guests_key_is_one_on_p_384(office: Office) -> None:
    good = public_bytes(guest_key().public_key())
    assert good == public_bytes(read_public_key(good))
    for bad in (b"", good[:-1], good + b"\x00", flipped(good, 8 * 60)):
        with pytest.raises(WireError):
            read_public_key(bad)
    with pytest.raises(WireError, match="32"):
        report_data(bytes(31), good)


# ---- both


def test_what_has_no_name_here_is_unknown(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    challenge = office.broker.open_challenge("db")
    calls = (
        lambda: office.broker.open_session("nothing", exported()),
        lambda: office.broker.open_session("db", exported()),
        lambda: office.broker.open_challenge("web"),
        lambda: office.broker.take_receipt("0" * 32, reported(session)),
        lambda: office.broker.take_receipt(challenge.launch, reported(session)),
        lambda: ask(office, replace(challenge, launch=session.launch)),
    )
    for call in calls:
        with pytest.raises(Unknown):
            call()


def test_a_launch_waits_for_its_evidence_so_long_and_no_longer(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    challenge = office.broker.open_challenge("db")
    office.clock.pass_(minutes=5)
    with pytest.raises(Refused, match="before"):
        ask(office, challenge)
    office.clock.pass_(minutes=55)
    with pytest.raises(Refused, match="before"):
        office.broker.take_receipt(session.launch, reported(session))
    office.broker.open_challenge("db")
    assert office.store.launch(session.launch) is None, "an expired launch is forgotten, with its keys"


def test_only_so_many_launches_wait_at_once(tmp_path: Path) -> None:
    office = Office(tmp_path, most=2).with_policies()
    with closing(office.store):
        challenges = [office.broker.open_challenge("db") for _ in range(2)]
        with pytest.raises(Occupied):
            office.broker.open_challenge("db")
        ask(office, challenges[0])
        office.broker.open_challenge("db")


def test_a_policy_that_was_changed_since_gives_nothing(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    office.broker.remove_policy("web")
    with pytest.raises(Refused, match="changed or removed"):
        office.broker.take_receipt(session.launch, reported(session))
    office.broker.add_policy(sev_policy(wishes=SEV_WISHES + "build = 1\n"))
    with pytest.raises(Refused, match="changed or removed"):
        office.broker.take_receipt(session.launch, reported(session))
    office.broker.remove_policy("web")
    office.broker.add_policy(sev_policy())
    assert office.broker.take_receipt(session.launch, reported(session)), "the same policy is the same"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (sev_policy(wishes="[policy]\nword = 1\n"), "any guest"),
        (sev_policy(wishes=SEV_WISHES.replace("word = 1", "es = false")), "one policy word"),
        (sev_policy(wishes=SEV_WISHES.replace("word = 1", "word = [1, 3]")), "one policy word"),
        (sev_policy(wishes=SEV_WISHES.replace("word = 1", "word = 0x40")), "reserved"),
        (sev_policy(wishes=SNP_WISHES + "[policy]\nword = 1\n"), "32 bytes"),
        (sev_policy(wishes="measurment = 1"), "unknown key"),
        (replace(sev_policy(), secret=Key(b"")), "empty"),
        (replace(sev_policy(), crls=(("a.crl", b""),)), "for SNP"),
        (replace(sev_policy(), certificates=(("x", b"123"),)), "no certificate"),
        (sev_policy(""), "name"),
        (snp_policy(wishes="[policy]\ndebug = false\n"), "any guest"),
        (snp_policy(wishes=SEV_WISHES), "48 bytes"),
        (snp_policy(wishes=f'report_data = "{"00" * 64}"\n' + SNP_WISHES), "challenge decides"),
        (replace(snp_policy(), secret=Key(bytes(16385))), "16384"),
        (replace(snp_policy(), roots=(("x", b"123"),)), "trusted root"),
        (replace(snp_policy(), crls=(("x", b"0123"),)), "x"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(office: Office, policy: Policy, reason: str) -> None:
    before = last(office)
    with pytest.raises(ValueError, match=reason):
        office.broker.add_policy(replace(policy, name=policy.name and "new"))
    assert before == last(office)


def test_a_policy_has_a_name_of_its_own(office: Office) -> None:
    with pytest.raises(ValueError, match="already"):
        office.broker.add_policy(sev_policy())
    with pytest.raises(ValueError, match="no policy"):
        office.broker.remove_policy("nothing")
    assert ["db", "web"] == [policy.name for policy in office.store.policies()]
    assert sev_policy() == office.store.policy("web")
    assert snp_policy() == office.store.policy("db")


def test_no_secret_and_no_key_is_in_the_log_or_shown(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    waiting = office.store.launch(session.launch)
    assert waiting is not None
    assert waiting.keys is not None
    keys = waiting.keys.material()
    office.broker.take_receipt(session.launch, reported(session))
    ask(office)
    shown = "".join(record.line for record in office.store.records()) + repr(waiting) + repr(sev_policy())
    for part in (SECRET, keys[:16], keys[16:]):
        assert part.hex() not in shown
        assert repr(part) not in shown


# ---- the database


def test_the_file_is_for_its_owners_eyes(tmp_path: Path, office: Office) -> None:
    for path in tmp_path.iterdir():
        assert 0o600 == path.stat().st_mode & 0o777, path.name


def test_records_and_releases_are_neither_changed_nor_deleted(office: Office, tmp_path: Path) -> None:
    ask(office)
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        for change in (
            "UPDATE audit SET line = ''",
            "DELETE FROM audit WHERE number = 2",
            "UPDATE releases SET number = 0",
            "DELETE FROM releases",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                db.execute(change)


def test_two_brokers_on_one_file_release_once(office: Office, tmp_path: Path) -> None:
    other = Office(tmp_path, clock=office.clock)
    with closing(other.store):
        session = office.broker.open_session("web", exported())
        evidence = reported(session)
        other.broker.take_receipt(session.launch, evidence)
        with pytest.raises(AlreadyReleased):
            office.broker.take_receipt(session.launch, evidence)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00" + bytes(84), b"text", bytes(4096)])
def test_a_file_that_is_no_brokers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(content)
    with pytest.raises(WireError, match="not a database"):
        SqliteStore(path)
    with pytest.raises(FileExistsError):
        SqliteStore.create(path, CREATED)
    with pytest.raises(FileNotFoundError, match="init"):
        SqliteStore(tmp_path / "nothing.db")


def test_a_receipt_that_says_nothing_of_its_platform_will_do(office: Office) -> None:
    session = office.broker.open_session("web", exported())
    assert office.broker.take_receipt(session.launch, replace(reported(session), chain=b""))


def test_a_bad_packet_of_the_broker_is_refused_in_the_guest() -> None:
    with pytest.raises(WireError):
        unseal(GuestPacket(public_key=b"", iv=bytes(12), data=bytes(16)), own=guest_key(), report=b"")
    good = public_bytes(guest_key(3).public_key())
    with pytest.raises(BadMeasurement):
        unseal(GuestPacket(public_key=good, iv=bytes(12), data=bytes(5)), own=guest_key(), report=b"")
