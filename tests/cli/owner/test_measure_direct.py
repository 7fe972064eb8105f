"""`cbit owner measure` of a direct boot: without --firmware, --mode sev only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbit.cli import main
from cbit.cli.sizes import in_words, size
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec.address import GIB, MIB
from cbit.testing.kernels import a_kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(a_kernel())
    return path


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["owner", "measure", *words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_it_prints_the_digest_of_the_layout(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ran(
        capsys, "--json", "--mode", "sev", "--kernel", str(kernel), "--append", "quiet", "--memory", "128M"
    )
    result = json.loads(printed)["result"]
    launch = DirectLaunch(kernel=Kernel(kernel=a_kernel(), cmdline="quiet"), memory_size=128 * MIB)
    assert (0, launch.expectation().digest.hex()) == (code, result["digest"])
    assert {"base": launch.image.secret_gpa, "size": 0xC00} == result["secret_area"]
    assert not result["kernel_hashes"]


def test_the_expected_digest_is_compared(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = DirectLaunch(kernel=Kernel(kernel=a_kernel())).expectation().digest.hex()
    words = ["--mode", "sev", "--kernel", str(kernel), "--expect"]
    assert 0 == ran(capsys, *words, digest)[0]
    code, printed = ran(capsys, *words, f"{int(digest, 16) ^ 1:064x}")
    assert (1, True) == (code, "not the expected one" in printed)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--mode", "sev"], "--firmware is wanted"),
        (["--mode", "snp", "--kernel", "K"], "only --mode sev with a --kernel boots without it"),
        (["--mode", "sev-es", "--kernel", "K"], "only --mode sev with a --kernel boots without it"),
        (["--mode", "sev", "--kernel", "K", "--memory", "much"], "'much' is no size"),
        (["--mode", "sev", "--kernel", "K", "--memory", "16M"], "too little memory"),
        (
            ["--mode", "sev", "--kernel", "K", "--firmware", "K", "--memory", "64M"],
            "belongs to a direct boot",
        ),
        (["--mode", "sev", "--kernel", "K", "--initrd", "absent"], "absent"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kernel: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    code, printed = ran(capsys, *(str(kernel) if word == "K" else word for word in words))
    assert 2 == code
    assert reason in printed


@pytest.mark.parametrize(
    ("text", "count"), [("256M", 256 * MIB), ("1g", GIB), ("64MiB", 64 * MIB), ("4096", 4096), ("8k", 8192)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert count == size(text) == size(in_words(count))


def test_a_planted_cause_is_found(kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "vmlinuz.old"
    other.write_bytes(a_kernel(code=b"older"))
    launched = DirectLaunch(kernel=Kernel(kernel=other.read_bytes(), cmdline="quiet"), memory_size=512 * MIB)
    words = ["--mode", "sev", "--kernel", str(kernel), "--append", "quiet", "--explain", "--also", str(other)]
    code, printed = ran(capsys, *words, "--expect", launched.expectation().digest.hex())
    assert 1 == code
    assert "cause: memory: the guest has 512M, not 256M" in printed
    assert "cause: kernel: it is vmlinuz.old" in printed


def test_inputs_are_shown_with_their_places(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ran(capsys, "--mode", "sev", "--kernel", str(kernel), "--explain")
    assert 0 == code
    assert "place: kernel vmlinuz: SHA-256 over bytes 0x5000..0x7fff, at 0x1000000 in the guest" in printed
