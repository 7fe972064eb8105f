"""``cbit owner vmsa``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.owner.day import Cli
from owner.images import an_image
from owner.worlds import VECTORS

PAGES = VECTORS / "vmsa"
MILAN = ("--vcpu-type", "EPYC-Milan")


def test_the_published_pages_are_built(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "OVMF.fd").write_bytes(an_image())
    starts: list[tuple[str, tuple[str | Path, ...]]] = [
        ("vmsa0.bin", ()),
        ("vmsa1.bin", ("--firmware", tmp_path / "OVMF.fd")),
        ("vmsa1.bin", ("--eip", "0x80B004")),
    ]
    for name, words in starts:
        out = tmp_path / "page"
        code, found = cli("owner", "vmsa", "build", *MILAN, "--vmsa", "init", *words, "--out", out)
        assert (0, 4096, "qemu") == (code, found["result"]["size"], found["result"]["hypervisor"])
        assert (PAGES / name).read_bytes() == out.read_bytes()


def test_a_page_is_shown_and_recognised(cli: Cli) -> None:
    code, found = cli("owner", "vmsa", "show", PAGES / "vmsa1.bin")
    assert 0 == code
    assert {"offset": 0x18, "value": "0x800000"} == found["result"]["fields"]["cs.base"]
    assert ("init", 0x80B004) == (found["result"]["initial"]["variant"], found["result"]["initial"]["eip"])
    assert "rax" not in found["result"]["fields"]
    assert "rax" in cli("owner", "vmsa", "show", "--all", PAGES / "vmsa1.bin")[1]["result"]["fields"]
    out = cli.read("owner", "vmsa", "show", PAGES / "vmsa1.bin")[1]
    assert "0x018  cs.base                  0x800000" in out
    assert "an initial page: qemu, init, 0x00a00f11 (EPYC-Milan)" in out


def test_a_page_that_has_run_is_said_to_have(cli: Cli, tmp_path: Path) -> None:
    page = bytearray((PAGES / "vmsa0.bin").read_bytes())
    page[0x1F8] = 1
    (tmp_path / "page").write_bytes(page)
    assert "not an initial page" in cli.read("owner", "vmsa", "show", tmp_path / "page")[1]


def test_two_pages_are_compared(cli: Cli) -> None:
    code, found = cli("owner", "vmsa", "diff", PAGES / "vmsa0.bin", PAGES / "vmsa1.bin")
    assert 1 == code
    assert ["cs.base", "rip"] == [difference["name"] for difference in found["result"]["differences"]]
    assert "cs.base at 0x18: 0xffff0000 in the first, 0x800000 in the second" == found["reasons"][0]
    assert (0, "equal\n", "") == cli.read("owner", "vmsa", "diff", PAGES / "vmsa0.bin", PAGES / "vmsa0.bin")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("build", "--out", "x"), "--vcpu-type is wanted"),
        (("build", *MILAN, "--out", "x", "--eip", "0x100000000"), "below 4 GiB"),
        (("build", *MILAN, "--out", "x", "--eip", "there"), "invalid"),
        (("build", *MILAN, "--out", "x", "--firmware", str(PAGES / "vmsa0.bin")), "no SEV-ES reset vector"),
        (("build", *MILAN, "--out", "x", "--eip", "0", "--firmware", "y"), "not allowed with"),
        (("show", str(VECTORS / "README.md")), "must be 4096"),
        (("diff", str(PAGES / "vmsa0.bin"), str(VECTORS / "README.md")), "second VMSA"),
        (("show", "no-such-file"), "no-such-file"),
        ((), "ACTION"),
    ],
    ids=str,
)
def test_what_cannot_be_used(
    cli: Cli, words: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = cli("owner", "vmsa", *words)
    assert (2, True) == (code, reason in found["reasons"][0]), found["reasons"]
    assert [] == list(tmp_path.iterdir())
