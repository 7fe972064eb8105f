from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import FORMAT, Fields, LaunchReceipt, canonical_json, read_object
from cbit.spec.session import MeasureBlob

CHAIN = bytes(4 * 0x824)
GOOD = LaunchReceipt(
    measure=bytes(range(32)), mnonce=bytes(16), api=ApiVersion(1, 51), build=3, policy=1, chain=CHAIN
)
MEMBERS = json.loads(GOOD.to_json())

byte = st.integers(0, 255)
receipts = st.builds(
    LaunchReceipt,
    measure=st.binary(min_size=32, max_size=32),
    mnonce=st.binary(min_size=16, max_size=16),
    api=st.builds(ApiVersion, byte, byte),
    build=byte,
    policy=st.integers(0, (1 << 32) - 1),
    # origin = sev-crypto.md §4: the lengths of PDH ‖ PEK ‖ OCA ‖ CEK and of ASK ‖ ARK
    chain=st.sampled_from([4 * 0x824, 4 * 0x824 + 0x680, 4 * 0x824 + 0xC80]).map(bytes),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(receipts)
def test_a_receipt_comes_back_and_has_one_spelling(receipt: LaunchReceipt) -> None:
    text = receipt.to_json()
    assert LaunchReceipt.from_json(text) == receipt
    assert LaunchReceipt.from_json(text.encode()) == receipt
    assert LaunchReceipt.from_json(text).to_json() == text
    assert receipt.blob == MeasureBlob(measure=receipt.measure, mnonce=receipt.mnonce)


def test_the_members_of_a_receipt() -> None:
    assert {
        "api": {"major": 1, "minor": 51},
        "build": 3,
        "chain": base64.b64encode(CHAIN).decode(),
        "format": FORMAT,
        "measure": bytes(range(32)).hex(),
        "nonce": "00" * 16,
        "policy": 1,
    } == MEMBERS
    assert GOOD.to_json().endswith("}\n")
    assert list(MEMBERS) == sorted(MEMBERS)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_member_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="launch receipt"):
        LaunchReceipt.from_json(json.dumps({k: v for k, v in MEMBERS.items() if k != name}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "cbit launch receipt 2"}, "the format must be"),
        ({"extra": 1}, "exactly the fields"),
        ({"measure": "00" * 31}, "64 lower-case hex digits"),
        ({"measure": "00" * 33}, "64 lower-case hex digits"),
        ({"measure": "AB" * 32}, "lower-case"),
        ({"measure": "00 " * 32}, "hex digits"),
        ({"measure": 7}, "must be a string"),
        ({"nonce": "00" * 15}, "32 lower-case hex digits"),
        ({"api": {"major": 1}}, "exactly the fields major, minor"),
        ({"api": {"major": 256, "minor": 0}}, "major must be a number"),
        ({"api": [1, 51]}, "exactly the fields"),
        ({"build": 256}, "build must be a number in 0..0xff"),
        ({"build": -1}, "build must be a number"),
        ({"build": True}, "build must be a number"),
        ({"build": 3.0}, "build must be a number"),
        ({"policy": 1 << 32}, "policy must be a number"),
        ({"policy": "0x1"}, "policy must be a number"),
        ({"chain": "?"}, "not base64"),
        ({"chain": MEMBERS["chain"][:-4]}, "neither PDH, PEK, OCA, CEK"),
        ({"chain": MEMBERS["chain"] + "\n"}, "not base64"),
        ({"chain": ""}, "a chain of 0 bytes"),
    ],
    ids=str,
)
def test_a_member_of_another_shape_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        LaunchReceipt.from_json(json.dumps(MEMBERS | change))


@pytest.mark.parametrize(
    "change",
    [
        {"measure": bytes(31)},
        {"mnonce": bytes(17)},
        {"api": ApiVersion(0, 256)},
        {"api": ApiVersion(-1, 0)},
        {"build": 256},
        {"policy": 1 << 32},
        {"policy": -1},
        {"chain": bytes(3 * 0x824)},
        {"chain": bytes(4 * 0x824 + 0x880)},  # the mixed sizes that no product has
    ],
    ids=str,
)
def test_a_receipt_that_no_firmware_gives_is_not_made(change: dict[str, Any]) -> None:
    members = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    with pytest.raises(WireError):
        LaunchReceipt(**(members | change))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"a": 1, "a": 1}', "a key stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "a key stands twice"),
        ("[" * 100_000, "not JSON"),
        ("{} {}", "not JSON"),
        (b"\xff", "not JSON"),
        ('{"a": ' + "1" * 10_000 + "}", "not JSON"),
    ],
    ids=range(9),
)
def test_what_is_no_single_object_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read_object(text, what="file")


@given(st.binary() | st.text() | anything.map(json.dumps))
def test_any_text_is_a_receipt_or_refused(text: str | bytes) -> None:
    with pytest.raises(WireError):
        LaunchReceipt.from_json(text)


@given(st.sampled_from(sorted(MEMBERS)), anything)
def test_any_member_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        receipt = LaunchReceipt.from_json(json.dumps(MEMBERS | {name: value}))
    except WireError:
        return
    assert json.loads(receipt.to_json()) == MEMBERS | {name: value}


def test_fields_are_taken_by_their_kind() -> None:
    fields = Fields({"flag": True, "list": [1], "text": "x"}, "flag", "list", "text", what="file")
    assert (fields.flag("flag"), fields.items("list"), fields.text("text")) == (True, [1], "x")
    for wrong in (lambda: fields.flag("text"), lambda: fields.items("text"), lambda: fields.text("flag")):
        with pytest.raises(WireError, match="file: "):
            wrong()


def test_canonical_json_has_no_nan() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"\\u00e4","b":1}\n'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})
