"""``cbit owner measure``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbit.owner.measure import Mode, expect
from cbit.spec.receipt import LaunchReceipt
from cli.owner.day import Cli, measure
from owner.worlds import VECTORS, flipped


def test_measure_without_keys_gives_the_digest(cli: Cli, firmware: Path) -> None:
    words = ("owner", "measure", "--mode", "sev", "--firmware", firmware)
    code, found = cli(*words)
    assert (0, expect(Mode.SEV, firmware.read_bytes()).digest.hex()) == (code, found["result"]["digest"])
    assert (
        found["result"]["digest"] in cli.read("owner", "measure", "--mode", "sev", "--firmware", firmware)[1]
    )


def test_measure_a_published_digest_with_kernel_hashes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    kernel = ("--kernel", tmp_path / "empty", "--initrd", tmp_path / "empty")
    folder, words = VECTORS / "launch-digest", ("owner", "measure", "--mode", "sev", "--firmware")
    code, found = cli(
        *words, folder / "ovmf_AmdSev_suffix.bin", *kernel, "--append", "console=ttyS0 loglevel=7"
    )
    assert "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff" == found["result"]["digest"]
    assert (0, True) == (code, found["result"]["kernel_hashes"])
    code, found = cli(*words, folder / "ovmf_OvmfX64_suffix.bin", *kernel)
    assert (2, True) == (code, "announces no area for kernel hashes" in found["reasons"][0])


def test_measure_accepts_the_launch_of_these_files(
    cli: Cli, launch: Path, firmware: Path, reported: Path
) -> None:
    code, out, err = cli.read(*measure(launch, firmware, reported))
    assert (0, "") == (code, err)
    assert "verdict: SIMULATED: the guest was launched from these files" == out.splitlines()[-1]


def test_measure_takes_the_report_in_words_too(
    cli: Cli, launch: Path, firmware: Path, reported: Path
) -> None:
    receipt = LaunchReceipt.from_json(reported.read_text())
    blob = base64.b64encode(bytes(receipt.blob)).decode()
    words = ("owner", "measure", "--mode", "sev", "--firmware", firmware, "--tk", launch / "tmp_tk.bin")
    report = ("--measurement", blob, "--api-major", "1", "--api-minor", "51", "--build-id", "3")
    assert 0 == cli(*words, *report)[0]
    assert 0 == cli(*words, *report, "--policy", "NODBG")[0]
    assert 1 == cli(*words, *report[:-1], "4")[0]
    assert 1 == cli(*words, *report, "--policy", "NODBG|NOKS")[0]
    assert 2 == cli(*words, *report[:-2])[0]
    assert 2 == cli(*words, *report, "--launch-receipt", reported)[0]


def test_measure_without_a_record_of_the_session(
    cli: Cli, launch: Path, firmware: Path, reported: Path
) -> None:
    (launch / "session.json").unlink()
    code, found = cli(*measure(launch, firmware, reported))
    assert (2, True) == (code, "--policy is wanted" in found["reasons"][0])
    code, found = cli(*measure(launch, firmware, reported), "--policy", "1")
    assert (0, None, None) == (code, found["result"]["platform"], found["result"]["chain_verified"])


Spoil = Callable[[Path, Path, Path], tuple[str, ...]]


def other_firmware(launch: Path, firmware: Path, reported: Path) -> tuple[str, ...]:
    firmware.write_bytes(flipped(firmware.read_bytes(), 99))
    return ()


def other_keys(launch: Path, firmware: Path, reported: Path) -> tuple[str, ...]:
    (launch / "session.json").unlink()
    (launch / "tmp_tk.bin").chmod(0o600)
    (launch / "tmp_tk.bin").write_bytes(bytes(32))
    return ("--policy", "1")


def keys_that_are_not_the_records(launch: Path, firmware: Path, reported: Path) -> tuple[str, ...]:
    (launch / "tmp_tk.bin").write_bytes(bytes(32))
    return ()


def lied_about(**change: Any) -> Spoil:
    def spoil(launch: Path, firmware: Path, reported: Path) -> tuple[str, ...]:
        reported.write_text(json.dumps(json.loads(reported.read_text()) | change))
        return ()

    return spoil


def asked(*words: str) -> Spoil:
    return lambda launch, firmware, reported: words


@pytest.mark.parametrize(
    "case",
    [
        (other_firmware, "the measurement does not match"),
        (other_keys, "the measurement does not match"),
        (keys_that_are_not_the_records, "session record: its MAC does not match"),
        (lied_about(nonce="00" * 16), "the measurement does not match"),
        (lied_about(build=4), "the measurement does not match"),
        (lied_about(policy=0), "launched with policy 0x0, the owner's record says 0x1"),
        (asked("--min-api", "1.52"), "older than the owner's minimum, API 1.52 build 0"),
        (asked("--min-api", "1.51", "--min-build", "4"), "older than the owner's minimum, API 1.51 build 4"),
        (asked("--policy", "0"), "opened for policy 0x1, not for 0x0"),
    ],
    ids=["firmware", "keys", "record", "nonce", "build", "policy", "min-api", "min-build", "own policy"],
)
def test_measure_refuses_and_writes_no_receipt(
    cli: Cli, launch: Path, firmware: Path, reported: Path, case: tuple[Spoil, str]
) -> None:
    spoil, reason = case
    words = spoil(launch, firmware, reported)
    out = firmware.parent / "checked.json"
    code, found = cli(*measure(launch, firmware, reported), *words, "--receipt", out)
    assert (1, {}) == (code, found["result"])
    assert reason in "; ".join(found["reasons"])
    assert not out.exists()


@pytest.mark.parametrize(
    "case",
    [
        (("--mode", "sev-es"), "--vcpu-type is wanted"),
        (("--mode", "snp"), "--vcpu-type is wanted"),
        (("--mode", "snp", "--vcpu-type", "EPYC"), "no SEV metadata section"),
        (("--mode", "sev-es", "--vcpu-type", "EPYC"), "no SEV-ES reset vector"),
        (("--mode", "sev-es", "--vcpu-type", "EPYC", "--vcpus", "0"), "at least one"),
        (("--vcpu-type", "host"), "is no CPU type"),
        (("--guest-features", "x"), "neither a number nor one of DEBUG_SWAP"),
        (("--mode", "snp", "--hypervisor", "gce", "--tk", "x"), "an SNP launch has no transport keys"),
        (("--mode", "snp", "--hypervisor", "gce", "--receipt", "x"), "an SNP guest gives a report"),
        (("--expect", "00"), "a digest has 32 bytes (SEV, SEV-ES) or 48 (SNP)"),
        (("--expect", "00" * 48), "a digest of SNP (--mode snp), or a measurement with its nonce"),
        (("--mode", "snp", "--hypervisor", "gce", "--explain", "--expect", "00" * 32), "--mode sev-es"),
        (("--explain", "--toml", "x"), "writes no file"),
        (("--explain", "--expect", "00" * 32, "--time-limit", "0"), "more than none"),
        (("--explain", "--expect", "00" * 32, "--also", "no-such-file"), "no-such-file"),
        (("--tk", "x", "--expect", "00" * 32), "one of them"),
        (("--receipt", "x"), "--receipt needs the session's keys: --tk"),
        (("--initrd", "x"), "belong to a --kernel"),
        (("--tk", "README.md"), "transport keys have 32 bytes"),
        (("--tk", "no-such-file"), "--launch-receipt, or also --measurement"),
        (("--measurement", "AAAA"), "3 bytes, must be 48"),
        (("--measurement", "?"), "not base64"),
        (("--api-major", "256"), "not in 0..255"),
        (("--firmware", "no-such-file"), "no-such-file"),
    ],
    ids=str,
)
def test_measure_says_what_it_cannot_use(
    cli: Cli,
    firmware: Path,
    reported: Path,
    case: tuple[tuple[str, ...], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, reason = case
    monkeypatch.chdir(VECTORS)  # README.md is there, and has not 32 bytes
    report = ("--launch-receipt", str(reported)) if words[1:] == ("README.md",) else ()
    code, found = cli("owner", "measure", "--mode", "sev", "--firmware", firmware, *words, *report)
    assert (2, True) == (code, reason in found["reasons"][0]), found["reasons"]


def test_measure_names_the_receipt_that_it_cannot_write(
    cli: Cli, launch: Path, firmware: Path, reported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "no-folder" / "checked.json"
    code, found = cli(*measure(launch, firmware, reported), "--receipt", out)
    assert (2, [f"{out}: No such file or directory"]) == (code, found["reasons"])


def test_measure_does_not_measure_an_es_guest_as_a_plain_one(
    cli: Cli, launch: Path, firmware: Path, reported: Path
) -> None:
    (launch / "session.json").unlink()
    code, found = cli(*measure(launch, firmware, reported), "--policy", "ES")
    assert (2, True) == (
        code,
        "demands SEV-ES, and hosts launch as it says: --mode sev-es" in found["reasons"][0],
    )


def test_measure_does_not_measure_a_plain_guest_as_an_es_one(
    cli: Cli, launch: Path, firmware: Path, reported: Path
) -> None:
    words = [*measure(launch, firmware, reported), "--vcpu-type", "EPYC"]
    words[words.index("sev")] = "sev-es"
    code, found = cli(*words)
    assert (2, True) == (code, "does not demand SEV-ES" in found["reasons"][0])
