"""Whatever the address and the length: the fast engine equals the formulas, block by block."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Inside, Mode, Tweak, memory_cipher
from cbit.crypto.passes import PLAIN, compiled_passes
from crypto.slow_modes import openssl_xts, slow_decrypt, slow_encrypt

PAGE = 4096
PIECE = 1 << 17
TWEAKS = 2 * [Tweak.zen1(), Tweak.random(SeededEntropy("one boot"))]
PASSES = [
    *2 * [compiled_passes()],
    *2 * [PLAIN],
]  # what an engine does beside AES, with and without a compiler
KEYS = {mode: SeededEntropy(f"{mode} key").draw(KEY_BYTES[mode]) for mode in Mode}
CIPHERS = {
    (mode, number): memory_cipher(mode, Key(KEYS[mode]), tweak, inside=Inside(tweak, passes=PASSES[number]))
    for mode in Mode
    for number, tweak in enumerate(len(TWEAKS) * [None] if mode is Mode.XTS else TWEAKS)
}

# Anywhere, and around the borders of pages and pieces, where one path hands over to another.
BORDERS = st.builds(
    lambda piece, page, blocks: piece * PIECE + page * PAGE + 16 * blocks,
    st.integers(1, (1 << 36) - 1),
    st.integers(0, 15),
    st.integers(-3, 3),
)
ADDRESSES = st.integers(0, (1 << 48) - 1).map(lambda block: 16 * block) | BORDERS
LENGTHS = (
    st.integers(0, 12)
    | st.sampled_from([255, 256, 257, 511, 512, 1024, 1025, 4095, 4096, 4097])
    | st.integers(0, 9000)
).map(lambda blocks: 16 * blocks)
numbers = st.integers(0, len(TWEAKS) - 1)
modes = st.sampled_from(list(Mode))


def fits(spa: int, length: int) -> int:
    return min(spa, (1 << 52) - length)


def noise(length: int) -> bytes:
    return SeededEntropy(length).draw(length)


@given(st.sampled_from([Mode.XE, Mode.XEX]), numbers, ADDRESSES, LENGTHS)
@example(Mode.XEX, 1, PIECE - 16, 2 * PIECE + 32)
@example(Mode.XE, 1, PIECE - PAGE, PIECE + 2 * PAGE)
def test_xe_and_xex_equal_the_formulas(mode: Mode, number: int, spa: int, length: int) -> None:
    spa, data, cipher = fits(spa, length), noise(length), CIPHERS[mode, number]
    constants = TWEAKS[number].constants
    assert slow_encrypt(mode, KEYS[mode], constants, spa=spa, data=data) == cipher.encrypt(spa, data)
    assert slow_decrypt(mode, KEYS[mode], constants, spa=spa, data=data) == cipher.decrypt(spa, data)


@given(numbers, ADDRESSES, LENGTHS)
@example(0, PIECE - 16, 2 * PIECE + 32)
@example(2, PIECE - PAGE, PIECE + 2 * PAGE)
def test_xts_equals_openssl_wherever_it_begins_and_ends(number: int, spa: int, length: int) -> None:
    spa = fits(spa, length)
    data, cipher = noise(length), CIPHERS[Mode.XTS, number]
    before, behind = spa % PAGE, -(spa + length) % PAGE
    pages = bytes(before) + data + bytes(behind)
    for decrypt, way in ((False, cipher.encrypt), (True, cipher.decrypt)):
        expected = openssl_xts(KEYS[Mode.XTS], spa=spa - before, data=pages, decrypt=decrypt)
        assert expected[before : before + length] == way(spa, data)


@given(modes, numbers, ADDRESSES, LENGTHS)
def test_decryption_undoes_encryption_out_of_place_and_in_place(
    mode: Mode, number: int, spa: int, length: int
) -> None:
    spa, data, cipher = fits(spa, length), noise(length), CIPHERS[mode, number]
    wire = cipher.encrypt(spa, data)
    assert (data == wire) == (length == 0)
    assert data == cipher.decrypt(spa, wire)
    memory = bytearray(data)
    assert cipher.encrypt(spa, memory, memory) is None
    assert wire == memory
    target = bytearray(length)
    assert cipher.decrypt(spa, memory, target) is None
    assert wire == memory
    assert data == target
    assert cipher.decrypt(spa, memory, memory) is None
    assert data == memory


@given(modes, numbers, ADDRESSES, LENGTHS, st.data())
def test_a_range_is_the_sum_of_its_parts(
    mode: Mode, number: int, spa: int, length: int, more: st.DataObject
) -> None:
    spa, data, cipher = fits(spa, length), noise(length), CIPHERS[mode, number]
    cuts = sorted(16 * cut for cut in more.draw(st.lists(st.integers(0, length // 16), max_size=4)))
    spans = list(zip([0, *cuts], [*cuts, length], strict=True))
    for way in (cipher.encrypt, cipher.decrypt):
        assert way(spa, data) == b"".join(way(spa + start, data[start:stop]) for start, stop in spans)


@given(modes, numbers, ADDRESSES)
def test_a_range_is_the_sum_of_its_blocks(mode: Mode, number: int, spa: int) -> None:
    length = 2 * PAGE
    spa, data, cipher = fits(spa, length), noise(length), CIPHERS[mode, number]
    for way in (cipher.encrypt, cipher.decrypt):
        assert way(spa, data) == b"".join(way(spa + at, data[at : at + 16]) for at in range(0, length, 16))
