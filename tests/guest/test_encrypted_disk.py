"""What the guest's disk is: an archive under XTS."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.guest.linux import encrypted_disk

KEY = bytes(range(64))
RequireProgram = Callable[[str, str], list[str]]


FILES = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=40),
    st.binary(max_size=2000),
    max_size=6,
)


@given(FILES)
def test_an_archive_gives_back_its_files(files: dict[str, bytes]) -> None:
    image = encrypted_disk.archive(files)
    with tarfile.open(fileobj=io.BytesIO(image)) as tar:
        assert files == {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    assert image == encrypted_disk.archive(dict(reversed(files.items())))
    assert bool(files) is encrypted_disk.is_archive(image)


@pytest.mark.oracle
def test_the_systems_own_tar_unpacks_it(require_program: RequireProgram, tmp_path: Path) -> None:
    tar = require_program("tar", "any distribution has it")
    files = {"note": b"a line\n", ".hidden": bytes(range(256)) * 9}
    (tmp_path / "disk").write_bytes(encrypted_disk.archive(files))
    (tmp_path / "out").mkdir()
    subprocess.run([*tar, "-xf", tmp_path / "disk", "-C", tmp_path / "out"], check=True)
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\x00", "ä", 101 * "x"])
def test_a_name_that_the_guest_could_not_use_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        encrypted_disk.archive({name: b""})


def test_a_sector_is_a_data_unit_of_ieee_1619() -> None:
    # Vector 4 of the standard: data unit 0, 512 bytes, AES-128.
    key = bytes.fromhex("27182818284590452353602874713526" + "31415926535897932384626433832795")
    sealed = encrypted_disk.encrypt(bytes(range(256)) * 2, key)
    assert "27a7479befa1d476489f308cd4cfa6e2" == sealed[:16].hex()
    # Vector 5: the result of vector 4 in data unit 1.
    assert (
        "264d3ca8512194fec312c8c9891f279f" == encrypted_disk.encrypt(bytes(512) + sealed, key)[512:528].hex()
    )


@given(plain=st.binary(max_size=2000), size=st.sampled_from(encrypted_disk.KEY_SIZES))
def test_what_is_sealed_opens_with_its_key(plain: bytes, size: int) -> None:
    sealed = encrypted_disk.encrypt(plain, KEY[:size])
    assert 0 == len(sealed) % 512
    assert plain == encrypted_disk.decrypt(sealed, KEY[:size])[: len(plain)]


def test_equal_sectors_do_not_look_equal() -> None:
    sealed = encrypted_disk.encrypt(bytes(1024), KEY)
    assert sealed[:512] != sealed[512:]


def test_another_key_gives_noise() -> None:
    sealed = encrypted_disk.encrypt(encrypted_disk.archive({"a": b"text"}), KEY)
    assert encrypted_disk.is_archive(encrypted_disk.decrypt(sealed, KEY))
    assert not encrypted_disk.is_archive(encrypted_disk.decrypt(sealed, KEY[::-1]))


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY[:33], KEY[:63], KEY + b"\x00", bytes(64)])
def test_a_key_that_xts_does_not_take_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        encrypted_disk.encrypt(b"x", key)


def test_half_a_sector_is_no_image() -> None:
    with pytest.raises(ValueError, match="sectors of 512"):
        encrypted_disk.decrypt(bytes(511), KEY)
