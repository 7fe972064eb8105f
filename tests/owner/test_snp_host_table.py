"""The table of certificates that a host hands out with an extended report, whatever else it holds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from uuid import UUID

import pytest

from cbit.owner.errors import Untrusted
from cbit.owner.verify.pem import CERTIFICATE, CRL, aside_of, blocks_of, is_x509
from cbit.owner.verify.report import verify_report
from cbit.owner.verify.snp_chain import assemble_snp, certificates_of, crls_of, verify_snp_chain
from cbit.owner.verify.snp_files import find_report, holds_snp
from cbit.spec.errors import WireError
from cbit.spec.snp_report import (
    ARK_GUID,
    ASK_GUID,
    CRL_GUID,
    VCEK_GUID,
    VLEK_GUID,
    CertTableEntry,
    SigningKey,
    build_cert_table,
    looks_like_cert_table,
    parse_cert_table,
)
from owner.snp_worlds import World, as_pem, crl, real_chain
from owner.worlds import VECTORS, emulated

#: A provider's endorsement of its firmware (google/gce-tcb-verifier, gcetcbendorsement).
PROVIDERS = UUID("9f4116cd-c503-4f5a-8f6f-fb68882f4ce2")


@cache
def chip() -> World:
    return World()


@cache
def provider() -> World:
    return World(kind=SigningKey.VLEK)


@cache
def whole() -> dict[UUID, bytes]:
    leaf, ask, ark = chip().certificates()
    return {VCEK_GUID: leaf.raw, ASK_GUID: ask.raw, ARK_GUID: ark.raw}


def verified(table: bytes, report: bytes, *, signed_by: SigningKey | None, more: bytes = b"") -> str:
    """Verify a report under a table, as the broker does; returns the kind of the leaf."""
    given = certificates_of(table, source="table") + (certificates_of(more, source="more") if more else [])
    chain = assemble_snp(given, signed_by=signed_by)
    verify_report(report, verify_snp_chain(chain, trust=[chip().root()]))
    return chain.leaf.common_name


@cache
def listed() -> bytes:
    return crl(chip())


OTHERS: dict[str, tuple[UUID, bytes | None]] = {  # None: a list
    "a revocation list": (CRL_GUID, None),
    "a provider's": (PROVIDERS, b"\x0a\x20" + bytes(range(200))),
    "a provider's that looks like DER": (PROVIDERS, b"\x30\x82" + bytes(range(200))),
    "under the zero GUID": (UUID(int=0), b"ASVK"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_what_else_stands_in_a_table_is_left_aside_and_named(other: str, first: bool) -> None:
    guid, raw = OTHERS[other][0], OTHERS[other][1] or listed()
    table = build_cert_table({guid: raw, **whole()} if first else {**whole(), guid: raw})
    assert "SEV-VCEK" == verified(table, chip().report(), signed_by=SigningKey.VCEK)
    note = aside_of(table, label=CERTIFICATE, source="table")
    label = CRL if guid == CRL_GUID else "thing that is not known here"
    assert [f"table under {guid}: a {label}, left aside"] == note
    assert [] == aside_of(build_cert_table(whole()), label=CERTIFICATE, source="table")
    # Behind the report that brought it, whatever stands first.
    brought = chip().report() + table
    assert chip().report() == find_report(brought, source="file")
    assert is_x509(table)
    assert is_x509(brought)


def test_a_revocation_list_of_a_table_is_given_to_who_asks_for_it() -> None:
    revoking = crl(chip(), revoked=(2,))
    table = build_cert_table({**whole(), CRL_GUID: revoking})
    (found,) = crls_of(table, source="table")
    chain = assemble_snp(certificates_of(table, source="table"))
    with pytest.raises(Untrusted, match="SEV-Milan: revoked by ARK-Milan"):
        verify_snp_chain(chain, trust=[chip().root()], crls=[found])
    with pytest.raises(WireError, match="holds a CERTIFICATE, a X509 CRL is wanted"):
        crls_of(build_cert_table(whole()), source="table")


def test_certificates_and_lists_may_share_a_text_and_neither_stands_for_the_other() -> None:
    certs, lists = "".join(map(as_pem, whole().values())), as_pem(listed(), CRL)
    both = (certs + lists).encode()
    assert [*whole().values()] == [block.raw for block in blocks_of(both, label=CERTIFICATE, source="f")]
    assert [listed()] == [block.raw for block in blocks_of(both, label=CRL, source="f")]
    assert ["f #4: a X509 CRL, left aside"] == aside_of(both, label=CERTIFICATE, source="f")
    for text, label in ((certs, CRL), (lists, CERTIFICATE)):
        with pytest.raises(WireError, match=f"a {label} is wanted"):
            blocks_of(text.encode(), label=label, source="f")
    for label in ("PUBLIC KEY", "EC PRIVATE KEY"):
        with pytest.raises(WireError, match=r"f #5: holds a"):
            blocks_of(both + as_pem(b"key", label).encode(), label=CERTIFICATE, source="f")


def test_the_report_chooses_between_two_leaves() -> None:
    vlek, asvk, _ = provider().certificates()
    table = build_cert_table({**whole(), VLEK_GUID: vlek.raw})
    for world, kind in ((chip(), SigningKey.VCEK), (provider(), SigningKey.VLEK)):
        found = verified(table, world.report(), signed_by=kind, more=asvk.raw)
        assert f"SEV-{kind.name}" == found
    with pytest.raises(Untrusted, match="contend for the place of VCEK or VLEK"):
        verified(table, chip().report(), signed_by=None)
    # One leaf of the other kind is no choice: the report's checks refuse it.
    with pytest.raises(Untrusted, match="names VLEK as its key, the certificate is for a VCEK"):
        verified(build_cert_table(whole()), provider().report(), signed_by=SigningKey.VLEK)


def test_two_leaves_of_the_kind_that_signed_contend_still() -> None:
    other = World()
    other.leaf.serial = 8
    with pytest.raises(Untrusted, match="contend for the place of VCEK or VLEK"):
        verified(
            build_cert_table(whole()),
            chip().report(),
            signed_by=SigningKey.VCEK,
            more=other.leaf.make(),
        )


def test_a_table_without_certificates_is_no_file_of_them() -> None:
    table = build_cert_table({PROVIDERS: b"endorsed"})
    with pytest.raises(WireError, match="holds a thing that is not known here, a CERTIFICATE is wanted"):
        certificates_of(table, source="table")


def test_no_other_evidence_looks_like_a_table(tmp_path: Path) -> None:
    certs = emulated().write(tmp_path / "certs")
    assert not holds_snp([path for path in certs.iterdir() if path.suffix == ".cert"])
    files = [path for path in VECTORS.rglob("*") if path.is_file() and "snp-" not in path.parent.name]
    assert len(files) > 30
    assert [] == [path.name for path in files if looks_like_cert_table(path.read_bytes())]
    assert not looks_like_cert_table(bytes(0x1000))  # an empty one says nothing


def test_a_certificate_table_gives_back_what_was_put_in() -> None:
    chain = real_chain("virtee")
    given_ = {VCEK_GUID: chain.leaf.raw, ASK_GUID: chain.authority.raw, ARK_GUID: chain.root.raw}
    table = build_cert_table(given_)
    assert given_ == parse_cert_table(table + bytes(100))
    assert looks_like_cert_table(table)
    assert {} == parse_cert_table(bytes(0x18))
    assert VCEK_GUID.bytes == table[:16]
    # Hosts that write GUIDs as firmware does are understood too.
    swapped = table
    for guid in given_:
        swapped = swapped.replace(guid.bytes, guid.bytes_le, 1)
    assert given_ == parse_cert_table(swapped)
    assert looks_like_cert_table(swapped)


def test_the_table_of_a_providers_host_is_recognised() -> None:
    # Origin: google/go-sev-guest pull request 67, the table of an extended report: one VLEK of 0x530 bytes.
    head = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1" + "30000000" + "30050000") + bytes(24)
    assert looks_like_cert_table(head)
    assert {VLEK_GUID: b"v" * 0x530} == parse_cert_table(head + b"v" * 0x530)


def entry(guid: bytes, offset: int, length: int) -> bytes:
    return bytes(CertTableEntry(guid=guid, offset=offset, length=length))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"", "no all-zero entry"),
        (entry(b"A" * 16, 0x18, 4) + b"cert", "no all-zero entry"),
        (entry(b"A" * 16, 0x18, 4) + bytes(0x18) + b"cert", "not inside"),
        (entry(b"A" * 16, 0x30, 5) + bytes(0x18) + b"cert", "not inside"),
        (entry(b"A" * 16, 0x30, 0) + bytes(0x18) + b"cert", "not inside"),
        (entry(b"A" * 16, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(0x18), "not inside"),
        (entry(b"A" * 16, 0x48, 4) * 2 + bytes(0x18) + b"cert", "stands twice"),
        (entry(b"A" * 16, 0x48, 4) * 65 + bytes(0x18), "more than 64 entries"),
    ],
)
def test_a_certificate_table_that_lies_is_refused(table: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        parse_cert_table(table)
