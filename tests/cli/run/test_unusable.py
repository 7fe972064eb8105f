"""`cbit run` with what cannot be run: one sentence, exit code 2, and nothing is left behind."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cbit.cli import main
from cbit.spec.linux_boot.boot_params import XLoadFlags
from cbit.testing.kernels import a_kernel
from cli.run import kernels

GOOD = kernels.small(kernels.POWER_OFF + kernels.HALT)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: bytes | None, *words: str) -> str:
    """Run it with 32 MiB; give the sentence."""
    report = tmp_path / "out.json"
    given = ["--report", str(report)]
    if kernel is not None:
        (tmp_path / "kernel").write_bytes(kernel)
        given += ["--kernel", str(tmp_path / "kernel")]
    code = main(["run", "--memory", "32M", *given, *words])
    printed = capsys.readouterr()
    assert (2, "") == (code, printed.out)
    assert not report.exists()
    (sentence,) = (line for line in printed.err.splitlines() if line.startswith("cbit run: "))
    return sentence


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (b"", "not a Linux kernel: a file of 0 bytes"),
        (b"just a file".ljust(8192), "not a Linux kernel: no setup header"),
        (b"\x7fELF".ljust(8192), "it is an ELF file"),
        (a_kernel(xloadflags=XLoadFlags(0)), "a 32-bit kernel"),
        (GOOD[:-16], "the kernel is truncated"),
        (a_kernel(init_size=40 << 20), "too little memory: the kernel needs 56M while it starts"),
    ],
    ids=["empty", "text", "elf", "32-bit", "truncated", "memory"],
)
def test_a_file_that_is_no_kernel_for_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: bytes, words: str
) -> None:
    assert words in refused(tmp_path, capsys, kernel)


def test_an_initrd_beyond_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "initrd").write_bytes(bytes(31 << 20))
    assert "48M" not in (sentence := refused(tmp_path, capsys, GOOD, "--initrd", str(tmp_path / "initrd")))
    assert "the initrd of 32505856 bytes does not fit" in sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--firmware", "OVMF.fd"], "guest firmware is not executed yet"),
        (["--policy", "NODBG"], "--policy belongs to --mode sev"),
        (["--mode", "sev", "--policy", "ES"], "demands SEV-ES, whose guests are not executed"),
        (["--cache", "100"], "--cache 100: whole pages of 4096 bytes"),
        (["--cache", "0"], "--cache 0: whole pages"),
        (["--cache", "4K", "--timeout", "2"], "--cache 4K: whole pages of 4096 bytes, and 256K at least"),
        (["--cache", "252K"], "--cache 252K: whole pages of 4096 bytes, and 256K at least"),
        (["--cache", "262145"], "--cache 262145: whole pages"),
        (["--until", ""], "an empty text is there at once"),
        (["--append", "a\nb"], "the command line holds '\\n'"),
        (["--dump-dram", "/no/such/folder/dump"], "there is no such folder"),
        (["--dump-dram", "/"], "--dump-dram /: is there already, and is no regular file"),
        (["--dump-dram", "/dev/full"], "--dump-dram /dev/full: is there already, and is no regular file"),
        (["--report", "/"], "--report /: Is a directory"),
        (["--report", "/proc/report"], "--report /proc/report: "),
        (["--disk", "/no/such/disk"], "/no/such/disk: No such file or directory"),
        (["--initrd", "/no/such/initrd"], "/no/such/initrd: No such file or directory"),
        (["--timeout", "0"], "'0' is no number of seconds"),
        (["--memory", "5G"], "3072M at most"),
        (["--profile", "turin"], "no profile 'turin'"),
        (["--state", "/no/such/machine"], "/no/such/machine"),
        (["--state", "/no/such/machine", "--profile", "garbage"], "no profile 'garbage'"),
        (["--guest", "a", "--guest", "a"], "--guest a: there is one of that name already"),
        (["--guest", "a", "--guest", "b,key=c,mode=sev"], "no encrypted guest 'c' was named before it"),
        (["--guest", "a", "--guest", "b,key=a,mode=sev"], "no encrypted guest 'a' was named before it"),
        (["--guest", "a,mode=sev", "--guest", "b,key=a"], "key belongs to mode=sev"),
        (["--guest", ",mode=sev"], "it begins with the guest's name"),
        (["--guest", "a,colour=red"], "'colour=red' is none of mode=…"),
        (["--guest", "a,mode=sme"], "under sme the kernel is the host itself"),
        (["--guest", "a,memory=many"], "memory: 'many' is no size"),
        (["--guest", "a,append=x,,y=1,,\n"], "the command line holds '\\n'"),
        (["--guest", "a", "--mode", "sme"], "nothing runs beside it"),
        (["--guest", "a", "--disk", "disk"], "--disk: whose is it?"),
        (["--guest", "a,mode=none,policy=NODBG"], "--guest a: --policy belongs to --mode sev"),
        (["--guest", "a", "--guest", "b,memory=2M"], "--guest b: too little memory"),
        (["--guest", "a,initrd=/no/such/initrd"], "--guest a: /no/such/initrd: No such file or directory"),
    ],
)
def test_an_argument_that_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refused(tmp_path, capsys, GOOD, *words)


def test_without_a_kernel_there_is_nothing_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--kernel is wanted" in refused(tmp_path, capsys, None)


@pytest.mark.parametrize("data", [b"", bytes(4096)])
def test_a_secret_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    (tmp_path / "secret").write_bytes(data)
    refused(tmp_path, capsys, GOOD, "--secret", str(tmp_path / "secret"))


def test_a_platform_without_engine_says_so_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64" in refused(tmp_path, capsys, GOOD)
