"""A sealed message is standard AES-GCM; the guest's own opening is tested where it runs."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.guest.builtin.interface import LONGEST
from cbit.guest.builtin.sealed import seal

KEY = bytes(range(16))


@given(st.binary(max_size=100), st.integers(), st.sampled_from([KEY, 2 * KEY]))
def test_anybody_with_the_key_opens_it(text: bytes, seed: int, key: bytes) -> None:
    message = seal(Key(key), text, entropy=SeededEntropy(seed))
    assert len(text) == int.from_bytes(message[:4], "little")
    assert len(text) + 4 + 12 + 16 == len(message)
    assert text == AESGCM(key).decrypt(message[4:16], message[16:], None)


def test_no_nonce_comes_twice() -> None:
    entropy = SeededEntropy(1)
    assert seal(Key(KEY), b"text", entropy=entropy) != seal(Key(KEY), b"text", entropy=entropy)


def test_a_message_that_the_guest_has_no_room_for_is_not_made() -> None:
    entropy = SeededEntropy(1)
    assert LONGEST + 32 == len(seal(Key(KEY), bytes(LONGEST), entropy=entropy))
    with pytest.raises(ValueError, match="1537 bytes: 1536 at most"):
        seal(Key(KEY), bytes(LONGEST + 1), entropy=entropy)


@pytest.mark.parametrize("length", [0, 15, 17, 24, 31, 33])
def test_a_key_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes, or 32"):
        seal(Key(bytes(length)), b"text", entropy=SeededEntropy(1))
