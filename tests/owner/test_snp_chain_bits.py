"""No bit of an SNP certificate can be flipped unnoticed, and OpenSSL agrees about chains."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from cbit.owner.errors import Missing, Untrusted
from cbit.owner.verify import der
from cbit.owner.verify.der import Der
from cbit.owner.verify.snp_chain import (
    SnpChain,
    assemble_snp,
    certificates_of,
    crls_of,
    inspect_snp,
    trusted_root,
    verify_snp_chain,
)
from cbit.owner.verify.x509 import PSS_SHA384, Certificate
from cbit.spec.errors import CbitError, WireError
from cbit.spec.snp_report import Product
from owner.remembered import remember_good_signatures
from owner.snp_worlds import (
    REAL,
    World,
    as_pem,
    pss,
    read_certs,
    real_chain,
    rsa_key,
)
from owner.worlds import VECTORS, flipped

CHAINS = VECTORS / "snp-chain"


# ---- every bit ---------------------------------------------------------------------------------------------


def accepted_flips(name: str, place: int, bits: Iterable[int]) -> list[int]:
    """Bits of one certificate whose flipping would go unnoticed."""
    certs = list(real_chain(name).roles())
    raw = certs[place][1].raw
    found = []
    for bit in bits:
        changed = [cert.raw for _, cert in certs]
        changed[place] = flipped(raw, bit)
        try:
            parsed = [Certificate.parse(one, source="cert") for one in changed]
            verify_snp_chain(assemble_snp(parsed))
        except (WireError, Untrusted, Missing):
            continue
        found.append(bit)
    return found


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["virtee", "trustee"])
def test_no_flipped_bit_of_a_certificate_is_accepted(name: str, place: int) -> None:
    # One bit of every other byte, each bit position in turn; the slow test takes every bit.
    size = len(real_chain(name).roles()[place][1].raw)
    assert [] == accepted_flips(name, place, range(0, 8 * size, 17))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["virtee", "trustee"])
def test_no_bit_of_a_certificate_can_be_flipped_unnoticed(
    name: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_good_signatures(monkeypatch)
    size = len(real_chain(name).roles()[place][1].raw)
    assert [] == accepted_flips(name, place, range(8 * size))


@given(st.binary(max_size=200))
def test_any_bytes_into_the_readers_give_typed_errors(data: bytes) -> None:
    for read in (certificates_of, crls_of, trusted_root):
        for begin in (b"", b"\x30", b"-----BEGIN "):
            with pytest.raises(CbitError):
                read(begin + data, source="bytes")


LEAF = real_chain("virtee").leaf.raw


@given(st.integers(0, len(LEAF) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_a_leaf_with_bytes_replaced_gives_typed_errors(at: int, new: bytes, drop: int) -> None:
    raw = LEAF[:at] + new + LEAF[at + drop :]
    ca = str(CHAINS / "ask_ark_milan.pem")
    try:
        found = verify_snp_chain(assemble_snp([Certificate.parse(raw, source="x"), *read_certs(ca)]))
    except CbitError:
        return
    assert (raw, True) == (LEAF, bool(found))


# ---- somebody else's program -------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", REAL)
def test_openssl_agrees_on_chains(
    name: str, require_program: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    openssl = require_program("openssl", "apt install openssl")
    chain = real_chain(name)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    (tmp_path / "ark").write_text(as_pem(chain.root.raw))
    (tmp_path / "ask").write_text(as_pem(chain.authority.raw))

    def theirs(leaf: bytes) -> bool:
        (tmp_path / "leaf").write_text(as_pem(leaf))
        call = [*openssl, "verify", "-attime", str(int(at.timestamp())), "-CAfile", str(tmp_path / "ark")]
        call += ["-untrusted", str(tmp_path / "ask"), str(tmp_path / "leaf")]
        return 0 == subprocess.run(call, capture_output=True, check=False).returncode

    def ours(leaf: bytes) -> bool:
        try:
            parsed = Certificate.parse(leaf, source="leaf")
            return bool(verify_snp_chain(SnpChain(parsed, chain.authority, chain.root), at=at))
        except CbitError:
            return False

    raw = chain.leaf.raw
    assert (True, True) == (theirs(raw), ours(raw))
    for bit in range(400, 8 * len(raw), 8 * 97 + 3):
        assert (False, False) == (theirs(flipped(raw, bit)), ours(flipped(raw, bit))), f"bit {bit}"


@pytest.mark.oracle
def test_openssl_agrees_on_a_made_up_chain(
    require_program: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    openssl = require_program("openssl", "apt install openssl")
    for broken in (False, True):
        world = World()
        if broken:
            world.ask.signer = rsa_key("somebody")
        chain = world.chain()
        for role, cert in chain.roles():
            (tmp_path / role).write_text(as_pem(cert.raw))
        call = [*openssl, "verify", "-no_check_time", "-CAfile", str(tmp_path / "ARK")]
        call += ["-untrusted", str(tmp_path / "ASK"), str(tmp_path / "VCEK")]
        ended = subprocess.run(call, capture_output=True, check=False)
        assert (ended.returncode == 0) is not broken
        assert bool(inspect_snp(chain, trust=[world.root()]).problems) is broken


# ---- made by hand, byte for byte ---------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8 or 1, "big")
    return bytes((tag,)) + (size if len(body) < 0x80 else bytes((0x80 | len(size),)) + size) + body


def with_body(body: bytes, *, algorithm: bytes) -> bytes:
    """A certificate of any signed bytes, under a good signature of the made-up ASK."""
    signature = rsa_key("ask").sign(body, pss(), hashes.SHA384())
    return tlv(der.SEQUENCE, body, algorithm, tlv(der.BIT_STRING, b"\x00", signature))


def refused_leaf(raw: bytes) -> str:
    world = World()
    _, ask, ark = world.certificates()
    try:
        chain = assemble_snp([Certificate.parse(raw, source="leaf.der"), ask, ark])
        verify_snp_chain(chain, trust=[world.root()])
    except (Untrusted, WireError) as error:
        return str(error)
    return "accepted"


def parts_of(leaf: Certificate) -> list[bytes]:
    reader = Der(leaf.outer.body, what="leaf").inside(der.SEQUENCE)
    return [reader.whole(tag) for tag in (0xA0, 0x02, 0x30, 0x30, 0x30, 0x30, 0x30, 0xA3)]


def test_what_is_made_by_hand_is_accepted_when_nothing_is_changed() -> None:
    world = World()
    leaf, ask, ark = world.certificates()
    again = with_body(tlv(der.SEQUENCE, *parts_of(leaf)), algorithm=leaf.outer.algorithm)
    chain = assemble_snp([Certificate.parse(again, source="leaf.der"), ask, ark])
    assert verify_snp_chain(chain, trust=[world.root()]).simulated


def test_the_algorithm_outside_must_be_the_signed_one() -> None:
    leaf = World().chain().leaf
    for other in PSS_SHA384 - {leaf.outer.algorithm}:
        raw = with_body(leaf.outer.body, algorithm=other)
        assert "the signature's algorithm is another inside than outside" in refused_leaf(raw)


def test_an_extension_stands_once() -> None:
    leaf = World().chain().leaf
    *parts, extensions = parts_of(leaf)
    inner = Der(extensions, what="it").inside(0xA3).take(der.SEQUENCE)
    first = Der(inner, what="it").whole(der.SEQUENCE)
    body = tlv(der.SEQUENCE, *parts, tlv(0xA3, tlv(der.SEQUENCE, inner, first)))
    assert "stands twice" in refused_leaf(with_body(body, algorithm=leaf.outer.algorithm))


def test_a_public_key_has_one_form() -> None:
    world = World()
    leaf = world.chain().leaf
    parts = parts_of(leaf)
    form = serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    point = world.leaf_key.public_key().public_bytes(*form)
    algorithm = Der(leaf.spki, what="key").inside(der.SEQUENCE).whole(der.SEQUENCE)
    parts[6] = tlv(der.SEQUENCE, algorithm, tlv(der.BIT_STRING, b"\x00", point))
    raw = with_body(tlv(der.SEQUENCE, *parts), algorithm=leaf.outer.algorithm)
    assert "SEV-VCEK: the public key is not in its usual form" in refused_leaf(raw)


@pytest.mark.parametrize("version", [b"\x00", b"\x01", b"\x03"])
def test_certificates_are_of_version_3(version: bytes) -> None:
    leaf = World().chain().leaf
    parts = parts_of(leaf)
    parts[0] = tlv(0xA0, tlv(der.INTEGER, version))
    raw = with_body(tlv(der.SEQUENCE, *parts), algorithm=leaf.outer.algorithm)
    assert "must be 3" in refused_leaf(raw)


def test_a_good_signature_by_somebody_of_another_name_is_refused() -> None:
    world = World()
    leaf, _, ark = world.certificates()
    world.ask.subject = "SEV-Other"
    ask = world.certificates()[1]
    found = inspect_snp(SnpChain(leaf, ask, ark), trust=[world.root()])
    assert "VCEK signed by ASK: names SEV-Milan as its issuer, not SEV-Other" in found.problems


def test_amds_root_stands_over_its_own_product_only() -> None:
    leaf, ask, _ = World(Product.GENOA).certificates()
    found = inspect_snp(SnpChain(leaf, ask, real_chain("virtee").root))
    assert "ARK: AMD's Milan key over a leaf for Genoa" in found.problems
