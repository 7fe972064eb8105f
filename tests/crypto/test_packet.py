from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.key import Key
from cbit.crypto.packet import open_packet, packet_mac, seal
from cbit.crypto.session import TransportKeys
from cbit.spec import secret_table
from cbit.spec.errors import BadMeasurement
from cbit.spec.session import CONTEXT_DATA, CONTEXT_SECRET, PacketHeader
from crypto.published import FLOWS, VECTORS, Flow

FOLDER = VECTORS / "launch-secret"
(CASE,) = json.loads((FOLDER / "secret.json").read_text())
KEYS = TransportKeys(Key((FOLDER / "tek1.bin").read_bytes()), Key((FOLDER / "tik1.bin").read_bytes()))
MEASURE = bytes.fromhex(CASE["measure"])
HEADER = PacketHeader.parse(base64.b64decode(CASE["header_base64"]))
PAYLOAD = base64.b64decode(CASE["payload_base64"])
PLAIN = secret_table.build([(UUID(guid), (FOLDER / name).read_bytes()) for guid, name in CASE["entries"]])
OPENING: dict[str, Any] = {"context": CONTEXT_SECRET, "guest_len": len(PAYLOAD), "measure": MEASURE}


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8 % len(out)] ^= 1 << bit % 8
    return bytes(out)


def test_the_published_packet() -> None:
    # origin = vectors/launch-secret: sevctl's tests/secretbuild.rs
    assert (CASE["tek"], CASE["tik"]) == (KEYS.tek.material().hex(), KEYS.tik.material().hex())
    assert base64.b64decode(CASE["measure_blob_base64"])[:32] == MEASURE
    header, data = seal(KEYS, PLAIN, context=CONTEXT_SECRET, iv=bytes.fromhex(CASE["iv"]), measure=MEASURE)
    assert (header, data) == (HEADER, PAYLOAD)
    assert header.flags == CASE["flags"]
    assert base64.b64encode(bytes(header)).decode() == CASE["header_base64"]
    assert open_packet(KEYS, HEADER, PAYLOAD, **OPENING) == PLAIN
    assert secret_table.parse(PLAIN) == [(secret_table.DISK_PASSPHRASE, b"MY-LUKS-PASSPHRASE")]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_secret(flow: Flow) -> None:
    values = flow.values
    keys = TransportKeys(Key(bytes.fromhex(values["tek"])), Key(bytes.fromhex(values["tik"])))
    measure = bytes.fromhex(values["measure"])
    plain = flow.file("secret_plain.bin")
    header, data = seal(
        keys, plain, context=CONTEXT_SECRET, iv=bytes.fromhex(values["secret_iv"]), measure=measure
    )
    assert bytes(header) == flow.file("secret_hdr.bin") == bytes.fromhex(values["secret_hdr"])
    assert data == flow.file("secret_trans.bin")
    opened = open_packet(keys, header, data, context=CONTEXT_SECRET, guest_len=len(plain), measure=measure)
    assert opened == plain


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_page_of_a_migration(flow: Flow) -> None:
    send = flow.values["send"]
    keys = TransportKeys(Key(bytes.fromhex(send["tek"])), Key(bytes.fromhex(send["tik"])))
    plain = flow.file("send_page_plain.bin")
    header, data = seal(keys, plain, context=CONTEXT_DATA, iv=bytes.fromhex(send["page_iv"]))
    assert bytes(header) == flow.file("send_page_hdr.bin") == bytes.fromhex(send["page_hdr"])
    assert data == flow.file("send_page_trans.bin")
    assert open_packet(keys, header, data, context=CONTEXT_DATA, guest_len=len(plain)) == plain


@given(
    st.binary(max_size=200),
    st.binary(min_size=16, max_size=16),
    st.sampled_from([CONTEXT_SECRET, CONTEXT_DATA]),
    st.binary(min_size=32, max_size=32) | st.just(b""),
)
def test_what_is_sealed_is_opened(plain: bytes, iv: bytes, context: int, measure: bytes) -> None:
    header, data = seal(KEYS, plain, context=context, iv=iv, measure=measure)
    assert len(data) == len(plain)
    opened = open_packet(KEYS, header, data, context=context, guest_len=len(plain), measure=measure)
    assert opened == plain


@given(st.integers(0, 8 * 64 - 1))
def test_a_flipped_bit_anywhere_is_noticed(bit: int) -> None:
    altered: list[tuple[PacketHeader, bytes, dict[str, Any]]] = [
        (HEADER, flipped(PAYLOAD, bit), {}),
        (HEADER.replace(iv=flipped(HEADER.iv, bit)), PAYLOAD, {}),
        (HEADER.replace(mac=flipped(HEADER.mac, bit)), PAYLOAD, {}),
        (HEADER.replace(flags=1 << bit % 32), PAYLOAD, {}),
        (HEADER, PAYLOAD, {"measure": flipped(MEASURE, bit)}),
        (HEADER, PAYLOAD, {"guest_len": len(PAYLOAD) ^ 1 << bit % 32}),
        (HEADER, PAYLOAD, {"context": CONTEXT_SECRET ^ 1 << bit % 8}),
    ]
    for header, data, change in altered:
        with pytest.raises(BadMeasurement, match="packet's MAC"):
            open_packet(KEYS, header, data, **(OPENING | change))


@pytest.mark.parametrize("data", [b"", PAYLOAD[:-16], PAYLOAD[:-1], PAYLOAD + bytes(16)])
def test_a_shorter_or_longer_payload_is_noticed(data: bytes) -> None:
    for length in (len(PAYLOAD), len(data)):
        with pytest.raises(BadMeasurement):
            open_packet(KEYS, HEADER, data, **(OPENING | {"guest_len": length}))


def test_a_packet_for_another_launch_is_noticed() -> None:
    with pytest.raises(BadMeasurement):
        open_packet(KEYS, HEADER, PAYLOAD, **(OPENING | {"measure": b""}))
    swapped = TransportKeys(KEYS.tik, KEYS.tek)
    with pytest.raises(BadMeasurement):
        open_packet(swapped, HEADER, PAYLOAD, **OPENING)


def test_another_tek_garbles_and_is_not_noticed_by_the_mac() -> None:
    # The MAC is keyed by the TIK and covers the ciphertext: only both keys together make a packet readable.
    wrong = TransportKeys(Key(bytes(16)), KEYS.tik)
    assert open_packet(wrong, HEADER, PAYLOAD, **OPENING) != PLAIN


def test_the_measurement_is_the_last_thing_under_the_mac() -> None:
    longer = packet_mac(KEYS, context=1, header=HEADER, data=PAYLOAD + MEASURE, guest_len=64, measure=b"")
    assert longer != HEADER.mac  # the transport length keeps the two apart
