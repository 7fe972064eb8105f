"""``cbit owner measure`` for SEV-ES and SNP: what goes in, what comes out, what it is written as."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbit.crypto.session import TransportKeys
from cbit.owner.measure import Image, Kernel, Launch, Mode
from cbit.owner.receipt import CheckedReceipt
from cbit.owner.validate.wishes import read_wishes
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus
from cbit.spec.vmsa import SevFeatures
from cli.owner.day import Cli
from owner.images import NO_AREA, an_image
from owner.worlds import VECTORS, a_launch

MILAN = Vcpus(count=2, signature=0x00A00F11)
WORDS = ("--vcpus", "2", "--vcpu-type", "EPYC-Milan")
KEYS = TransportKeys.parse(bytes(range(32)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(an_image())
    return path


def measure(mode: str, image: Path, *words: str | Path) -> tuple[str | Path, ...]:
    return ("owner", "measure", "--mode", mode, "--firmware", image, *words)


VECTOR_FILE = VECTORS / "launch-digest" / "digests.json"
PUBLISHED = [v for v in json.loads(VECTOR_FILE.read_text()) if "vcpus" in v]


@pytest.mark.parametrize("v", PUBLISHED, ids=lambda v: f"{v['mode']}-{v['firmware']}-{v['cmdline']}")
def test_published_digests(cli: Cli, v: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    words: list[str | Path] = ["--vcpus", str(v["vcpus"]), "--vcpu-type", v["cpuid_fn1_eax"]]
    if v["kernel_hashes"]:
        words += ["--kernel", tmp_path / "empty", "--initrd", tmp_path / "empty"]
        words += ["--append", v["cmdline"]] if v["cmdline"] else []
    call = measure(v["mode"], VECTOR_FILE.with_name(v["firmware"]), *words)
    code, found = cli(*call)
    assert (0, v["digest"]) == (code, found["result"]["digest"])
    assert 0 == cli(*call, "--expect", v["digest"])[0]
    assert 1 == cli(*call, "--expect", v["digest"][:-1] + ("1" if v["digest"][-1] == "0" else "0"))[0]


@pytest.mark.parametrize(
    ("words", "vcpus"),
    [
        ((), MILAN),
        (("--vmsa", "init2"), MILAN),
        (("--vmsa", "init"), replace(MILAN, variant=Variant.INIT)),
        (("--vcpus", "9"), replace(MILAN, count=9)),
        (("--vcpu-type", "23:49:0"), replace(MILAN, signature=0x00830F10)),
        (("--guest-features", "DEBUG_SWAP"), replace(MILAN, features=SevFeatures.DEBUG_VIRT)),
        (("--hypervisor", "gce"), replace(MILAN, hypervisor=Hypervisor.GCE)),
    ],
    ids=str,
)
def test_every_word_about_the_vcpus_counts(
    cli: Cli, image: Path, words: tuple[str, ...], vcpus: Vcpus
) -> None:
    code, found = cli(*measure("sev-es", image, *WORDS, *words))
    expected = Launch(mode=Mode.SEV_ES, image=Image(image.read_bytes()), vcpus=vcpus).digest()
    assert (0, expected.hex()) == (code, found["result"]["digest"])
    told = found["result"]["vcpus"]
    assert (vcpus.count, vcpus.hypervisor.value) == (told["count"], told["hypervisor"])


def test_plain_sev_takes_words_about_vcpus_and_measures_none(cli: Cli, image: Path) -> None:
    code, found = cli(*measure("sev", image, *WORDS))
    assert (0, None) == (code, found["result"]["vcpus"])
    assert cli(*measure("sev", image))[1]["result"]["digest"] == found["result"]["digest"]


def test_notes_about_the_image_stand_beside_the_digest_on_stderr(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "code.fd").write_bytes(an_image(hashes=NO_AREA))
    (tmp_path / "ls").write_bytes(b"\x7fELF".ljust(4096, b"\x90"))
    for name, note in (("code.fd", "no area for kernel hashes"), ("ls", "no firmware table")):
        for output in ("hex", "base64"):
            call = ("owner", "measure", "--mode", "sev", "--firmware", tmp_path / name, "--output", output)
            code, out, err = cli.read(*call)
            assert (0, 1) == (code, len(out.splitlines()))
            assert err.startswith("cbit owner measure: note: ")
            assert note in err
            assert cli(*call)[0] == 0, "and --json stays one object"


def test_no_number_for_a_variable_store_in_any_mode(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "vars.fd").write_bytes(bytes(4096))
    for mode in (("sev",), ("sev-es", *WORDS), ("snp", *WORDS)):
        for output in ((), ("--output", "hex")):
            call = ("owner", "measure", "--mode", *mode, "--firmware", tmp_path / "vars.fd", *output)
            code, out, err = cli.read(*call)
            assert (2, "") == (code, out)
            assert "nothing is at its reset vector" in err


def test_the_digest_alone_for_scripts(cli: Cli, image: Path) -> None:
    digest = Launch(mode=Mode.SNP, image=Image(image.read_bytes()), vcpus=MILAN).digest()
    call = measure("snp", image, *WORDS)
    assert (0, f"{digest.hex()}\n", "") == cli.read(*call, "--output", "hex")
    assert (0, f"{base64.b64encode(digest).decode()}\n", "") == cli.read(*call, "--output", "base64")


def test_a_person_reads_inputs_vcpus_and_notes(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(an_image(hashes=NO_AREA))
    code, out, err = cli.read(*measure("sev-es", path, *WORDS))
    assert (0, "") == (code, err)
    assert (
        "vCPUs              2 × 0x00a00f11 (EPYC-Milan), init2, SEV features 0x0, as qemu starts them" in out
    )
    assert "note: no area for kernel hashes" in out
    assert "another digest: --vmsa init" in out
    code, out, _ = cli.read(*measure("snp", path, *WORDS))
    assert "metadata section   SECRETS, 0x1000 bytes: kind and address are measured, no contents" in out
    assert "--vmsa init" not in out


@pytest.mark.parametrize("mode", Mode)
def test_the_toml_is_a_wish_for_this_digest(cli: Cli, image: Path, tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "want.toml"
    code, found = cli(*measure(mode, image, *WORDS, "--toml", path))
    assert 0 == code
    assert (bytes.fromhex(found["result"]["digest"]),) == read_wishes(path.read_bytes(), source="x").digests
    before = path.read_bytes()
    code, found = cli(*measure(mode, image, *WORDS, "--toml", path))
    assert (2, before) == (code, path.read_bytes())
    assert "is there already and may hold other wishes" in found["reasons"][0]


def test_a_name_cannot_leave_its_comment(cli: Cli, tmp_path: Path) -> None:
    image = tmp_path / 'x\nmeasurement = "00"\n#.fd'
    image.write_bytes(an_image())
    assert 0 == cli(*measure("snp", image, *WORDS, "--toml", tmp_path / "want.toml"))[0]
    assert 1 == len(read_wishes((tmp_path / "want.toml").read_bytes(), source="x").digests)


def test_a_measured_es_launch_gives_a_receipt(cli: Cli, image: Path, tmp_path: Path) -> None:
    (tmp_path / "tk").write_bytes(KEYS.material())
    kernel = Kernel(kernel=b"kernel", cmdline="quiet")
    (tmp_path / "kernel").write_bytes(kernel.kernel)
    launch = Launch(mode=Mode.SEV_ES, image=Image(image.read_bytes(), image.name), kernel=kernel, vcpus=MILAN)
    reported = a_launch(KEYS, digest=launch.digest(), policy=5)
    (tmp_path / "launch.json").write_text(reported.to_json())
    call = measure("sev-es", image, *WORDS, "--kernel", tmp_path / "kernel", "--append", "quiet")
    check = ("--tk", tmp_path / "tk", "--launch-receipt", tmp_path / "launch.json", "--policy", "5")
    out = tmp_path / "checked.json"
    code, found = cli(*call, *check, "--receipt", out, "--toml", tmp_path / "want.toml")
    assert (0, "trusted") == (code, found["result"]["verdict"])
    receipt = CheckedReceipt.from_json(out.read_text(), KEYS.tik)
    assert launch.expectation() == receipt.expectation
    assert 1 == cli(*call, *check, "--vmsa", "init")[0]
    assert 1 == cli(*call, *check, "--vcpus", "3")[0]
    assert (tmp_path / "want.toml").exists()


def test_a_refused_launch_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "CODE_4M.fd"
    path.write_bytes(an_image(sections=None))
    code, found = cli(*measure("snp", path, *WORDS, "--toml", tmp_path / "want.toml"))
    assert (2, {}) == (code, found["result"])
    assert "no SEV metadata section" in found["reasons"][0]
    assert not (tmp_path / "want.toml").exists()


def test_a_command_line_is_bytes_as_qemu_takes_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "fw").write_bytes(an_image())
    (tmp_path / "kernel").write_bytes(b"a kernel")
    words = (
        "owner",
        "measure",
        "--mode",
        "sev",
        "--firmware",
        tmp_path / "fw",
        "--kernel",
        tmp_path / "kernel",
    )
    raw = b"a\xff\xfeb"
    code, found = cli(*words, "--append", os.fsdecode(raw))
    line = next(item for item in found["result"]["inputs"] if item["what"] == "command line")
    assert (0, 5, hashlib.sha256(raw + b"\x00").hexdigest()) == (code, line["size"], line["sha256"])
    code, found = cli(*words, "--append", "\ud800")
    assert (2, True) == (code, found["reasons"][0].startswith("--append: "))
    other = cli(*words, "--append", os.fsdecode(raw) + " ")[1]["result"]["digest"]
    code, found = cli(*words, "--append", os.fsdecode(raw), "--explain", "--expect", other)
    assert ["command line: with a trailing space"] == [
        cause.split(",")[0] for cause in found["result"]["explanation"]["causes"]
    ]
