"""A session is made for a verified platform only, and is byte for byte what the paper says."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from cbit import owner
from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.session import unwrap
from cbit.owner.errors import Untrusted
from cbit.owner.receipt import SessionRecord
from cbit.owner.session import Measuring, Session, Trusted
from cbit.owner.verify.verdict import UnverifiedPlatform, verify_chain
from cbit.spec.certificate import UNUSED_SLOT, Algo, SevCert, Usage
from cbit.spec.errors import BadMeasurement, WireError
from owner.worlds import CASE, VECTORS, emulated, flipped, keys_of, real, scalar, vector

CASES = [VECTORS / "synthetic-e2e" / name for name in ("case1-sev", "case2-sev-es")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_certificate_and_blob_are_those_of_the_vector(case: Path) -> None:
    values = vector(case)
    session = Session.make(
        SevCert.parse((case / "pdh.cert").read_bytes()),
        own=scalar("godh", case),
        keys=keys_of(values),
        policy=int(values["policy"], 0),
        nonce=bytes.fromhex(values["nonce"]),
        wrap_iv=bytes.fromhex(values["wrap_iv"]),
    )
    assert (case / "godh.cert").read_bytes() == bytes(session.godh)
    assert (case / "session.bin").read_bytes() == bytes(session.blob)


def opened(policy: int = 1, seed: int = 1) -> Measuring:
    platform = verify_chain(emulated().chain, trust=[emulated().ark])
    return Session.open(platform, policy=policy, entropy=SeededEntropy(seed))


def test_the_platform_unwraps_what_the_owner_wrapped() -> None:
    measuring = opened(policy=3)
    assert measuring.session is not None
    z = ec.shared_secret(scalar("pdh"), sev_cert.public_key(measuring.session.godh))
    assert measuring.keys == unwrap(measuring.session.blob, z=z, policy=3)
    with pytest.raises(BadMeasurement, match="policy MAC"):
        unwrap(measuring.session.blob, z=z, policy=1)
    with pytest.raises(BadMeasurement, match="wrap MAC"):
        unwrap(
            measuring.session.blob,
            z=ec.shared_secret(scalar("receiver_pdh"), scalar("pdh").public_key()),
            policy=3,
        )


def test_the_owners_certificate_is_for_diffie_hellman_and_unsigned() -> None:
    session = opened().session
    assert session is not None
    assert (Usage.PDH, Algo.ECDH_SHA256) == (session.godh.pubkey_usage, session.godh.pubkey_algo)
    assert (UNUSED_SLOT, UNUSED_SLOT) == session.godh.slots()


def test_every_session_has_keys_of_its_own() -> None:
    platform = verify_chain(real("milan"))
    one, other = (Session.open(platform, policy=1) for _ in range(2))
    assert one.keys.tek != other.keys.tek
    assert one.keys.tik != other.keys.tik
    assert one.session != other.session
    assert opened(seed=5).session == opened(seed=5).session


def test_the_record_says_for_whom() -> None:
    record = opened().record
    assert record is not None
    assert (True, True, 1) == (record.simulated, record.verified, record.policy)
    assert record.root.startswith("SIMULATED")
    unverified = Session.open(UnverifiedPlatform.dangerously_trust(real("milan").pdh.sev()), policy=1).record
    assert unverified is not None
    assert not unverified.verified


def test_no_key_is_shown_or_pickled() -> None:
    measuring = opened()
    material = measuring.keys.material()
    text = repr(measuring) + repr(measuring.keys) + repr(measuring.session) + repr(measuring.record)
    for key in (material[:16], material[16:]):
        assert key.hex() not in text
        assert repr(key) not in text
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(measuring.keys)


@pytest.mark.parametrize("policy", [0x40, 0x8000, 1 << 32, -1])
def test_a_policy_with_reserved_bits_is_refused(policy: int) -> None:
    with pytest.raises(WireError):
        opened(policy=policy)


def test_the_record_survives_its_file_and_no_edit() -> None:
    measuring = opened()
    assert measuring.record is not None
    text = measuring.record.to_json(measuring.keys.tik)
    assert measuring.record == SessionRecord.from_json(text, measuring.keys.tik)
    for bit in range(0, 8 * len(text), 13):
        with pytest.raises((WireError, BadMeasurement)):
            SessionRecord.from_json(flipped(text.encode(), bit), measuring.keys.tik)
    with pytest.raises(BadMeasurement, match="other transport keys"):
        SessionRecord.from_json(text, opened(seed=2).keys.tik)


def test_a_session_taken_up_again_keeps_its_policy() -> None:
    measuring = opened(policy=1)
    with pytest.raises(Untrusted, match="opened for policy 0x1, not for 0x3"):
        Measuring(measuring.keys, policy=3, record=measuring.record)


def test_a_trusted_launch_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match=r"Measuring\.check"):
        Trusted(opened().keys, bytes(32), receipt=None, made_by=object())


def test_the_case_is_the_one_of_the_emulated_platform() -> None:
    assert (CASE / "pdh.cert").read_bytes() == emulated().chain.pdh.raw


def test_the_owners_code_asks_for_no_operating_system() -> None:
    tied = {"fcntl", "pwd", "grp", "resource", "termios", "mmap", "winreg", "msvcrt", "socket", "ctypes"}
    imported = set()
    for path in Path(owner.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert set() == imported & tied
    assert {"cbit", "os"} < imported
