from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.key import Key
from cbit.crypto.measurement import measurement
from cbit.spec.policy import ApiVersion
from cbit.spec.session import MeasureBlob
from crypto.published import FLOWS, VECTORS, Flow

FOLDER = VECTORS / "launch-measurement"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "measure.json").read_text())


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    if "launch_digest" in case:
        digest = bytes.fromhex(case["launch_digest"])
    else:
        digest = hashlib.sha256((FOLDER / case["firmware"]).read_bytes()).digest()
    return {
        "tik": Key(bytes.fromhex(case["tik"])),
        "api": ApiVersion(case["api_major"], case["api_minor"]),
        "build": case["build"],
        "policy": case["policy"],
        "digest": digest,
        "mnonce": bytes.fromhex(case["mnonce"]),
    }


GOOD = inputs(CASES[1])
MEASURE = bytes.fromhex(CASES[1]["measure"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_published_measurements(case: dict[str, Any]) -> None:
    measure = measurement(**inputs(case))
    assert measure.hex() == case["measure"]
    if "blob_base64" in case:
        blob = MeasureBlob(measure=measure, mnonce=bytes.fromhex(case["mnonce"]))
        assert base64.b64encode(bytes(blob)).decode() == case["blob_base64"]


def test_the_key_of_cases_b_and_c_is_the_file_beside_them() -> None:
    assert [case["tik"] for case in CASES[1:]] == [(FOLDER / "tik1.bin").read_bytes().hex()] * 2


def test_a_measurement_that_openssl_computed() -> None:
    # origin = computed with OpenSSL's command line: NODBG, digest of nothing, zero nonce, zero TIK,
    # API 0.24 build 15.
    measure = measurement(
        Key(bytes(16)),
        api=ApiVersion(0, 24),
        build=15,
        policy=1,
        digest=hashlib.sha256(b"").digest(),
        mnonce=bytes(16),
    )
    assert measure.hex() == "906ee8eee9fb110b9d5a58576645864b2b81a39728463af571b16f3d85800f39"


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_measurements(flow: Flow) -> None:
    values = flow.values
    measured = flow.file("launch_data.bin") + (flow.file("vmsa.bin") if flow.policy & 4 else b"")
    digest = hashlib.sha256(measured).digest()
    assert digest.hex() == values["launch_digest"]
    measure = measurement(
        Key(bytes.fromhex(values["tik"])),
        api=ApiVersion(values["api_major"], values["api_minor"]),
        build=values["build"],
        policy=flow.policy,
        digest=digest,
        mnonce=bytes.fromhex(values["mnonce"]),
    )
    assert measure.hex() == values["measure"]
    assert MeasureBlob.parse(flow.file("measure.bin")).measure == measure
    assert MeasureBlob.parse(flow.file("measure.bin")).mnonce.hex() == values["mnonce"]


@pytest.mark.parametrize(
    "change",
    [
        {"api": ApiVersion(40, 1)},  # swapped
        {"policy": int.from_bytes((3).to_bytes(4, "big"), "little")},  # big-endian
        {"build": 41},
        {"policy": 2},
        {"tik": Key(bytes(16))},
        {"digest": GOOD["digest"][::-1]},
        {"mnonce": bytes(16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_input_counts(change: dict[str, Any]) -> None:
    assert measurement(**GOOD) == MEASURE
    assert measurement(**(GOOD | change)) != MEASURE


def test_the_first_byte_counts() -> None:
    message = bytes([1, 40, 40]) + (3).to_bytes(4, "little") + GOOD["digest"] + GOOD["mnonce"]
    tik = GOOD["tik"].material()
    assert hmac.digest(tik, b"\x04" + message, "sha256") == MEASURE
    assert hmac.digest(tik, message, "sha256") != MEASURE


@given(st.sampled_from(["digest", "mnonce"]), st.integers(0, 127))
def test_every_bit_of_digest_and_nonce_counts(name: str, bit: int) -> None:
    value = int.from_bytes(GOOD[name], "big") ^ 1 << bit
    assert measurement(**(GOOD | {name: value.to_bytes(len(GOOD[name]), "big")})) != MEASURE


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(31)},
        {"digest": bytes(48)},
        {"mnonce": bytes(15)},
        {"mnonce": bytes(17)},
        {"build": 256},
        {"api": ApiVersion(0, 256)},
        {"policy": 1 << 32},
    ],
    ids=str,
)
def test_what_has_not_the_papers_size_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        measurement(**(GOOD | change))
