"""``cbit owner idblock``."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cbit.crypto import ec
from cli.owner.day import Cli
from owner.worlds import VECTORS, flipped

FOLDER = VECTORS / "snp-idblock"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def write_key(path: Path, scalar: int) -> Path:
    path.write_bytes(
        ec.private_key(scalar).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path


def create(folder: Path, *words: str | Path) -> tuple[str | Path, ...]:
    key = write_key(folder / "id.pem", 99)
    wanted = ("--digest", EXPECTED["launch_digest"], "--policy", "0x30000")
    return ("owner", "idblock", "create", *wanted, "--id-key", key, "--out", folder / "out", *words)


def test_the_published_block_is_created(cli: Cli, tmp_path: Path) -> None:
    code, found = cli(*create(tmp_path))
    assert (0, None) == (code, found["result"]["author_key_digest"])
    assert (FOLDER / "id_block.bin").read_bytes() == (tmp_path / "out/id_block.bin").read_bytes()
    assert EXPECTED["id_block_base64"] == (tmp_path / "out/id_block.b64").read_text()


def test_the_published_page_is_checked(cli: Cli) -> None:
    call = ("owner", "idblock", "check", FOLDER / "id_block.bin", FOLDER / "test_auth_block.bin")
    code, found = cli(*call, "--digest", EXPECTED["launch_digest"], "--policy", EXPECTED["policy"])
    assert 0 == code
    for name in ("id_key_digest", "author_key_digest"):
        assert EXPECTED[name] == found["result"][name]
    assert "verdict: signed by the keys that it carries" in cli.read(*call)[1]
    code, found = cli(*call, "--policy", "0x30001")
    assert (1, True) == (code, "POLICY_FAILURE" in found["reasons"][0])


def test_what_was_created_is_accepted_and_one_changed_bit_is_not(cli: Cli, tmp_path: Path) -> None:
    author = write_key(tmp_path / "author.pem", 77)
    names = ("--family-id", "ab" * 16, "--image-id", "cd" * 16, "--guest-svn", "3")
    code, found = cli(*create(tmp_path, "--author-key", author, *names))
    assert (0, "cd" * 16, 3) == (code, found["result"]["image_id"], found["result"]["guest_svn"])
    out = tmp_path / "out"
    assert 4 == len(found["result"]["files"])
    for suffix in ("bin", "b64"):
        check = cli("owner", "idblock", "check", out / f"id_block.{suffix}", out / f"id_auth.{suffix}")
        assert (0, found["result"]["id_key_digest"]) == (check[0], check[1]["result"]["id_key_digest"])
    (out / "id_block.bin").write_bytes(flipped((out / "id_block.bin").read_bytes(), 3))
    code, found = cli("owner", "idblock", "check", out / "id_block.bin", out / "id_auth.bin")
    assert (1, True) == (code, "BAD_SIGNATURE" in found["reasons"][0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--policy", "0x10000"), "bit 17 must be 1"),
        (("--policy", "x"), "not a number"),
        (("--digest", "00" * 32), "32 bytes, the digest of an SNP launch has 48"),
        (("--digest", "?"), "a digest has 32 bytes"),
        (("--family-id", "00"), "not 16 bytes"),
        (("--id-key", "no-such-file"), "no-such-file"),
        (("--id-key", str(FOLDER / "README.md")), "no private key"),
    ],
    ids=str,
)
def test_what_cannot_be_created(cli: Cli, tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    code, found = cli(*create(tmp_path, *words))
    assert (2, True) == (code, reason in found["reasons"][0]), found["reasons"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 95, 97])
def test_a_block_of_another_size_is_refused(cli: Cli, tmp_path: Path, size: int) -> None:
    (tmp_path / "block").write_bytes(b"\xff" * size)
    (tmp_path / "base64").write_bytes(base64.b64encode(bytes(size)))
    for name in ("block", "base64"):
        assert 2 == cli("owner", "idblock", "check", tmp_path / name, FOLDER / "test_auth_block.bin")[0]


@pytest.mark.oracle
def test_openssl_agrees_with_both_signatures(
    cli: Cli, tmp_path: Path, require_program: Callable[[str, str], list[str]]
) -> None:
    openssl = require_program("openssl", "apt install openssl")
    author = write_key(tmp_path / "author.pem", 77)
    assert 0 == cli(*create(tmp_path, "--author-key", author))[0]
    page = (tmp_path / "out/id_auth.bin").read_bytes()
    signed = [
        ("id.pem", page[0x40:], (tmp_path / "out/id_block.bin").read_bytes()),
        ("author.pem", page[0x680:], page[0x240 : 0x240 + 0x404]),
    ]
    for key, signature, message in signed:
        numbers = [int.from_bytes(signature[at : at + 72], "little") for at in (0, 72)]
        (tmp_path / "message").write_bytes(message)
        (tmp_path / "signature").write_bytes(der(*numbers))
        words = [
            "dgst",
            "-sha384",
            "-prverify",
            str(tmp_path / key),
            "-signature",
            str(tmp_path / "signature"),
        ]
        call = [*openssl, *words, str(tmp_path / "message")]
        ended = subprocess.run(call, capture_output=True, text=True, check=False)
        assert "Verified OK\n" == ended.stdout


def der(*numbers: int) -> bytes:
    """SEQUENCE of INTEGERs."""
    raws = [n.to_bytes(n.bit_length() // 8 + 1, "big") for n in numbers]
    body = b"".join(bytes((2, len(raw))) + raw for raw in raws)
    return bytes((0x30, len(body))) + body
