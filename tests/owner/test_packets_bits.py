"""One flipped bit anywhere in a session blob or a secret packet, and whoever receives it refuses it.

The owner makes both.  What stands for the receiver is the arithmetic that its own half is checked with.
"""

from __future__ import annotations

import argparse
import base64

import pytest

from cbit.cli.owner.arguments import measure_blob
from cbit.crypto import ec, packet, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.session import unwrap
from cbit.owner import secret
from cbit.owner.measure import Expectation, Mode
from cbit.owner.session import Measuring, Session
from cbit.owner.verify.verdict import verify_chain
from cbit.spec import session as wire
from cbit.spec.errors import BadMeasurement, CbitError, WireError
from cbit.spec.firmware_table import Area
from owner.worlds import a_launch, emulated, flipped, scalar


def opened() -> Measuring:
    platform = verify_chain(emulated().chain, trust=[emulated().ark])
    return Session.open(platform, policy=1, entropy=SeededEntropy(5))


def test_no_bit_of_a_session_blob_can_be_flipped_unnoticed() -> None:
    measuring = opened()
    assert measuring.session is not None
    z = ec.shared_secret(scalar("pdh"), sev_cert.public_key(measuring.session.godh))
    good = bytes(measuring.session.blob)
    fields = wire.Session.FIELDS
    later = {*range(8 * fields["wrap_iv"].offset, 8 * fields["wrap_iv"].end)}
    later |= {*range(8 * fields["policy_mac"].offset, 8 * fields["policy_mac"].end)}
    for bit in range(8 * len(good)):
        twin = wire.Session.parse(flipped(good, bit))
        # WRAP_MAC does not cover WRAP_IV (§7.1): another IV gives other keys, and their policy MAC fails.
        with pytest.raises(BadMeasurement, match="policy MAC" if bit in later else "wrap MAC"):
            unwrap(twin, z=z, policy=1)
    assert measuring.keys == unwrap(measuring.session.blob, z=z, policy=1)


def test_no_bit_of_a_secret_packet_can_be_flipped_unnoticed() -> None:
    measuring = opened()
    launch = a_launch(measuring.keys, digest=bytes(32))
    trusted = measuring.check(
        launch.blob,
        Expectation(Mode.SEV, bytes(32), (), Area(0, 0)),
        api=launch.api,
        build=launch.build,
    )
    header, data = trusted.seal(secret.raw(b"disk key"), entropy=SeededEntropy(6))

    def receive(header: bytes, data: bytes) -> bytes:
        return packet.open_packet(
            measuring.keys,
            wire.PacketHeader.parse(header),
            data,
            context=wire.CONTEXT_SECRET,
            guest_len=len(data),
            measure=trusted.measure,
        )

    for bit in range(8 * len(header)):
        with pytest.raises((BadMeasurement, WireError)):
            receive(flipped(header, bit), data)
    for bit in range(8 * len(data)):
        with pytest.raises(BadMeasurement):
            receive(header, flipped(data, bit))
    assert receive(header, data).startswith(b"disk key")


def test_no_bit_of_a_measurement_can_be_flipped_unnoticed() -> None:
    measuring = opened()
    launch = a_launch(measuring.keys, digest=bytes(32))
    expectation = Expectation(Mode.SEV, bytes(32), (), Area(0, 0))
    good = bytes(launch.blob)
    for bit in range(8 * len(good)):
        with pytest.raises(CbitError, match="does not match"):
            measuring.check(
                wire.MeasureBlob.parse(flipped(good, bit)), expectation, api=launch.api, build=launch.build
            )


def test_base64_twins_hold_the_same_bytes_or_are_refused() -> None:

    good = base64.b64encode(bytes(a_launch(opened().keys, digest=bytes(32)).blob)).decode()
    kept = measure_blob(good)
    for at, letter in enumerate(good):
        for other in ("A", "B", "/", "=", " ", "\n", "-", "_", "é"):
            if other == letter:
                continue
            twin = good[:at] + other + good[at + 1 :]
            try:
                found = measure_blob(twin)
            except argparse.ArgumentTypeError:
                continue
            assert found != kept
