"""What the guest's disk is: a romfs under XTS."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.romfs import romfs

KEY = bytes(range(64))


def read_romfs(image: bytes) -> dict[str, bytes]:
    """Walk the root folder as the kernel does, checking every checksum."""

    def words(data: bytes) -> int:
        return int(sum(struct.unpack(f">{len(data) // 4}I", data))) & 0xFFFF_FFFF

    def name_at(at: int) -> tuple[str, int]:
        end = image.index(b"\x00", at)
        return image[at:end].decode(), at + (end - at) // 16 * 16 + 16

    assert image[:8] == b"-rom1fs-"
    size = int.from_bytes(image[8:12], "big")
    assert len(image) >= size
    assert words(image[: min(512, len(image))]) == 0
    _, at = name_at(16)
    files, root = {}, at
    while at:
        following, info, length, _ = struct.unpack_from(">4I", image, at)
        name, data = name_at(at + 16)
        assert words(image[at:data]) == 0
        if name == ".":
            assert (1, root) == (following & 7, info)
        elif following & 7 == 2:
            files[name] = image[data : data + length]
        else:
            assert ("..", 0, root) == (name, following & 7, info)
        at = following & ~15
        assert at < size
    return files


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=40),
        st.binary(max_size=2000),
        max_size=6,
    )
)
def test_a_file_system_gives_back_its_files(files: dict[str, bytes]) -> None:
    image = romfs(files)
    assert files == read_romfs(image)
    assert 0 == len(image) % 1024


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\x00", "ä"])
def test_a_name_that_the_kernel_could_not_read_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of a file"):
        romfs({name: b""})


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
    sealed = encrypted_disk.encrypt(romfs({"a": b"text"}), KEY)
    assert b"-rom1fs-" != encrypted_disk.decrypt(sealed, KEY[::-1])[:8]


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY[:33], KEY[:63], KEY + b"\x00", bytes(64)])
def test_a_key_that_xts_does_not_take_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        encrypted_disk.encrypt(b"x", key)


def test_half_a_sector_is_no_image() -> None:
    with pytest.raises(ValueError, match="sectors of 512"):
        encrypted_disk.decrypt(bytes(511), KEY)
