"""A journal is this campaign's or it is refused, and what it says of a verdict is worked out anew."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cbit
from attacks.lab.test_campaign import CASES, Fake
from cbit.attacks.lab import journal as journals
from cbit.attacks.lab.campaign import conduct
from cbit.attacks.lab.case import Case, Told
from cbit.attacks.lab.executors import Here
from cbit.attacks.lab.journal import BadJournal, Journal, Origin, _sum, judged
from cbit.attacks.lab.outcome import Mode
from cbit.guest.linux.files import LinuxFiles

KERNEL_A, KERNEL_B = {"kernel": "a", "initramfs": "i"}, {"kernel": "b", "initramfs": "i"}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    conduct(CASES, Fake(), journal=path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], object], *, sealed: bool = False) -> None:
    entries = lines(path)
    change(entries)
    if sealed:
        entries = [e | {"sum": _sum(e)} if "case" in e else e for e in entries]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def test_it_begins_with_what_its_results_come_out_of(journal: Path) -> None:
    header, *results = lines(journal)
    assert Origin.here(None).header == header
    assert 64 == len(header["sources"])
    assert {"cryptography", "numpy", "unicorn"} == set(header["packages"])
    assert len(CASES) == len(results)


@pytest.mark.parametrize(
    "contents",
    [
        b"nonsense\n",
        b"nonsense without an end of line",
        b"{}\n",
        b'{"case": {}, "result": {}}\n',
        b"[1]\n",
        b'{"journal": 2\n',
        b"\x7fELF\xff\xfe\n",
    ],
)
def test_a_file_that_is_no_journal_is_named_and_left_alone(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(contents)
    with pytest.raises(BadJournal, match=r"precious, line 1: not a journal of this lab"):
        conduct(CASES, Fake(lives=0), journal=path)
    assert contents == path.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_torn_header_is_written_again(tmp_path: Path, kept: int) -> None:
    path, whole = tmp_path / "journal", conduct(CASES, Fake())
    path.write_bytes(json.dumps(Origin.here(None).header).encode()[:kept])
    assert whole == conduct(CASES, Fake(), journal=path)
    assert whole == conduct(CASES, Fake(lives=0), journal=path)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("journal", 1, r"format: 1 there, 2 here"),
        ("cbit", "0.0.1", r"cbit: '0.0.1' there"),
        ("sources", "0" * 64, "cbit's sources have changed"),
        ("packages", {"unicorn": "1"}, r"packages: {'unicorn': '1'} there"),
    ],
)
def test_results_of_another_program_are_refused(journal: Path, name: str, value: object, why: str) -> None:
    rewrite(journal, lambda entries: entries[0].update({name: value}))
    before = journal.read_bytes()
    with pytest.raises(BadJournal, match=rf"journal, line 1: these are results of another campaign \({why}"):
        conduct(CASES, Fake(lives=0), journal=journal)
    assert before == journal.read_bytes()


def test_sources_are_all_that_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu" / "__pycache__").mkdir(parents=True)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "cpu" / "stub.S").write_text("nop")
    monkeypatch.setattr(cbit, "__file__", str(tmp_path / "__init__.py"))

    def digest() -> str:
        journals._sources.cache_clear()
        return journals._sources()

    before = digest()
    (tmp_path / "cpu" / "__pycache__" / "x.pyc").write_text("made of them")
    assert before == digest()
    (tmp_path / "cpu" / "stub.S").write_text("hlt")
    changed = digest()
    assert before != changed
    (tmp_path / "cpu" / "stub.S").rename(tmp_path / "cpu" / "stubs.S")
    assert changed != digest()
    journals._sources.cache_clear()


def test_results_of_another_kernel_are_refused(tmp_path: Path) -> None:
    path, plain = tmp_path / "journal", Origin.here(None)
    first, second = (dataclasses.replace(plain, linux=linux) for linux in (KERNEL_A, KERNEL_B))
    with Journal(path, plain) as begun:  # no row with a Linux
        assert {} == begun.known
    for _ in range(2):
        Journal(path, first).__exit__(None, None, None)
    assert [None, KERNEL_A] == [line["linux"] for line in lines(path)]
    Journal(path, plain).__exit__(None, None, None)
    with pytest.raises(BadJournal, match=r"line 2: these are results of another campaign \(another kernel\)"):
        Journal(path, second)
    assert 2 == len(lines(path))


def test_what_a_linux_is_made_of_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    files = LinuxFiles(kernel, tmp_path, tmp_path / "busybox", "here")
    monkeypatch.setattr(journals, "initramfs", lambda files, unlock: b"initramfs")
    before = Origin.here(files)
    kernel.write_bytes(b"Kernel")
    assert ["another kernel"] == Origin.here(files).differences(before.header)
    monkeypatch.setattr(journals, "initramfs", lambda files, unlock: b"another busybox")
    assert ["another kernel", "another initramfs"] == Origin.here(files).differences(before.header)


def test_a_line_that_was_edited_is_refused(journal: Path) -> None:
    rewrite(journal, lambda entries: entries[3]["result"].update(verdict="stopped", found=0))
    with pytest.raises(BadJournal, match="journal, line 4: the line is not as it was written"):
        conduct(CASES, Fake(lives=0), journal=journal)


def test_a_verdict_follows_from_what_was_found_and_never_from_the_journal(journal: Path) -> None:
    rewrite(journal, lambda e: e[1]["result"].update(verdict="stopped", expected="stopped"), sealed=True)
    assert conduct(CASES, Fake()) == conduct(CASES, Fake(lives=0), journal=journal)
    rewrite(journal, lambda e: e[1]["result"].update(found=0, as_expected=True), sealed=True)
    told = {json.dumps(t["seed"]) + t["mode"]: t for t in conduct(CASES, Fake(lives=0), journal=journal)}
    changed = told[json.dumps(lines(journal)[1]["case"]["seed"]) + lines(journal)[1]["case"]["mode"]]
    assert ("stopped", "succeeds", False) == tuple(
        changed[name] for name in ("verdict", "expected", "as_expected")
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"attack": "severed"}, "another case's: attack"),
        ({"seed": 9}, "another case's: seed"),
        ({"parameters": {"decay": 1}}, "another case's: parameters"),
        ({"found": 2}, "2 secrets found, of 1"),
        ({"found": -1}, "-1 secrets found"),
        ({"planted": 0, "found": 0}, "0 secrets found, of 0"),
        ({"note": None}, None),
    ],
)
def test_a_result_that_cannot_be_is_refused(journal: Path, change: Told, why: str | None) -> None:
    rewrite(journal, lambda entries: entries[2]["result"].update(change), sealed=True)
    if why is None:
        rewrite(journal, lambda entries: entries[2]["result"].pop("note"), sealed=True)
        why = "not a journal of this lab"
    with pytest.raises(BadJournal, match=f"line 3: .*{why}"):
        conduct(CASES, Fake(lives=0), journal=journal)


def test_a_case_that_there_is_not_any_more_is_refused(journal: Path) -> None:
    rewrite(journal, lambda entries: entries[1]["case"].update(attack="rowhammer"), sealed=True)
    with pytest.raises(BadJournal, match="line 2: no attack 'rowhammer'"):
        conduct(CASES, Fake(lives=0), journal=journal)


@pytest.mark.parametrize(
    ("name", "mode", "variant"),
    [
        ("replay", Mode.SEV, ""),
        ("replay", Mode.SEV_SNP, ""),
        ("host-read", Mode.SEV, ""),
        ("debug-policy", Mode.NONE, ""),
        ("debug-policy", Mode.SEV, "nodbg"),
    ],
)
def test_a_kept_result_is_judged_as_the_run_was(name: str, mode: Mode, variant: str) -> None:
    case = Case(name, mode, variant)
    ((_, told),) = Here().run([case])
    assert told == judged(case, json.loads(json.dumps(told)))
    assert told == judged(case, told | {"verdict": "partly", "as_expected": False, "why": "", "shown": "x"})


def test_two_campaigns_do_not_share_a_journal(journal: Path) -> None:
    before = journal.read_bytes()
    with Journal(journal, Origin.here(None)):
        with pytest.raises(BadJournal, match="journal is in use by another campaign"):
            Journal(journal, Origin.here(None))
        with pytest.raises(BadJournal, match="in use"):
            conduct(CASES, Fake(lives=0), journal=journal)
    assert before == journal.read_bytes()
    with Journal(journal, Origin.here(None)) as free_again:
        assert len(CASES) == len(free_again.known)


def test_a_journal_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for path in (Path(os.devnull), pipe, tmp_path):
        with pytest.raises(BadJournal, match=f"{path} is no regular file"):
            conduct(CASES, Fake(lives=0), journal=path)
