"""``cbit owner secret``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbit.crypto import packet
from cbit.crypto.session import TransportKeys
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.secret_table import DISK_PASSPHRASE, parse
from cbit.spec.session import CONTEXT_SECRET, MeasureBlob, PacketHeader
from cli.owner.day import PASSPHRASE, Cli, measure, platform_launches
from owner.worlds import CASE, vector


def seal(checked: Path, launch: Path, passphrase: Path) -> tuple[str | Path, ...]:
    words = ("owner", "secret", "--receipt", checked, "--tk", launch / "tmp_tk.bin")
    return (*words, "--entry", f"{DISK_PASSPHRASE}:{passphrase}", "--out", launch / "packet")


def opened(launch: Path, measured: bytes) -> bytes:
    header = PacketHeader.parse((launch / "packet" / "packaged_secret_header.bin").read_bytes())
    data = (launch / "packet" / "packaged_secret.bin").read_bytes()
    keys = TransportKeys.parse((launch / "tmp_tk.bin").read_bytes())
    return packet.open_packet(
        keys, header, data, context=CONTEXT_SECRET, guest_len=len(data), measure=measured
    )


def test_secret_reaches_the_launch_that_was_checked(
    cli: Cli, checked: Path, launch: Path, passphrase: Path, reported: Path
) -> None:
    code, found = cli(*seal(checked, launch, passphrase))
    assert (0, 0x810000, True) == (code, found["result"]["guest_address"], found["result"]["simulated"])
    plain = opened(launch, LaunchReceipt.from_json(reported.read_text()).measure)
    assert [(DISK_PASSPHRASE, PASSPHRASE)] == parse(plain)
    for name in ("packaged_secret_header", "packaged_secret"):
        twin = base64.b64decode((launch / "packet" / f"{name}.b64").read_bytes(), validate=True)
        assert (launch / "packet" / f"{name}.bin").read_bytes() == twin
    assert PASSPHRASE.decode() not in json.dumps(found)


def test_secret_can_be_raw(cli: Cli, checked: Path, launch: Path, passphrase: Path, reported: Path) -> None:
    words = seal(checked, launch, passphrase)
    code, _ = cli(*words[:6], "--raw", passphrase, *words[8:])
    assert 0 == code
    plain = opened(launch, LaunchReceipt.from_json(reported.read_text()).measure)
    assert PASSPHRASE.ljust(32, b"\x00") == plain


def edit(**change: Any) -> Callable[[Path, Path], None]:
    def apply(checked: Path, launch: Path) -> None:
        checked.write_text(json.dumps(json.loads(checked.read_text()) | change))

    return apply


def forget_the_mac(checked: Path, launch: Path) -> None:
    value = json.loads(checked.read_text())
    del value["mac"]
    checked.write_text(json.dumps(value))


def give_the_platforms_receipt(checked: Path, launch: Path) -> None:
    checked.write_text((checked.parent / "launch.json").read_text())


def change_keys(checked: Path, launch: Path) -> None:
    keys = (launch / "tmp_tk.bin").read_bytes()
    (launch / "tmp_tk.bin").write_bytes(keys[16:] + keys[:16])  # TIK first: the usual mistake


@pytest.mark.parametrize(
    "case",
    [
        (edit(digest="00" * 32), 1),
        (edit(policy=0), 1),
        (edit(measure="00" * 32), 1),
        (edit(verified="chain verified", simulated=False), 1),
        (edit(more=1), 1),
        (forget_the_mac, 2),
        (give_the_platforms_receipt, 2),
        (change_keys, 1),
    ],
    ids=["digest", "policy", "measure", "provenance", "field", "mac", "unchecked", "keys"],
)
def test_secret_is_not_sealed_for_a_receipt_that_was_not_checked(
    cli: Cli,
    checked: Path,
    launch: Path,
    passphrase: Path,
    case: tuple[Callable[[Path, Path], None], int],
) -> None:
    spoil, expected = case
    spoil(checked, launch)
    code, found = cli(*seal(checked, launch, passphrase))
    assert (expected, {}) == (code, found["result"])
    assert not (launch / "packet").exists()


def test_secret_dangerously_unverified_says_so(cli: Cli, launch: Path, passphrase: Path) -> None:
    blob = base64.b64encode(bytes(MeasureBlob(measure=bytes(32), mnonce=bytes(16)))).decode()
    words = (
        "owner",
        "secret",
        "--dangerously-unverified",
        "--tk",
        launch / "tmp_tk.bin",
        "--raw",
        passphrase,
    )
    assert 2 == cli(*words, "--out", launch / "packet")[0]
    code, found = cli(*words, "--out", launch / "packet", "--measurement", blob)
    assert (0, True) == (code, found["result"]["dangerously_unverified"])
    assert opened(launch, bytes(32)).startswith(PASSPHRASE)


def test_an_unverified_chain_is_remembered_to_the_end(
    cli: Cli, certs: Path, firmware: Path, passphrase: Path, tmp_path: Path
) -> None:
    launch, reported, checked = (tmp_path / name for name in ("one", "launch.json", "checked.json"))
    words = ("--chain", certs / "pdh.cert", "--policy", "1", "--dangerously-unverified", "--out", launch)
    assert 0 == cli("owner", "session", *words)[0]
    reported.write_text(platform_launches(launch, firmware).to_json())
    code, found = cli(*measure(launch, firmware, reported), "--receipt", checked)
    assert (0, True) == (code, found["result"]["dangerously_unverified"])
    assert (0, True) == (
        (sealed := cli(*seal(checked, launch, passphrase)))[0],
        sealed[1]["result"]["dangerously_unverified"],
    )


@pytest.mark.parametrize(
    "case",
    [
        ("not-a-guid:x", "is not GUID:FILE"),
        (f"{DISK_PASSPHRASE}", "is not GUID:FILE"),
        (f"{DISK_PASSPHRASE}:", "is not GUID:FILE"),
        (f"{DISK_PASSPHRASE}:/no/such/file", "No such file"),
        ("00000000-0000-0000-0000-000000000000:{file}", "zero GUID"),
    ],
)
def test_secret_entries_that_cannot_be_used(
    cli: Cli, checked: Path, launch: Path, passphrase: Path, case: tuple[str, str]
) -> None:
    entry, reason = case
    words = seal(checked, launch, passphrase)
    code, found = cli(*words[:7], entry.format(file=passphrase), *words[8:])
    assert (2, True) == (code, reason in found["reasons"][0])


def test_secret_that_does_not_fit(cli: Cli, checked: Path, launch: Path, passphrase: Path) -> None:
    passphrase.write_bytes(bytes(3100))
    code, found = cli(*seal(checked, launch, passphrase))
    assert (2, True) == (code, "its area at 0x810000 has 3072" in found["reasons"][0])
    passphrase.write_bytes(bytes(20000))
    assert 2 == cli(*seal(checked, launch, passphrase))[0]


def test_the_synthetic_case_as_commands(cli: Cli, tmp_path: Path) -> None:
    """The flow of an independent program: its keys, its measurement, our verdict."""
    v = vector()
    (tmp_path / "tk").write_bytes(bytes.fromhex(v["tek"] + v["tik"]))
    blob = base64.b64encode((CASE / "measure.bin").read_bytes()).decode()
    words = (
        "owner",
        "measure",
        "--mode",
        "sev",
        "--firmware",
        CASE / "launch_data.bin",
        "--tk",
        tmp_path / "tk",
    )
    report = ("--measurement", blob, "--api-major", "0", "--api-minor", "24", "--build-id", "15")
    code, found = cli(*words, *report, "--policy", "0x1", "--receipt", tmp_path / "checked.json")
    assert (0, v["launch_digest"], v["measure"]) == (
        code,
        found["result"]["digest"],
        found["result"]["measure"],
    )
    assert 1 == cli(*words, *report, "--policy", "0x3")[0]
    assert (
        0
        == cli(
            *("owner", "secret", "--receipt", tmp_path / "checked.json", "--tk", tmp_path / "tk"),
            *("--raw", CASE / "secret_plain.bin", "--out", tmp_path),
        )[0]
    )


def test_keys_without_a_record_of_their_session_are_said_to_be_nobodys(
    cli: Cli, launch: Path, firmware: Path, reported: Path, tmp_path: Path
) -> None:
    (launch / "session.json").unlink()
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE)
    checked = tmp_path / "unrecorded.json"
    words = (*measure(launch, firmware, reported), "--policy", "1", "--receipt", checked)
    said = "platform not recorded: nobody knows whom these keys were made for"
    code, out, _ = cli.read(*words)
    assert (0, True) == (code, said in out)
    code, out, _ = cli.read(*seal(checked, launch, passphrase))
    assert (0, said) == (code, out.splitlines()[0])
    code, found = cli(*seal(checked, launch, passphrase))
    assert (0, None, None) == (code, found["result"]["chain_verified"], found["result"]["platform"])
    want = tmp_path / "wishes.toml"
    want.write_text("[policy]\ndebug = false\n")
    for evidence in (checked, reported):
        validate = ("owner", "validate", evidence, "--tk", launch / "tmp_tk.bin", "--want", want)
        code, found = cli(*validate)
        assert (1, False) == (code, found["result"]["platform_recorded"])
        assert ["verified: this launch does not say for whom its keys were made"] == [
            why.split(" (by default")[0] for why in found["reasons"]
        ]
        assert said in cli.read(*validate)[1]
    want.write_text("verified = false\n[policy]\ndebug = false\n")
    assert 0 == cli(*validate)[0], "the file may say otherwise"
    want.write_text("verified = true\n")
    assert 1 == cli(*validate)[0]


def test_a_record_tells_of_a_launch_receipt_too(
    cli: Cli, launch: Path, firmware: Path, reported: Path, tmp_path: Path
) -> None:
    digest = cli("owner", "measure", "--mode", "sev", "--firmware", firmware)[1]["result"]["digest"]
    want = tmp_path / "wishes.toml"
    want.write_text(f"measurement = '{digest}'\nverified = true\nsimulated = true\n")
    validate = ("owner", "validate", reported, "--tk", launch / "tmp_tk.bin", "--want", want)
    code, found = cli(*validate)
    assert (0, True, True) == (code, found["result"]["chain_verified"], found["result"]["platform_recorded"])
    assert "not recorded" not in cli.read(*validate)[1]
    want.write_text(f"measurement = '{'00' * 32}'\n")
    reasons = cli(*validate)[1]["reasons"]
    assert ["measurement", "verified"] == [why.split(":")[0] for why in reasons]
    record = launch / "session.json"
    record.write_text(record.read_text().replace('"verified":true', '"verified":false'))
    assert 1 == cli(*validate)[0], "an edited record is none"
