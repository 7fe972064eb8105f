"""``cbit owner measure --explain``."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from cbit.crypto.session import TransportKeys
from cbit.owner.measure import Image, Kernel, Launch, Mode
from cbit.owner.vmsa import Variant, Vcpus
from cli.owner.day import Cli
from owner.images import an_image
from owner.worlds import a_launch

MILAN = Vcpus(count=2, signature=0x00A00F11)
KERNEL = Kernel(kernel=b"kernel", initrd=b"initrd", cmdline="quiet")
KEYS = TransportKeys.parse(bytes(range(32)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in (("OVMF.fd", an_image()), ("kernel", KERNEL.kernel), ("initrd", KERNEL.initrd)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "tk").write_bytes(KEYS.material())
    return tmp_path


def launch(mode: Mode) -> Launch:
    return Launch(mode=mode, image=Image(an_image()), kernel=KERNEL, vcpus=MILAN)


def explain(
    folder: Path, mode: Mode, *words: str | Path, firmware: str = "OVMF.fd"
) -> tuple[str | Path, ...]:
    files = ("--firmware", folder / firmware, "--kernel", folder / "kernel", "--initrd", folder / "initrd")
    vcpus = ("--vcpus", "2", "--vcpu-type", "EPYC-Milan")
    return ("owner", "measure", "--mode", mode, *files, "--append", "quiet", *vcpus, "--explain", *words)


@pytest.mark.parametrize("mode", Mode)
def test_without_a_value_it_shows_every_input_with_its_place(cli: Cli, folder: Path, mode: Mode) -> None:
    code, found = cli(*explain(folder, mode))
    assert 0 == code
    assert all(item["place"] for item in found["result"]["inputs"])
    assert "explanation" not in found["result"]
    out = cli.read(*explain(folder, mode))[1]
    assert "place: kernel kernel: its hash at 0x88 of the kernel-hash table" in out


@pytest.mark.parametrize("mode", Mode)
def test_it_names_the_cause(cli: Cli, folder: Path, mode: Mode) -> None:
    value = replace(launch(mode), kernel=replace(KERNEL, cmdline="quiet\n")).digest()
    for text in (value.hex(), value.hex().upper(), base64.b64encode(value).decode()):
        code, found = cli(*explain(folder, mode, "--expect", text))
        assert 1 == code
        assert ["command line: with a trailing newline"] == found["result"]["explanation"]["causes"]
        assert "what differs: command line: with a trailing newline" in found["reasons"][0]
    code, out, err = cli.read(*explain(folder, mode, "--expect", value.hex()))
    assert "cause: command line: with a trailing newline" in out
    assert err.startswith("cbit owner measure: the reported value is another launch's")


def test_a_value_that_matches_is_good(cli: Cli, folder: Path) -> None:
    call = explain(folder, Mode.SNP, "--expect", launch(Mode.SNP).digest().hex())
    code, found = cli(*call)
    assert (0, True) == (code, found["result"]["explanation"]["matches"])
    assert "the reported value is the one that these inputs give" in cli.read(*call)[1]


def test_it_says_what_it_excluded(cli: Cli, folder: Path) -> None:
    call = explain(folder, Mode.SEV, "--expect", "00" * 32, "--time-limit", "600")
    code, found = cli(*call)
    assert 1 == code
    explanation = found["result"]["explanation"]
    assert ([], False) == (explanation["causes"], explanation["matches"])
    assert f"none of {explanation['tried']} combinations" in found["reasons"][0]
    assert any(words.startswith("command line: ") for words in explanation["excluded"])
    assert "excluded:" in cli.read(*call)[1]


def test_a_short_time_is_kept_and_said(cli: Cli, folder: Path) -> None:
    call = explain(folder, Mode.SNP, "--expect", "00" * 48, "--time-limit", "0.001")
    assert "not finished in time: " in cli.read(*call)[1]


def test_a_measurement_is_explained_with_the_keys(cli: Cli, folder: Path) -> None:
    digest = replace(launch(Mode.SEV_ES), vcpus=replace(MILAN, variant=Variant.INIT)).digest()
    receipt = a_launch(KEYS, digest=digest, policy=5)
    words = ("--tk", folder / "tk", "--measurement", base64.b64encode(bytes(receipt.blob)).decode())
    version = ("--api-major", "1", "--api-minor", "51", "--policy", "5", "--build-id")
    code, found = cli(*explain(folder, Mode.SEV_ES, *words, *version, "3"))
    assert 1 == code
    assert ["VMSA variant: init (KVM_SEV_ES_INIT), not init2"] == found["result"]["explanation"]["causes"]
    assert 0 == cli(*explain(folder, Mode.SEV_ES, *words, *version, "3", "--vmsa", "init"))[0]
    code, found = cli(*explain(folder, Mode.SEV_ES, *words, *version, "4", "--vmsa", "init"))
    assert ["build: the firmware's build is 3, not 4"] == found["result"]["explanation"]["causes"]
    for key in (KEYS.tek, KEYS.tik):
        assert key.material().hex() not in str(found)


def test_the_es_bit_is_a_cause_and_no_error(cli: Cli, folder: Path) -> None:
    receipt = a_launch(KEYS, digest=launch(Mode.SEV_ES).digest(), policy=5)
    (folder / "launch.json").write_text(receipt.to_json())
    words = ("--tk", folder / "tk", "--launch-receipt", folder / "launch.json", "--policy", "1")
    causes = cli(*explain(folder, Mode.SEV_ES, *words))[1]["result"]["explanation"]["causes"]
    assert "launched with the 0x5 that the platform reports" in causes[0]


def test_an_image_that_cannot_be_launched_is_explained_by_its_neighbour(cli: Cli, folder: Path) -> None:
    (folder / "CODE_4M.fd").write_bytes(an_image(sections=None))
    value = launch(Mode.SNP).digest().hex()
    code, found = cli(*explain(folder, Mode.SNP, "--expect", value, firmware="CODE_4M.fd"))
    assert 1 == code
    assert None is found["result"]["digest"]
    assert ["firmware: OVMF.fd was launched, not CODE_4M.fd"] == found["result"]["explanation"]["causes"]
    assert "no SEV metadata section" in found["reasons"][0]
    code, found = cli(*explain(folder, Mode.SNP, firmware="CODE_4M.fd"))
    assert (1, "no SEV metadata section" in found["reasons"][0]) == (code, True)


def test_a_file_that_is_named_is_tried(cli: Cli, folder: Path) -> None:
    (folder / "older").write_bytes(b"older initrd")
    value = replace(launch(Mode.SEV), kernel=replace(KERNEL, initrd=b"older initrd")).digest().hex()
    _, found = cli(*explain(folder, Mode.SEV, "--expect", value, "--also", folder / "older"))
    assert ["initrd: older was loaded"] == found["result"]["explanation"]["causes"]
