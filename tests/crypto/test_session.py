from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys, policy_mac, unwrap, wrap
from cbit.spec.errors import BadMeasurement, WireError
from cbit.spec.session import Session
from crypto.published import FLOWS, VECTORS, Flow

CASE = json.loads((VECTORS / "session-wrap/session.json").read_text())
Z = bytes.fromhex(CASE["z_hex"])
KEYS = TransportKeys(Key(bytes.fromhex(CASE["tek"])), Key(bytes.fromhex(CASE["tik"])))
SESSION = wrap(
    KEYS,
    z=Z,
    policy=CASE["policy"],
    nonce=bytes.fromhex(CASE["nonce"]),
    wrap_iv=bytes.fromhex(CASE["wrap_iv"]),
)

block = st.binary(min_size=16, max_size=16)
words = st.integers(0, (1 << 32) - 1)


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def test_the_published_session() -> None:
    # origin = vectors/session-wrap: virtee/sev's unit test; the same values in sev-crypto.md §7.3
    published = CASE["published"]
    assert SESSION.wrap_tk.hex() == published["wrap_tk"]
    assert SESSION.wrap_mac.hex() == published["wrap_mac"]
    assert SESSION.policy_mac.hex() == published["policy_mac"]
    assert SESSION.nonce + SESSION.wrap_iv == bytes(32)
    assert unwrap(SESSION, z=Z, policy=0) == KEYS


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_launch_session(flow: Flow) -> None:
    values = {
        name: bytes.fromhex(v) for name, v in flow.values.items() if isinstance(v, str) and "0x" not in v
    }
    keys = TransportKeys(Key(values["tek"]), Key(values["tik"]))
    z = values["ecdh_z_godh_pdh_be"]
    session = wrap(keys, z=z, policy=flow.policy, nonce=values["nonce"], wrap_iv=values["wrap_iv"])
    for name in ("nonce", "wrap_tk", "wrap_iv", "wrap_mac", "policy_mac"):
        assert getattr(session, name) == values[name]
    assert bytes(session) == flow.file("session.bin")
    assert unwrap(Session.parse(flow.file("session.bin")), z=z, policy=flow.policy) == keys


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_migration_session(flow: Flow) -> None:
    send = {name: bytes.fromhex(value) for name, value in flow.values["send"].items()}
    keys = TransportKeys(Key(send["tek"]), Key(send["tik"]))
    z = send["ecdh_z_pdh_receiverpdh_be"]
    session = wrap(keys, z=z, policy=flow.policy, nonce=send["nonce"], wrap_iv=send["wrap_iv"])
    assert bytes(session) == flow.file("send_session.bin")
    assert unwrap(session, z=z, policy=flow.policy) == keys


@given(block, block, st.binary(min_size=48, max_size=48), words, block, block)
def test_what_is_wrapped_is_unwrapped(  # noqa: PLR0917  # as many values as a session has
    tek: bytes, tik: bytes, z: bytes, policy: int, nonce: bytes, wrap_iv: bytes
) -> None:
    keys = TransportKeys(Key(tek), Key(tik))
    session = wrap(keys, z=z, policy=policy, nonce=nonce, wrap_iv=wrap_iv)
    assert unwrap(Session.parse(bytes(session)), z=z, policy=policy) == keys


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("nonce", "wrap MAC"),
        ("wrap_tk", "wrap MAC"),
        ("wrap_mac", "wrap MAC"),
        ("policy_mac", "policy MAC does not match policy 0x0"),
        ("wrap_iv", "policy MAC"),  # the wrap MAC does not cover it: the garbled TIK is noticed here
    ],
)
@given(data=st.data())
def test_a_flipped_bit_is_noticed(field: str, reason: str, data: st.DataObject) -> None:
    value = getattr(SESSION, field)
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    with pytest.raises(BadMeasurement, match=reason):
        unwrap(SESSION.replace(**{field: flipped(value, bit)}), z=Z, policy=0)


@given(st.integers(0, 31))
def test_another_policy_is_noticed(bit: int) -> None:
    with pytest.raises(BadMeasurement, match=f"policy MAC does not match policy {1 << bit:#x}"):
        unwrap(SESSION, z=Z, policy=1 << bit)


@given(st.integers(0, 127))
def test_another_shared_secret_is_noticed(bit: int) -> None:
    with pytest.raises(BadMeasurement, match="wrap MAC"):
        unwrap(SESSION, z=flipped(Z, bit), policy=0)


def test_the_wrap_mac_is_checked_before_the_policy_mac() -> None:
    # sev-crypto.md §7.4: step 3 before step 5
    wrong = SESSION.replace(wrap_mac=bytes(32), policy_mac=bytes(32))
    with pytest.raises(BadMeasurement, match="wrap MAC"):
        unwrap(wrong, z=Z, policy=0)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 48])
def test_transport_keys_are_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="must be 32"):
        TransportKeys.parse(bytes(length))


def test_transport_keys_are_tek_then_tik() -> None:
    keys = TransportKeys.parse(bytes(range(32)))
    assert (keys.tek.material(), keys.tik.material()) == (bytes(range(16)), bytes(range(16, 32)))
    assert keys.material() == bytes(range(32))


def test_fresh_transport_keys_differ_from_each_other() -> None:
    keys = TransportKeys.random(SeededEntropy(1))
    assert keys.tek != keys.tik
    assert keys == TransportKeys.random(SeededEntropy(1))
    assert keys != TransportKeys.random(SeededEntropy(2))


@pytest.mark.parametrize("field", ["nonce", "wrap_iv"])
@pytest.mark.parametrize("length", [15, 17])
def test_a_nonce_or_iv_of_another_size_is_refused(field: str, length: int) -> None:
    sizes = {"nonce": bytes(16), "wrap_iv": bytes(16)} | {field: bytes(length)}
    with pytest.raises((WireError, ValueError)):
        wrap(KEYS, z=Z, policy=0, **sizes)


def test_the_policy_under_the_mac_has_four_bytes() -> None:
    assert policy_mac(KEYS.tik, 0).hex() == CASE["published"]["policy_mac"]
    with pytest.raises(OverflowError):
        policy_mac(KEYS.tik, 1 << 32)
