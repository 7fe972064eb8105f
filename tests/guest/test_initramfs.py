from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.guest.linux.initramfs import Initramfs
from cbit.spec.linux_boot import SECRET_AT, SECRET_SIZE, secret_page
from guest.archives import read_newc

RequireProgram = Callable[[str, str], list[str]]
NAME = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=9)


def an_archive() -> Initramfs:
    archive = Initramfs()
    archive.file("/init", b"#!/bin/sh\n", mode=0o755)
    archive.file("/deep/in/here/text", b"words")
    archive.link("/bin/sh", "busybox")
    archive.device("/dev/console", 5, 1)
    archive.folder("/proc")
    return archive


def test_folders_on_the_way_come_first() -> None:
    names = [entry.name for entry in read_newc(bytes(an_archive()))]
    assert [
        "init",
        *("deep", "deep/in", "deep/in/here", "deep/in/here/text"),
        *("bin", "bin/sh", "dev", "dev/console", "proc", "TRAILER!!!"),
    ] == names


def test_each_kind_of_entry_is_what_it_says() -> None:
    entries = {entry.name: entry for entry in read_newc(bytes(an_archive()))}
    assert (stat.S_IFREG | 0o755, b"#!/bin/sh\n") == (entries["init"].mode, entries["init"].data)
    assert (stat.S_IFLNK | 0o777, b"busybox") == (entries["bin/sh"].mode, entries["bin/sh"].data)
    assert stat.S_IFDIR | 0o755 == entries["proc"].mode
    console = entries["dev/console"]
    assert (stat.S_IFCHR | 0o600, (5, 1)) == (console.mode, console.numbers[9:11])


def test_nothing_depends_on_who_builds_it_or_when() -> None:
    assert bytes(an_archive()) == bytes(an_archive())
    for entry in read_newc(bytes(an_archive())):
        _inode, _mode, uid, gid, _links, mtime, *_ = entry.numbers
        assert (0, 0, 0) == (uid, gid, mtime)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("relative", "absolute and plain"),
        ("/", "absolute and plain"),
        ("/a/../b", "absolute and plain"),
        ("//a", "absolute and plain"),
        ("/a/", "absolute and plain"),
        ("/a\x00b", "not a path"),
        ("/" + "n" * 4095, "not a path"),
        ("/init", "there already"),
        ("/init/below", "no folder"),
        ("/bin/sh/below", "no folder"),
    ],
)
def test_a_path_that_cannot_be_is_refused_and_nothing_is_added(path: str, words: str) -> None:
    archive = an_archive()
    before = bytes(archive)
    with pytest.raises(ValueError, match=words):
        archive.file(path, b"x")
    assert before == bytes(archive)


@given(st.dictionaries(NAME, st.binary(max_size=100), max_size=8))
def test_what_goes_in_comes_out(files: dict[str, bytes]) -> None:
    archive = Initramfs()
    for name, data in files.items():
        archive.file(f"/{name}", data)
    *entries, trailer = read_newc(bytes(archive))
    assert files == {entry.name: entry.data for entry in entries}
    assert "TRAILER!!!" == trailer.name
    assert len({entry.numbers[0] for entry in entries}) == len(entries)


def test_the_secret_page_is_an_archive_whose_file_is_the_hole() -> None:
    folder, table, trailer = read_newc(secret_page())
    assert ("secret", stat.S_IFDIR | 0o500) == (folder.name, folder.mode)
    assert ("secret/table", stat.S_IFREG | 0o400) == (table.name, table.mode)
    assert bytes(SECRET_SIZE) == table.data
    assert "TRAILER!!!" == trailer.name
    page = bytearray(secret_page())
    page[SECRET_AT : SECRET_AT + SECRET_SIZE] = b"\xff" * SECRET_SIZE
    assert b"\xff" * SECRET_SIZE == read_newc(bytes(page))[1].data


def test_the_secret_page_may_follow_any_archive() -> None:
    whole = bytes(an_archive())
    joined = whole + bytes(-len(whole) % 4096) + secret_page()
    assert ["secret", "secret/table"] == [entry.name for entry in read_newc(joined)][-3:-1]


@pytest.mark.oracle
def test_cpio_reads_the_same(require_program: RequireProgram, tmp_path: Path) -> None:
    cpio = require_program("cpio", "apt install cpio")
    archive = an_archive()
    listed = subprocess.run([*cpio, "-t", "--quiet"], input=bytes(archive), capture_output=True, check=True)
    names = [entry.name for entry in read_newc(bytes(archive))][:-1]
    assert names == listed.stdout.decode().split()
    assert b"" == listed.stderr
    wanted = ["init", "deep/in/here/text", "bin/sh", "proc"]  # a device file wants root
    words = [*cpio, "-i", "-d", "--quiet", "--no-absolute-filenames", *wanted]
    subprocess.run(words, input=bytes(archive), cwd=tmp_path, check=True)
    assert b"words" == (tmp_path / "deep/in/here/text").read_bytes()
    assert "busybox" == str((tmp_path / "bin/sh").readlink())
    assert 0o755 == stat.S_IMODE((tmp_path / "init").stat().st_mode)
    assert 0 == (tmp_path / "init").stat().st_size - len(b"#!/bin/sh\n")


@pytest.mark.oracle
def test_cpio_reads_the_secret_page(require_program: RequireProgram) -> None:
    cpio = require_program("cpio", "apt install cpio")
    page = secret_page(b"the owner's words")
    listed = subprocess.run([*cpio, "-t", "--quiet"], input=page, capture_output=True, check=True)
    assert ["secret", "secret/table"] == listed.stdout.decode().split()
    taken = subprocess.run(
        [*cpio, "-i", "--quiet", "--to-stdout", "secret/table"], input=page, capture_output=True, check=True
    )
    assert b"the owner's words".ljust(SECRET_SIZE, b"\x00") == taken.stdout
