"""HOST:PORT and seconds are read alike by every command, and what is none is refused in a sentence."""

from __future__ import annotations

import argparse
import socket

import pytest

from cbit.cli.addresses import address, family, shown
from cbit.cli.durations import seconds


@pytest.mark.parametrize(
    ("text", "read", "of"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0), socket.AF_INET),
        ("there.example:65535", ("there.example", 65535), socket.AF_INET),
        ("[::1]:8443", ("::1", 8443), socket.AF_INET6),
    ],
)
def test_an_address_is_read_and_written(text: str, read: tuple[str, int], of: socket.AddressFamily) -> None:
    assert read == address(text)
    assert text == shown(*read)
    assert of == family(read[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("127.0.0.1", "is not HOST:PORT$"),
        ("127.0.0.1:", "is not HOST:PORT$"),
        (":80", "is not HOST:PORT$"),
        ("127.0.0.1:x", "is not HOST:PORT$"),
        ("127.0.0.1:-1", "is not HOST:PORT$"),
        ("127.0.0.1:\u0663", "is not HOST:PORT$"),
        ("127.0.0.1:65536", "a port is at most 65535"),
        ("127.0.0.1:70000", "a port is at most 65535"),
        (f"127.0.0.1:{'9' * 5000}", "a port is at most 65535"),
        ("::1:80", "an IPv6 address stands in brackets"),
        ("a..b:80", "no host has such a name"),
        (f"{'a' * 64}:80", "no host has such a name"),
    ],
)
def test_what_is_no_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        address(text)


def test_seconds_have_an_end() -> None:
    assert [0.0, 0.5, 60.0] == [seconds(text) for text in ("0", "0.5", "60")]
    for text in ("nan", "inf", "-inf", "-1", "1e9", "soon", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no number of seconds"):
            seconds(text)
