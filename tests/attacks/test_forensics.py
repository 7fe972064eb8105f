"""Tools on dumps: what is planted is found, what is not there is not, what is absent is named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.attacks import forensics
from cbit.attacks.forensics import Dump, Find, Wanted, aeskeyfind, own_scan, search, strings, volatility
from cbit.attacks.key_schedule import expand
from cbit.cli.demo.linux_story import ENCRYPTED, OPENED, PLAIN, surprises

RequireProgram = Callable[[str, str], list[str]]
KEY = bytes(range(64))
WANTED = Wanted(b"password-0123456789", b"Linux version 6.1.0-99-cloud-amd64", KEY)


@pytest.fixture
def full(tmp_path: Path) -> Dump:
    """A dump with everything in it, a page of zeros between each."""
    path = tmp_path / "full.bin"
    pieces = [
        b"PASSWORD=" + WANTED.password,
        WANTED.banner + b" (debian-kernel@lists.debian.org) (gcc-12) #1 SMP Debian 6.1.192-2\n",
        expand(KEY[:32]),
        expand(KEY[32:]),
    ]
    path.write_bytes(b"".join(piece.ljust(4096, b"\x00") + bytes(4096) for piece in pieces))
    return Dump("full", path)


@pytest.fixture
def noise(tmp_path: Path) -> Dump:
    path = tmp_path / "noise.bin"
    path.write_bytes(os.urandom(16 * 4096))
    return Dump("noise", path)


def test_our_own_scan_finds_all_and_nothing_in_noise(full: Dump, noise: Dump) -> None:
    assert [True] * 3 == [find.found for find in own_scan(full, WANTED)]
    assert [False] * 3 == [find.found for find in own_scan(noise, WANTED)]
    assert ["password", "kernel banner", "disk key's schedule"] == [f.what for f in own_scan(full, WANTED)]
    assert "2 times" == own_scan(full, WANTED)[2].words


def test_a_schedule_with_one_bit_changed_is_not_the_keys(tmp_path: Path) -> None:
    spoilt = bytearray(expand(KEY[:32]))
    spoilt[100] ^= 1
    (tmp_path / "dump").write_bytes(bytes(spoilt) + bytes(4096))
    assert not own_scan(Dump("spoilt", tmp_path / "dump"), WANTED)[2].found


def test_programs_read_a_dump_without_its_pages_of_zeros(full: Dump) -> None:
    assert 4 * 4096 == full.packed.stat().st_size
    assert 8 * 4096 == full.path.stat().st_size


def test_answers_come_dump_by_dump_whoever_is_quicker(
    full: Dump, noise: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CBIT_VOL", raising=False)
    answers = list(search([noise, full], WANTED))
    assert ["noise"] * 6 + ["full"] * 6 == [find.dump for find in answers]
    assert [find.tool for find in answers[:6]] == [find.tool for find in answers[6:]]


def test_what_is_not_here_is_named_with_its_package(full: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CBIT_VOL", raising=False)
    absent = [find for find in search([full], WANTED) if find.found is None]
    assert [
        ("strings", "not here: install binutils"),
        ("aeskeyfind", "not here: install aeskeyfind"),
        ("volatility3", "not here: install volatility3"),
    ] == [(find.tool, find.words) for find in absent]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo broken >&2; exit 3", "failed with exit code 3: broken"),
        ("exit 4", "failed with exit code 4: no reason given"),
        ("sleep 60", "failed: .*timed out"),
    ],
)
def test_a_program_that_fails_has_found_nothing_either_way(
    full: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    program = tmp_path / "vol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CBIT_VOL", str(program))
    monkeypatch.setattr(forensics, "SECONDS", 0.2)
    find = volatility(full, WANTED)
    assert find.found is None
    assert re.search(words, find.words)


@pytest.mark.oracle
def test_strings_finds_the_password(require_program: RequireProgram, full: Dump, noise: Dump) -> None:
    require_program("strings", "apt install binutils")
    assert (True, False) == (strings(full, WANTED).found, strings(noise, WANTED).found)


@pytest.mark.oracle
def test_aeskeyfind_finds_both_halves(require_program: RequireProgram, full: Dump, noise: Dump) -> None:
    require_program("aeskeyfind", "apt install aeskeyfind")
    assert "2 of 2 halves, 2 keys in all" == aeskeyfind(full, WANTED).words
    assert aeskeyfind(noise, WANTED).found is False


@pytest.mark.oracle
def test_volatility_finds_the_banner(require_program: RequireProgram, full: Dump, noise: Dump) -> None:
    require_program("vol", "pip install volatility3")
    assert (True, False) == (volatility(full, WANTED).found, volatility(noise, WANTED).found)


def finds(**changes: bool | None) -> list[Find]:
    usual: dict[str, bool | None] = {ENCRYPTED: False, OPENED: True, PLAIN: True}
    return [Find("scan", "password", dump, found, "") for dump, found in (usual | changes).items()]


@pytest.mark.parametrize(
    ("dump", "found", "words"),
    [
        (ENCRYPTED, True, "the password was found in the dump of the encrypted guest"),
        (OPENED, False, "was not found in the dump of the encrypted guest, opened by the lab"),
        (PLAIN, False, "was not found in the dump of the unencrypted guest"),
    ],
)
def test_a_control_that_fails_is_as_bad_as_a_leak(dump: str, *, found: bool, words: str) -> None:
    assert [] == list(surprises(finds()))
    assert [] == list(surprises(finds(**{dump: None})))
    (surprise,) = surprises(finds(**{dump: found}))
    assert words in surprise
