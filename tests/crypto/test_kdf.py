from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import kdf as labels
from cbit.crypto.kdf import kdf
from cbit.crypto.session import WrappingKeys
from crypto.published import FLOWS, VECTORS, Flow

CASE = json.loads((VECTORS / "session-wrap/session.json").read_text())
Z = bytes.fromhex(CASE["z_hex"])
NONCE = bytes.fromhex(CASE["nonce"])


def test_labels() -> None:
    # origin = sev-crypto.md §6
    assert labels.MASTER_SECRET == b"sev-master-secret"
    assert labels.KEK == b"sev-kek"
    assert labels.KIK == b"sev-kik"
    assert labels.CEK == b"sev-chip-endorsement-key"


def test_the_published_session() -> None:
    # origin = vectors/session-wrap (virtee/sev's unit test) and sev-crypto.md §7.3
    derived = CASE["derived_not_published"]
    master = kdf(16, Z, labels.MASTER_SECRET, NONCE)
    assert master.hex() == derived["master_secret"] == "ab4d269fcc62bedb4511d56c386ce706"
    assert kdf(16, master, labels.KEK).hex() == derived["kek"]
    assert kdf(16, master, labels.KIK).hex() == derived["kik"]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_sessions(flow: Flow) -> None:
    for values, z in (
        (flow.values, flow.values["ecdh_z_godh_pdh_be"]),
        (flow.values["send"], flow.values["send"]["ecdh_z_pdh_receiverpdh_be"]),
    ):
        secret, nonce = bytes.fromhex(z), bytes.fromhex(values["nonce"])
        assert kdf(16, secret, labels.MASTER_SECRET, nonce).hex() == values["master_secret"]
        wrapping = WrappingKeys.derive(secret, nonce)
        assert wrapping.kek.material().hex() == values["kek"]
        assert wrapping.kik.material().hex() == values["kik"]


@given(st.integers(0, 100), st.binary(min_size=1), st.binary(), st.binary())
def test_the_formula_block_by_block(length: int, key: bytes, label: bytes, context: bytes) -> None:
    # Typed anew from sev-crypto.md §6, with another HMAC interface.
    out = b""
    for counter in range(1, 5):
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for piece in (counter.to_bytes(4, "little"), label, b"\x00", context):
            mac.update(piece)
        mac.update((length * 8).to_bytes(4, "little"))
        out += mac.digest()
    assert kdf(length, key, label, context) == out[:length]


def test_a_shorter_output_is_no_prefix_of_a_longer_one() -> None:
    assert kdf(32, Z, labels.KEK)[:16] != kdf(16, Z, labels.KEK)  # the length is under the MAC


@pytest.mark.parametrize(
    "other",
    [
        kdf(16, Z[:-1] + b"\x01", labels.MASTER_SECRET, NONCE),
        kdf(16, Z, labels.MASTER_SECRET, NONCE[:-1] + b"\x01"),
        kdf(16, Z, labels.MASTER_SECRET + b"\x00", NONCE),  # the NUL is a separator and not part of the label
        kdf(16, Z, labels.MASTER_SECRET),
        kdf(16, Z, labels.KEK, NONCE),
    ],
)
def test_every_input_counts(other: bytes) -> None:
    assert other != kdf(16, Z, labels.MASTER_SECRET, NONCE)
