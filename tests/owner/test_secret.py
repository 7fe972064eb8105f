"""A secret is sealed for a launch that was checked, as the paper says, and within the firmware's limits."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID

import pytest

from cbit.crypto import packet
from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.owner import secret
from cbit.owner.measure import Expectation, Mode
from cbit.owner.session import Measuring, Trusted
from cbit.spec.errors import BadMeasurement
from cbit.spec.firmware_table import Area
from cbit.spec.policy import ApiVersion
from cbit.spec.secret_table import DISK_PASSPHRASE, parse
from cbit.spec.session import CONTEXT_SECRET, MeasureBlob, PacketHeader
from owner.worlds import CASE, VECTORS, a_launch, flipped, keys_of, vector

FOLDER = VECTORS / "launch-secret"
NO_AREA = Area(0, 0)
KEYS = TransportKeys.parse(bytes(range(64, 96)))


class These:
    """An entropy source whose bytes a vector gives."""

    def __init__(self, *draws: bytes) -> None:
        self._draws = list(draws)

    def draw(self, length: int) -> bytes:
        drawn = self._draws.pop(0)
        assert len(drawn) == length
        return drawn


@pytest.mark.parametrize("v", json.loads((FOLDER / "secret.json").read_text()), ids=lambda v: str(v["name"]))
def test_the_published_packet_is_reproduced(v: dict[str, Any]) -> None:
    keys = TransportKeys(Key(bytes.fromhex(v["tek"])), Key(bytes.fromhex(v["tik"])))
    plaintext = secret.table_of([(UUID(guid), (FOLDER / name).read_bytes()) for guid, name in v["entries"]])
    trusted = Measuring(keys, policy=0).dangerously_trust(bytes.fromhex(v["measure"]))
    header, data = trusted.seal(plaintext, entropy=These(bytes.fromhex(v["iv"])))
    assert (v["header_base64"], v["payload_base64"]) == tuple(
        base64.b64encode(x).decode() for x in (header, data)
    )


def test_the_synthetic_launch_gets_its_packet() -> None:
    v = vector()
    measuring = Measuring(keys_of(v), policy=1)
    trusted = measuring.check(
        MeasureBlob.parse((CASE / "measure.bin").read_bytes()),
        Expectation(Mode.SEV, bytes.fromhex(v["launch_digest"]), (), Area(0, 0)),
        api=ApiVersion(v["api_major"], v["api_minor"]),
        build=v["build"],
    )
    header, data = trusted.seal(
        (CASE / "secret_plain.bin").read_bytes(), entropy=These(bytes.fromhex(v["secret_iv"]))
    )
    assert (CASE / "secret_hdr.bin").read_bytes() == header
    assert (CASE / "secret_trans.bin").read_bytes() == data


def trusted_with(area: Area = NO_AREA) -> Trusted:
    launch = a_launch(KEYS, digest=bytes(32))
    return Measuring(KEYS, policy=1).check(
        launch.blob, Expectation(Mode.SEV, bytes(32), (), area), api=launch.api, build=launch.build
    )


def test_only_this_launch_opens_the_packet() -> None:
    trusted = trusted_with()
    header, data = trusted.seal(secret.raw(b"disk key"))
    parsed = PacketHeader.parse(header)
    good = packet.open_packet(
        KEYS, parsed, data, context=CONTEXT_SECRET, guest_len=len(data), measure=trusted.measure
    )
    assert b"disk key".ljust(16, b"\x00") == good
    for twin, measure in ((data, flipped(trusted.measure, 0)), (flipped(data, 5), trusted.measure)):
        with pytest.raises(BadMeasurement):
            packet.open_packet(
                KEYS, parsed, twin, context=CONTEXT_SECRET, guest_len=len(data), measure=measure
            )


def test_no_iv_is_used_twice() -> None:
    trusted = trusted_with()
    ivs = {PacketHeader.parse(trusted.seal(bytes(16))[0]).iv for _ in range(50)}
    assert 50 == len(ivs)


def test_a_table_holds_what_was_put_in() -> None:
    entries = [(DISK_PASSPHRASE, b"one"), (UUID(int=7), bytes(100))]
    assert entries == parse(secret.table_of(entries))
    assert 0 == len(secret.table_of(entries)) % 16


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "no secret"),
        ([(DISK_PASSPHRASE, b"")], "is empty"),
        ([(UUID(int=0), b"x")], "zero GUID"),
        ([(DISK_PASSPHRASE, b"x"), (DISK_PASSPHRASE, b"y")], "stands twice"),
        ([(DISK_PASSPHRASE, bytes(16384 - 39))], "16384 at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_no_guest_could_read_is_refused(entries: list[tuple[UUID, bytes]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        secret.table_of(entries)


def test_the_limits_are_exact() -> None:
    assert 16384 == len(secret.table_of([(DISK_PASSPHRASE, bytes(16384 - 40))]))
    assert 16384 == len(secret.raw(bytes(16384)))
    for size, why in ((0, "empty"), (16385, "16384 at most")):
        with pytest.raises(ValueError, match=why):
            secret.raw(bytes(size))


@pytest.mark.parametrize("size", [0, 15, 17, 16400])
def test_what_the_firmware_would_refuse_is_not_sealed(size: int) -> None:
    with pytest.raises(ValueError, match="the secret has"):
        trusted_with().seal(bytes(size))


def test_a_secret_fits_the_area_that_the_image_announces() -> None:
    area = Area(0x80C000, 32)
    trusted_with(area).seal(bytes(32))
    with pytest.raises(ValueError, match="0x80c000 has 32"):
        trusted_with(area).seal(bytes(48))


def test_an_unchecked_measurement_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Measuring(KEYS, policy=0).dangerously_trust(bytes(31))
