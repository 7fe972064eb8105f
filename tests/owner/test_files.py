"""The owner's files: keys for their owner's eyes only, everything else whole or not at all."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from cbit.owner.files import TRANSPORT_KEYS, write_private, write_public, write_twins

KEYS = bytes(range(32))


def test_a_file_with_keys_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_private(tmp_path / TRANSPORT_KEYS, KEYS)
    finally:
        os.umask(old)
    assert KEYS == (tmp_path / TRANSPORT_KEYS).read_bytes()
    assert 0o600 == (tmp_path / TRANSPORT_KEYS).stat().st_mode & 0o777


def test_keys_are_never_written_over_others(tmp_path: Path) -> None:
    write_private(tmp_path / TRANSPORT_KEYS, KEYS)
    with pytest.raises(FileExistsError, match="holds keys"):
        write_private(tmp_path / TRANSPORT_KEYS, bytes(32))
    assert KEYS == (tmp_path / TRANSPORT_KEYS).read_bytes()


def test_keys_that_cannot_be_written_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / TRANSPORT_KEYS, KEYS)
    assert [] == list(tmp_path.iterdir())


def test_a_public_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "godh.cert"
    write_public(path, b"old")
    write_public(path, b"new")
    assert b"new" == path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*godh\.cert'"):
        write_public(path, b"newest")
    assert [path] == list(tmp_path.iterdir())
    assert b"new" == path.read_bytes()


def test_twins_hold_the_same_bytes(tmp_path: Path) -> None:
    plain, twin = write_twins(tmp_path / "launch_blob.bin", KEYS)
    assert "launch_blob.b64" == twin.name
    assert KEYS == plain.read_bytes() == base64.b64decode(twin.read_bytes(), validate=True)
