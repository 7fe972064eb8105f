"""The engine's modes: facts, published vectors, algebra, and what is refused (memory-encryption.md §9)."""

from __future__ import annotations

import copy
import gc
import mmap
import pickle
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Inside, MemoryCipher, Mode, Tweak, memory_cipher
from crypto.slow_modes import openssl_xts, xor

PAGE = 4096
PIECE = 1 << 17
ZEN1 = Tweak.zen1()


def material(mode: Mode, seed: str = "key") -> bytes:
    return SeededEntropy(seed).draw(KEY_BYTES[mode])


def a_cipher(mode: Mode, seed: str = "key", tweak: Tweak = ZEN1) -> MemoryCipher:
    return memory_cipher(mode, Key(material(mode, seed)), None if mode is Mode.XTS else tweak)


def noise(length: int, seed: str = "data") -> bytes:
    return SeededEntropy(seed).draw(length)


every_mode = pytest.mark.parametrize("mode", list(Mode))
both_ways = pytest.mark.parametrize("way", ["encrypt", "decrypt"])


def run(cipher: MemoryCipher, way: str) -> Callable[..., Any]:
    return cipher.encrypt if way == "encrypt" else cipher.decrypt


# Published vectors.

# origin: IEEE Std 1619-2007, annex B, XTS-AES-128 vectors 2, 3 and 4 (the last: its first 64 bytes);
# each also confirmed with OpenSSL's XTS. The data unit number is a page number here.
IEEE_1619 = [
    pytest.param(
        "11" * 16 + "22" * 16,
        0x3333333333,
        b"\x44" * 32,
        "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        id="2",
    ),
    pytest.param(
        "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0" + "22" * 16,
        0x3333333333,
        b"\x44" * 32,
        "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        id="3",
    ),
    pytest.param(
        "27182818284590452353602874713526" + "31415926535897932384626433832795",
        0,
        bytes(range(64)),
        "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
        "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412",
        id="4",
    ),
]


@pytest.mark.parametrize(("key", "unit", "plain", "cipher"), IEEE_1619)
def test_xts_gives_the_vectors_of_ieee_1619(key: str, unit: int, plain: bytes, cipher: str) -> None:
    engine = memory_cipher(Mode.XTS, Key(bytes.fromhex(key)), None)
    assert cipher == engine.encrypt(unit * PAGE, plain).hex()
    assert plain == engine.decrypt(unit * PAGE, bytes.fromhex(cipher))
    whole = plain + bytes(PAGE - len(plain))
    assert cipher == engine.encrypt(unit * PAGE, whole)[: len(plain)].hex()  # the path of whole pages


@pytest.mark.parametrize("page", [0, 1, 15, 16, 0xABCDE, 0xFFFFFFFF, (1 << 40) - 1])
def test_xts_equals_openssl_on_a_page(page: int) -> None:
    data = noise(PAGE)
    expected = openssl_xts(material(Mode.XTS), spa=page * PAGE, data=data)
    assert expected == a_cipher(Mode.XTS).encrypt(page * PAGE, data)
    assert data == a_cipher(Mode.XTS).decrypt(page * PAGE, expected)


@pytest.mark.parametrize(("first", "pages"), [(0, 64), (3, 61), (15, 2), (16, 16), ((1 << 40) - 40, 40)])
def test_xts_equals_openssl_on_a_range(first: int, pages: int) -> None:
    data = noise(pages * PAGE)
    expected = openssl_xts(material(Mode.XTS), spa=first * PAGE, data=data)
    assert expected == a_cipher(Mode.XTS).encrypt(first * PAGE, data)
    assert data == a_cipher(Mode.XTS).decrypt(first * PAGE, expected)


@pytest.mark.parametrize("block", [0, 1, 7, 8, 120, 121, 127, 128, 254, 255])
def test_xts_addresses_any_block_of_a_page_on_its_own(block: int) -> None:
    data = noise(PAGE)
    part = slice(16 * block, 16 * block + 16)
    expected = openssl_xts(material(Mode.XTS), spa=5 * PAGE, data=data)[part]
    assert expected == a_cipher(Mode.XTS).encrypt(5 * PAGE + 16 * block, data[part])


# Algebra of §9.2, with the published constants.

ADDRESSES = st.integers(0, (1 << 32) // 16 - 1).map(lambda block: 16 * block)
BLOCKS = st.binary(min_size=16, max_size=16)


@given(ADDRESSES, ADDRESSES, BLOCKS)
def test_an_xe_block_that_is_moved_decrypts_to_a_known_difference(p: int, q: int, m: bytes) -> None:
    xe = a_cipher(Mode.XE)
    moved = xe.decrypt(q, xe.encrypt(p, m))
    assert xor(m, ZEN1.at(p), ZEN1.at(q)) == moved
    assert xor(m, ZEN1.at(p ^ q)) == moved


@given(ADDRESSES, ADDRESSES, BLOCKS)
def test_an_xex_block_moves_with_a_correction_of_the_ciphertext(p: int, q: int, m: bytes) -> None:
    xex = a_cipher(Mode.XEX)
    difference = xor(ZEN1.at(p), ZEN1.at(q))
    assert xor(m, difference) == xex.decrypt(q, xor(xex.encrypt(p, m), difference))


def test_an_xex_block_that_is_moved_without_correction_is_garbage() -> None:
    xex, m = a_cipher(Mode.XEX), noise(16)
    assert xor(m, ZEN1.at(0x1000 ^ 0x2000)) != xex.decrypt(0x2000, xex.encrypt(0x1000, m))


def test_the_xe_move_does_nothing_for_xts() -> None:
    xts, m = a_cipher(Mode.XTS), noise(16)
    assert xor(m, ZEN1.at(0x1000 ^ 0x2000)) != xts.decrypt(0x2000, xts.encrypt(0x1000, m))


def test_equal_xe_ciphertext_at_two_addresses_reveals_the_difference_of_the_plaintexts() -> None:
    xe, m = a_cipher(Mode.XE), noise(16)
    other = xor(m, ZEN1.at(0x1000 ^ 0x5550))
    assert xe.encrypt(0x1000, m) == xe.encrypt(0x5550, other)


def test_zero_constants_show_repeated_blocks_in_a_page_of_zeros() -> None:
    # §9.2, the 1950X with older firmware.
    old = Tweak({bit: constant for bit, constant in ZEN1.constants.items() if bit not in {8, 9}})
    blocks = [a_cipher(Mode.XEX, tweak=tweak).encrypt(0, bytes(PAGE)) for tweak in (old, ZEN1)]
    assert [64, 256] == [len({page[at : at + 16] for at in range(0, PAGE, 16)}) for page in blocks]


# What ciphertext reveals, and what changes it (§9.3).


@every_mode
def test_same_key_address_and_plaintext_give_the_same_ciphertext(mode: Mode) -> None:
    cipher, data = a_cipher(mode), noise(PAGE)
    first = cipher.encrypt(0x7000, data)
    cipher.encrypt(0x9000, noise(PAGE, "other"))
    assert first == cipher.encrypt(0x7000, data) == a_cipher(mode).encrypt(0x7000, data)


@every_mode
def test_another_address_gives_other_ciphertext_in_every_block(mode: Mode) -> None:
    cipher, data = a_cipher(mode), noise(PAGE)
    here, there = (blocks_of(cipher.encrypt(spa, data)) for spa in (0x7000, 0x8000))
    assert all(a != b for a, b in zip(here, there, strict=True))
    assert 256 == len(set(blocks_of(cipher.encrypt(0x7000, bytes(PAGE)))))


@every_mode
def test_another_key_gives_other_ciphertext_and_other_plaintext_in_every_block(mode: Mode) -> None:
    mine, theirs, data = a_cipher(mode), a_cipher(mode, "another guest"), noise(PAGE)
    secret = mine.encrypt(0x7000, data)
    for other in (theirs.encrypt(0x7000, data), theirs.decrypt(0x7000, secret)):
        assert all(a not in {b, c} for a, b, c in zip(*map(blocks_of, (other, secret, data)), strict=True))


def test_the_two_keys_of_xts_have_their_places() -> None:
    key = material(Mode.XTS)
    swapped = memory_cipher(Mode.XTS, Key(key[16:] + key[:16]), None)
    assert swapped.encrypt(0, bytes(16)) != a_cipher(Mode.XTS).encrypt(0, bytes(16))


def test_other_constants_give_other_ciphertext() -> None:
    fresh = Tweak.random(SeededEntropy("next boot"))
    for mode in (Mode.XE, Mode.XEX):
        assert a_cipher(mode).encrypt(0x40, bytes(16)) != a_cipher(mode, tweak=fresh).encrypt(0x40, bytes(16))


@every_mode
@pytest.mark.parametrize("bit", [0, 127, 8 * 2048, 8 * PAGE - 1])
def test_one_flipped_bit_of_ciphertext_garbles_its_block_and_no_other(mode: Mode, bit: int) -> None:
    cipher, data = a_cipher(mode), noise(PAGE)
    wire = bytearray(cipher.encrypt(0x7000, data))
    wire[bit // 8] ^= 1 << bit % 8
    plain = cipher.decrypt(0x7000, wire)
    pairs = list(zip(blocks_of(data), blocks_of(plain), strict=True))
    assert [bit // 128] == [number for number, (old, new) in enumerate(pairs) if old != new]
    changed = int.from_bytes(xor(*pairs[bit // 128]), "big")
    assert 30 < changed.bit_count() < 98  # about half of the block's bits, not the one that was flipped


def blocks_of(data: bytes) -> list[bytes]:
    return [data[at : at + 16] for at in range(0, len(data), 16)]


# Buffers.


@every_mode
@both_ways
@pytest.mark.parametrize("length", [16, PAGE, 3 * PIECE + 48])
def test_any_contiguous_buffer_will_do(mode: Mode, way: str, length: int) -> None:
    data = noise(length)
    expected = run(a_cipher(mode), way)(0x3FFF0, data)
    memory = mmap.mmap(-1, length)
    memory[:] = data
    words = np.frombuffer(data, np.uint64).copy()
    buffers: list[Any] = [bytearray(data), memoryview(data), memory, words, words.copy().reshape(2, -1)]
    for buffer in buffers:
        assert expected == run(a_cipher(mode), way)(0x3FFF0, buffer)
        if not memoryview(buffer).readonly:
            assert run(a_cipher(mode), way)(0x3FFF0, buffer, buffer) is None
            assert expected == bytes(memoryview(buffer))


@every_mode
@both_ways
@pytest.mark.parametrize("length", [PAGE, 2 * PIECE])
def test_what_lies_around_the_target_stays_as_it_is(mode: Mode, way: str, length: int) -> None:
    memory = bytearray(b"\xee" * (length + 128))
    run(a_cipher(mode), way)(0x10000, noise(length), memoryview(memory)[64:-64])
    assert b"\xee" * 64 == memory[:64] == memory[-64:]


@every_mode
@both_ways
@pytest.mark.parametrize("length", [48, PAGE, 3 * PIECE])
@pytest.mark.parametrize("shift", [-PAGE, -16, -1, 1, 16, PAGE])
def test_the_target_may_overlap_the_data(mode: Mode, way: str, length: int, shift: int) -> None:
    memory = bytearray(noise(length + 2 * PAGE))
    data = memoryview(memory)[PAGE : PAGE + length]
    expected = run(a_cipher(mode), way)(0x20000, bytes(data))
    run(a_cipher(mode), way)(0x20000, data, memoryview(memory)[PAGE + shift : PAGE + shift + length])
    assert expected == memory[PAGE + shift : PAGE + shift + length]


@every_mode
def test_nothing_of_nothing_is_nothing(mode: Mode) -> None:
    for spa in (0, 0x40, PIECE, 1 << 52):
        assert b"" == a_cipher(mode).encrypt(spa, b"") == a_cipher(mode).decrypt(spa, bytearray())
        assert a_cipher(mode).encrypt(spa, b"", bytearray()) is None


@every_mode
def test_the_last_block_of_the_address_space_has_an_address(mode: Mode) -> None:
    cipher = a_cipher(mode)
    assert bytes(16) == cipher.decrypt((1 << 52) - 16, cipher.encrypt((1 << 52) - 16, bytes(16)))


@every_mode
@pytest.mark.parametrize("length", [64, PAGE, 3 * PIECE])
def test_dram_receives_nothing_before_aes_has_worked_on_it(mode: Mode, length: int) -> None:
    cipher, seen = a_cipher(mode), []
    plain, dram = noise(length), bytearray(length)
    way: Any = cipher.encrypt
    ecb = way.__self__._ecb

    def watched(data: Any, out: Any) -> None:
        seen.append(bytes(dram))
        ecb(data, out)

    way.__self__._ecb = watched
    assert cipher.encrypt(0, plain, dram) is None
    wire = bytes(dram)
    assert len(seen) == max(1, length // PIECE)
    assert all(
        snapshot[at : at + 16] in {bytes(16), wire[at : at + 16]}
        for snapshot in seen
        for at in range(0, length, 16)
    )


# What is refused.


@every_mode
@both_ways
@pytest.mark.parametrize("spa", [1, 8, 15, 0x1001, -16, 1 << 52, (1 << 52) - 16])
def test_an_address_that_is_no_blocks_or_leaves_the_address_space_is_refused(
    mode: Mode, way: str, spa: int
) -> None:
    check_refused(mode, way, spa=spa, data=bytearray(noise(32)), match="32 bytes at")


@every_mode
@both_ways
@pytest.mark.parametrize("length", [1, 15, 17, PAGE - 1, PAGE + 1])
def test_a_length_that_is_not_made_of_blocks_is_refused(mode: Mode, way: str, length: int) -> None:
    check_refused(mode, way, spa=0, data=bytearray(noise(length)), match="whole blocks of 16 bytes")


def check_refused(mode: Mode, way: str, *, spa: int, data: bytearray, match: str) -> None:
    before, out = bytes(data), bytearray(b"\xee" * len(data))
    for arguments in ((data,), (data, out), (data, data)):
        with pytest.raises(ValueError, match=match):
            run(a_cipher(mode), way)(spa, *arguments)
    assert before == data
    assert b"\xee" * len(data) == out


@every_mode
@both_ways
@pytest.mark.parametrize("length", [64, PAGE, 2 * PIECE])
@pytest.mark.parametrize("wrong", [-16, -1, 1, 15, 16])
def test_an_out_of_another_length_is_refused(mode: Mode, way: str, length: int, wrong: int) -> None:
    out = bytearray(b"\xee" * (length + wrong))
    with pytest.raises(ValueError, match=f"out is {length + wrong} bytes: .* hold {length} bytes"):
        run(a_cipher(mode), way)(0, noise(length), out)
    assert b"\xee" * (length + wrong) == out


@every_mode
@both_ways
@pytest.mark.parametrize("length", [64, PAGE, 2 * PIECE])
def test_a_read_only_out_is_refused(mode: Mode, way: str, length: int) -> None:
    data, out = noise(length), bytes(length)
    for target in (out, memoryview(bytearray(length)).toreadonly(), data):
        with pytest.raises(ValueError, match="out is read-only"):
            run(a_cipher(mode), way)(0, data, target)
    assert (noise(length), bytes(length)) == (data, out)


@every_mode
@both_ways
def test_a_long_buffer_with_gaps_is_refused(mode: Mode, way: str) -> None:
    gaps = memoryview(bytearray(4 * PAGE))[::2]
    for arguments in ((gaps,), (gaps, gaps), (bytes(2 * PAGE), gaps)):
        with pytest.raises(ValueError, match="contiguous"):
            run(a_cipher(mode), way)(0, *arguments)
    assert bytes(4 * PAGE) == gaps.obj


@every_mode
@both_ways
@pytest.mark.parametrize("length", [32, PAGE])
def test_a_short_buffer_may_have_gaps_and_they_stay(mode: Mode, way: str, length: int) -> None:
    memory = bytearray(2 * length)
    gaps = memoryview(memory)[::2]
    gaps[:] = data = noise(length)
    expected = run(a_cipher(mode), way)(0, data)
    assert expected == run(a_cipher(mode), way)(0, gaps)
    assert run(a_cipher(mode), way)(0, gaps, gaps) is None
    assert (expected, bytes(length)) == (bytes(gaps), bytes(memory[1::2]))


@every_mode
@pytest.mark.parametrize("wrong", [-16, -1, 1, 16])
def test_a_key_of_another_size_is_refused(mode: Mode, wrong: int) -> None:
    size = KEY_BYTES[mode] + wrong
    with pytest.raises(ValueError, match=f"{mode} takes a key of {8 * KEY_BYTES[mode]} bits, not {8 * size}"):
        memory_cipher(mode, Key(noise(size)), ZEN1)


@pytest.mark.parametrize("mode", [Mode.XE, Mode.XEX])
def test_xe_and_xex_do_not_work_without_constants(mode: Mode) -> None:
    with pytest.raises(ValueError, match=f"{mode} needs the machine's tweak constants"):
        memory_cipher(mode, Key(material(mode)), None)


def test_xts_takes_no_constants() -> None:
    with pytest.raises(ValueError, match="xts takes no tweak constants"):
        memory_cipher(Mode.XTS, Key(material(Mode.XTS)), ZEN1)


def test_xts_wants_two_different_keys() -> None:
    with pytest.raises(ValueError, match="two different keys"):
        memory_cipher(Mode.XTS, Key(2 * noise(16)), None)


# Keys go in and do not come out.


def reachable(root: object) -> Iterator[object]:
    """Everything that Python can walk to from an object; what is the same for all objects (code) apart."""
    seen, todo = set(), [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(thing))
        yield thing
        todo += gc.get_referents(thing)
        names = ("__self__", "__dict__", "base", "obj", *getattr(type(thing), "__slots__", ()))
        todo += [getattr(thing, name, None) for name in names]


def holds(root: object, secret: bytes) -> bool:
    buffers = (thing for thing in reachable(root) if isinstance(thing, (bytes, bytearray, np.ndarray)))
    return any(secret in bytes(buffer) for buffer in buffers)


@every_mode
def test_no_key_is_reachable_from_a_cipher(mode: Mode) -> None:
    cipher, key = a_cipher(mode), material(mode)
    cipher.encrypt(0, noise(3 * PIECE))
    for half in {key[:16], key[-16:]}:
        assert not holds(cipher, half)
        assert not holds([cipher.encrypt, cipher.decrypt], half)
        assert holds([cipher, {"key": (bytearray(half),)}], half)  # the search finds what is there
        assert half.hex() not in repr(cipher)
    assert not hasattr(cipher, "__dict__")
    assert f"MemoryCipher({mode})" == repr(cipher) == str(cipher)


@every_mode
@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_cipher_is_neither_pickled_nor_copied(mode: Mode, way: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        way(a_cipher(mode))


@every_mode
def test_a_cipher_stays_small_whatever_it_has_encrypted(mode: Mode) -> None:
    cipher = a_cipher(mode)
    for page in range(0, 1 << 30, 1 << 22):
        cipher.encrypt(page, bytes(PAGE))
    cipher.encrypt(0, bytes(1 << 22))
    arrays = [thing for thing in reachable(cipher) if isinstance(thing, np.ndarray) and thing.base is None]
    assert 0 < sum(array.nbytes for array in arrays) <= 512 * 1024


@pytest.mark.parametrize("mode", [Mode.XE, Mode.XEX])
def test_ciphers_of_one_machine_share_everything_but_their_keys(mode: Mode) -> None:
    inside = Inside(ZEN1)
    ciphers = [
        memory_cipher(mode, Key(material(mode, seed)), ZEN1, inside=inside)
        for seed in ("one guest", "another")
    ]
    arrays = [{id(thing) for thing in reachable(c) if isinstance(thing, np.ndarray)} for c in ciphers]
    assert {id(thing) for thing in reachable(inside) if isinstance(thing, np.ndarray)} <= arrays[0] & arrays[
        1
    ]
    assert ciphers[0].encrypt(0, bytes(PAGE)) != ciphers[1].encrypt(0, bytes(PAGE))
    assert bytes(PAGE) == ciphers[0].decrypt(0, ciphers[0].encrypt(0, bytes(PAGE)))


def test_an_inside_of_other_constants_is_not_used() -> None:
    other = Tweak({bit: noise(16) for bit in range(4, 8)})
    cipher = memory_cipher(Mode.XEX, Key(material(Mode.XEX)), ZEN1, inside=Inside(other))
    assert a_cipher(Mode.XEX).encrypt(0, bytes(PAGE)) == cipher.encrypt(0, bytes(PAGE))


def test_the_inside_of_an_engine_is_neither_copied_nor_pickled() -> None:
    with pytest.raises(TypeError, match="plaintext"):
        copy.copy(Inside(ZEN1))
