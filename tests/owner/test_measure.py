"""The digest that a launch must have, and the receipt that shows that it had it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.owner.errors import Unmeasurable, Untrusted
from cbit.owner.measure import Expectation, Image, Kernel, Launch, Mode, expect, launch_digest
from cbit.owner.measure.snp import Chain
from cbit.owner.receipt import CheckedReceipt, SessionRecord
from cbit.owner.session import Measuring
from cbit.owner.validate.launch import Minimum, validate_launch
from cbit.owner.vmsa import Hypervisor, Vcpus
from cbit.spec.errors import BadMeasurement, NotModelled, WireError
from cbit.spec.firmware_table import HASH_TABLE, Area, build
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob
from cbit.spec.vmsa import SevFeatures
from owner.worlds import CASE, VECTORS, a_launch, emulated, flipped, keys_of, vector

DIGESTS = VECTORS / "launch-digest"
MEASURES = VECTORS / "launch-measurement"
MILAN = Vcpus(signature=0x00A00F11)


def vectors(name: str) -> list[dict[str, Any]]:
    return [v for v in json.loads((VECTORS / name).read_text()) if v.get("mode", "sev") == "sev"]


def of_vector(v: dict[str, Any], **vcpus: Any) -> Launch:
    kernel = Kernel(kernel=b"", initrd=b"", cmdline=v["cmdline"] or "") if v["kernel_hashes"] else None
    return Launch(
        mode=Mode(v["mode"]),
        image=Image((DIGESTS / v["firmware"]).read_bytes()),
        kernel=kernel,
        vcpus=Vcpus(count=v["vcpus"], signature=int(v["cpuid_fn1_eax"], 0), **vcpus)
        if "vcpus" in v
        else None,
    )


PUBLISHED = [v for v in json.loads((DIGESTS / "digests.json").read_text()) if v["mode"] in set(Mode)]


@pytest.mark.parametrize("v", PUBLISHED, ids=lambda v: f"{v['mode']}-{v['firmware']}")
def test_digests_of_firmware_kernel_hashes_and_vcpus(v: dict[str, Any]) -> None:
    assert v["digest"] == of_vector(v).digest().hex()
    assert v["digest"] == of_vector(v).expectation().digest.hex()


@pytest.mark.parametrize("v", [v for v in PUBLISHED if "vcpus" in v], ids=lambda v: f"{v['mode']}")
def test_published_digests_cover_every_vcpu(v: dict[str, Any]) -> None:
    launch = of_vector(v)
    assert launch.vcpus is not None
    for vcpus in (
        replace(launch.vcpus, count=2),
        replace(launch.vcpus, signature=0x00A00F11),
        replace(launch.vcpus, features=SevFeatures(0x20 | (launch.mode is Mode.SNP))),
        replace(launch.vcpus, hypervisor=Hypervisor.EC2),
    ):
        assert v["digest"] != replace(launch, vcpus=vcpus).digest().hex()


def test_the_chain_after_the_flash_pages_is_the_published_one() -> None:
    (v,) = (v for v in json.loads((DIGESTS / "digests.json").read_text()) if v["mode"] == "snp-flash-only")
    image = Image((DIGESTS / v["firmware"]).read_bytes())
    chain = Chain()
    chain.add_data(image.base, image.data)
    assert v["digest"] == chain.digest.hex()


@pytest.mark.parametrize("mode", Mode)
def test_the_digest_that_must_be_refused(mode: Mode) -> None:
    (v,) = (v for v in json.loads((DIGESTS / "digests.json").read_text()) if v.get("must_refuse"))
    with pytest.raises(Unmeasurable, match="announces no area for kernel hashes"):
        expect(mode, (DIGESTS / v["firmware"]).read_bytes(), kernel=Kernel(kernel=b""), vcpus=MILAN)


def an_image(hash_area: bytes | None = None, size: int = 4096) -> bytes:
    table = build({HASH_TABLE: hash_area} if hash_area is not None else {})
    return bytes(size - 32 - len(table)) + table + bytes(16) + b"\xe9" * 16


@pytest.mark.parametrize(
    ("firmware", "table", "why"),
    [
        (b"", None, "0 bytes"),
        (bytes(4095), None, "4095 bytes"),
        (bytes(4096), bytes(176), "announces no area"),
        (an_image(), bytes(176), "announces no area"),
        (an_image(bytes(8)), bytes(176), "announces no area"),
        (an_image((0x810C00).to_bytes(4, "little") + (175).to_bytes(4, "little")), bytes(176), "175 bytes"),
        (an_image((0x810C00).to_bytes(4, "little") + (176).to_bytes(4, "little")), bytes(175), "must be 176"),
    ],
)
def test_what_no_launch_can_measure_is_refused(firmware: bytes, table: bytes | None, why: str) -> None:
    with pytest.raises(Unmeasurable, match=why):
        launch_digest(firmware, table)


def test_a_malformed_firmware_table_is_refused() -> None:
    image = bytearray(an_image())
    image[-50:-48] = (0xFFFF).to_bytes(2, "little")
    with pytest.raises(WireError, match="firmware table"):
        expect(Mode.SEV, bytes(image))


def test_every_input_is_told_with_its_place() -> None:
    area = (0x810C00).to_bytes(4, "little") + (0x400).to_bytes(4, "little")
    kernel = Kernel(kernel=b"vmlinuz", initrd=b"", cmdline="quiet")
    found = expect(Mode.SEV, an_image(area), name="OVMF.fd", kernel=kernel)
    assert ["firmware", "command line", "initrd", "kernel", "kernel-hash table"] == [
        i.what for i in found.inputs
    ]
    assert hashlib.sha256(b"quiet\x00").hexdigest() == found.inputs[1].sha256
    assert hashlib.sha256(an_image(area) + kernel.table()).digest() == found.digest


def known(digest: bytes) -> Expectation:
    return Expectation(Mode.SEV, digest, (), Area(0, 0))


def of_case(name: str) -> tuple[Measuring, MeasureBlob, Expectation, ApiVersion, int]:
    folder = VECTORS / "synthetic-e2e" / name
    v = vector(folder)
    return (
        Measuring(keys_of(v), policy=int(v["policy"], 0)),
        MeasureBlob.parse((folder / "measure.bin").read_bytes()),
        known(bytes.fromhex(v["launch_digest"])),
        ApiVersion(v["api_major"], v["api_minor"]),
        v["build"],
    )


@pytest.mark.parametrize("name", ["case1-sev", "case2-sev-es"])
def test_the_measurement_of_the_synthetic_launch_is_accepted(name: str) -> None:
    measuring, blob, expectation, api, number = of_case(name)
    assert blob.measure == measuring.check(blob, expectation, api=api, build=number).measure


def test_the_digest_of_the_synthetic_launch_is_that_of_its_data() -> None:
    digest = expect(Mode.SEV, (CASE / "launch_data.bin").read_bytes()).digest
    assert vector()["launch_digest"] == digest.hex()


@pytest.mark.parametrize("v", vectors("launch-measurement/measure.json"), ids=lambda v: str(v["name"]))
def test_published_measurements_are_accepted_and_their_bad_twins_refused(v: dict[str, Any]) -> None:
    digest = bytes.fromhex(v.get("launch_digest", ""))
    if "firmware" in v:
        digest = expect(Mode.SEV, (MEASURES / v["firmware"]).read_bytes()).digest
    keys = TransportKeys(Key(bytes(16)), Key(bytes.fromhex(v["tik"])))
    api, number = ApiVersion(v["api_major"], v["api_minor"]), v["build"]
    blob = MeasureBlob(measure=bytes.fromhex(v["measure"]), mnonce=bytes.fromhex(v["mnonce"]))
    if "blob_base64" in v:
        assert base64.b64decode(v["blob_base64"]) == bytes(blob)
    measuring = Measuring(keys, policy=v["policy"])
    measuring.check(blob, known(digest), api=api, build=number)
    other_policy = Measuring(keys, policy=v["policy"] ^ 2)
    other_tik = Measuring(TransportKeys(keys.tek, Key(bytes(16))), policy=v["policy"])
    for owner, image, version, build_id in (
        (measuring, digest, ApiVersion(api.minor, api.major), number),
        (measuring, digest, api, number + 1),
        (measuring, flipped(digest, 0), api, number),
        (other_policy, digest, api, number),
        (other_tik, digest, api, number),
    ):
        with pytest.raises(BadMeasurement, match="does not match"):
            owner.check(blob, known(image), api=version, build=build_id)
    for bit in range(0, 8 * MeasureBlob.SIZE, 7):
        with pytest.raises(BadMeasurement):
            measuring.check(
                MeasureBlob.parse(flipped(bytes(blob), bit)), known(digest), api=api, build=number
            )


KEYS = TransportKeys.parse(bytes(range(64, 96)))
DIGEST = hashlib.sha256(b"image").digest()


def judge(launch: LaunchReceipt, *, policy: int = 1, minimum: Minimum | None = None) -> None:
    Measuring(KEYS, policy=policy).check(
        launch.blob,
        known(DIGEST),
        api=launch.api,
        build=launch.build,
        reported_policy=launch.policy,
        minimum=minimum,
    )


def test_another_policy_at_launch_is_named_as_the_cause() -> None:
    with pytest.raises(BadMeasurement, match="launched under policy 0x0, not under 0x1"):
        judge(a_launch(KEYS, digest=DIGEST, policy=0))


def test_a_platform_that_lies_about_the_policy_is_refused() -> None:
    with pytest.raises(Untrusted, match="launched with policy 0x0, the owner's record says 0x1"):
        judge(replace(a_launch(KEYS, digest=DIGEST), policy=0))


@pytest.mark.parametrize(
    ("minimum", "good"),
    [
        (Minimum(), True),
        (Minimum(ApiVersion(1, 51), 3), True),
        (Minimum(ApiVersion(1, 50), 99), True),  # a newer version has a build count of its own
        (Minimum(ApiVersion(1, 51), 4), False),
        (Minimum(ApiVersion(1, 52), 0), False),
        (Minimum(ApiVersion(2, 0), 0), False),
    ],
)
def test_firmware_older_than_the_owners_minimum_is_refused(minimum: Minimum, good: bool) -> None:
    launch = a_launch(KEYS, digest=DIGEST)
    if good:
        judge(launch, minimum=minimum)
    else:
        with pytest.raises(Untrusted, match="older than the owner's minimum"):
            judge(launch, minimum=minimum)


def test_firmware_older_than_the_policy_demands_is_refused() -> None:
    policy = 1 | 1 << 16 | 52 << 24
    with pytest.raises(Untrusted, match=r"older than 1\.52, which the policy demands"):
        judge(a_launch(KEYS, digest=DIGEST, policy=policy), policy=policy)


def test_all_violations_come_in_one_report() -> None:
    found = validate_launch(
        api=ApiVersion(0, 17),
        build=1,
        policy=0x18000001,
        reported_policy=1,
        minimum=Minimum(ApiVersion(1, 0)),
    )
    assert 3 == len(found)


def test_the_legacy_measurement_is_not_modelled() -> None:
    with pytest.raises(NotModelled, match="legacy"):
        judge(a_launch(KEYS, digest=DIGEST, api=ApiVersion(0, 16)))


def checked() -> CheckedReceipt:
    launch = a_launch(KEYS, digest=DIGEST)
    trusted = Measuring(KEYS, policy=1).check(launch.blob, known(DIGEST), api=launch.api, build=launch.build)
    assert trusted.receipt is not None
    return trusted.receipt


def test_a_checked_receipt_survives_its_file() -> None:
    text = checked().to_json(KEYS.tik)
    again = CheckedReceipt.from_json(text, KEYS.tik)
    assert checked() == again
    assert again.measure == Measuring(KEYS, policy=1).check_again(again).measure
    for key in (KEYS.tek, KEYS.tik):
        assert key.material().hex() not in text


def test_an_edited_receipt_is_refused_at_every_byte() -> None:
    text = checked().to_json(KEYS.tik).encode()
    for byte in range(len(text) - 1):  # the last one is the newline
        with pytest.raises((WireError, BadMeasurement)):
            CheckedReceipt.from_json(flipped(text, 8 * byte), KEYS.tik)


def test_a_receipt_under_other_keys_is_refused() -> None:
    with pytest.raises(BadMeasurement, match="other transport keys"):
        CheckedReceipt.from_json(checked().to_json(KEYS.tik), Key(bytes(16)))


def test_a_receipt_with_a_good_mac_is_still_recomputed() -> None:
    # Whoever holds TIK could write any receipt; what does not measure up is refused all the same.
    wrong = replace(checked(), measure=bytes(32))
    again = CheckedReceipt.from_json(wrong.to_json(KEYS.tik), KEYS.tik)
    with pytest.raises(BadMeasurement, match="does not match"):
        Measuring(KEYS, policy=1).check_again(again)


def test_a_session_record_is_no_receipt() -> None:
    record = SessionRecord(policy=1, pdh_sha256="00" * 32, root="", simulated=False, verified=True)
    with pytest.raises(WireError, match="format"):
        CheckedReceipt.from_json(record.to_json(KEYS.tik), KEYS.tik)


def test_a_launch_receipt_is_one_text() -> None:
    launch = a_launch(KEYS, digest=DIGEST)
    assert launch == LaunchReceipt.from_json(launch.to_json())
    assert launch.to_json() == LaunchReceipt.from_json(launch.to_json()).to_json()
    assert emulated().exported() == launch.chain
    pretty = json.dumps(json.loads(launch.to_json()), indent=4)
    assert launch == LaunchReceipt.from_json(pretty)


@pytest.mark.parametrize(
    "change",
    [
        {"measure": "00"},
        {"measure": "zz" * 32},
        {"measure": "AB" * 32},
        {"nonce": 1},
        {"api": {"major": 256, "minor": 0}},
        {"api": {"major": 1}},
        {"api": 1},
        {"build": -1},
        {"build": True},
        {"build": 1.0},
        {"policy": 1 << 32},
        {"policy": "1"},
        {"chain": "AAAA"},
        {"chain": "not base64"},
        {"format": "cbit launch receipt 2"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_launch_receipt_with_an_odd_field_is_refused(change: dict[str, Any]) -> None:
    value = json.loads(a_launch(KEYS, digest=DIGEST).to_json()) | change
    with pytest.raises(WireError):
        LaunchReceipt.from_json(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '{"format": 1}', '{"a":1,"a":1}', "[" * 100000])
def test_a_text_that_is_no_receipt_is_refused(text: str) -> None:
    for read in (
        lambda: LaunchReceipt.from_json(text),
        lambda: CheckedReceipt.from_json(text, KEYS.tik),
        lambda: SessionRecord.from_json(text, KEYS.tik),
    ):
        with pytest.raises(WireError):
            read()


@given(st.binary(max_size=200) | st.text(max_size=100))
def test_any_text_gives_a_typed_error(text: str | bytes) -> None:
    for read in (
        lambda: LaunchReceipt.from_json(text),
        lambda: CheckedReceipt.from_json(text, KEYS.tik),
    ):
        with pytest.raises(WireError):
            read()


@given(st.dictionaries(st.sampled_from(["format", "mac", "a"]), st.none() | st.text() | st.floats()))
def test_any_object_gives_a_typed_error(value: dict[str, Any]) -> None:
    value |= {"format": "cbit owner receipt 1", "mac": "00"}
    with pytest.raises((WireError, BadMeasurement)):
        CheckedReceipt.from_json(json.dumps(value), KEYS.tik)
