from __future__ import annotations

import copy
import hmac
import pickle
import pprint
import traceback
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys, WrappingKeys

SECRET = bytes(range(0xA0, 0xB0))
KEY = Key(SECRET)


def leaks(text: str, secret: bytes = SECRET) -> bool:
    """Say whether any four bytes of the secret can be read in the text, in a usual spelling."""
    squeezed = "".join(c for c in text.lower() if c.isalnum() or c == "\\")
    pieces = [secret[i : i + 4] for i in range(len(secret) - 3)]
    spellings = [f(p) for p in pieces for f in (bytes.hex, lambda b: repr(b)[2:-1], lambda b: str(list(b)))]
    return any("".join(c for c in s.lower() if c.isalnum() or c == "\\") in squeezed for s in spellings)


def test_the_search_for_leaks_finds_them() -> None:
    assert leaks(SECRET.hex())
    assert leaks(SECRET.hex(" ").upper())
    assert leaks(repr(SECRET))
    assert leaks(str(list(SECRET)))
    assert not leaks(KEY.fingerprint())


@pytest.mark.parametrize(
    "holder",
    [KEY, TransportKeys(KEY, KEY), WrappingKeys(KEY, KEY), [KEY], {"key": KEY}],
    ids=lambda holder: type(holder).__name__,
)
def test_no_way_of_printing_shows_the_key(holder: object) -> None:
    for text in (
        repr(holder),
        str(holder),
        f"{holder}",
        f"{holder!a}",
        pprint.pformat(holder),
    ):
        assert not leaks(text)
        assert KEY.fingerprint() in text


def test_a_format_specification_is_refused() -> None:
    with pytest.raises(TypeError):
        format(KEY, "x")


def test_a_trace_of_calls_with_locals_does_not_show_the_key() -> None:
    try:
        _ = KEY + 1  # type: ignore[operator]  # raises on purpose
    except TypeError as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert not leaks("".join(shown.format()))


@pytest.mark.parametrize(
    "take",
    [
        copy.copy,
        copy.deepcopy,
        vars,
        bytes,
        memoryview,
        list,
        iter,
        lambda key: key[0],
        lambda key: key.__getstate__(),
        lambda key: asdict(TransportKeys(key, key)),
        *(lambda key, p=protocol: pickle.dumps(key, p) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_a_key_is_not_copied_out_by_accident(take: Any) -> None:
    with pytest.raises(TypeError):
        take(KEY)


@pytest.mark.parametrize("material", [16, "0123456789abcdef", list(SECRET), None])
def test_a_key_is_made_of_bytes_alone(material: Any) -> None:
    with pytest.raises(TypeError):  # bytes(16) would have been a key of zeros
        Key(material)


def test_a_key_is_independent_of_the_buffer_it_was_made_from() -> None:
    buffer = bytearray(SECRET)
    key = Key(buffer)
    buffer[:] = bytes(16)
    assert key == KEY
    assert key.material() == SECRET


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_equality_is_that_of_the_material(one: bytes, other: bytes) -> None:
    assert (Key(one) == Key(other)) is (one == other)
    assert Key(one) == Key(one)
    assert hash(Key(one)) == hash(Key(one))
    assert (Key(one).fingerprint() == Key(other).fingerprint()) is (one == other)


def test_a_key_equals_no_bytes() -> None:
    assert KEY != SECRET
    assert len(KEY) == 16


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert Key(SECRET) == KEY
    assert compared == [(SECRET, SECRET)]


def test_a_fingerprint_is_short_and_no_plain_hash() -> None:
    import hashlib

    assert len(KEY.fingerprint()) == 8
    assert not hashlib.sha256(SECRET).hexdigest().startswith(KEY.fingerprint())
