"""However a certificate file is written, it gives the same bytes or an error."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.owner.errors import Missing
from cbit.owner.verify import der
from cbit.owner.verify.der import Der, split
from cbit.owner.verify.pem import CERTIFICATE, CRL, Block, blocks_of, is_x509
from cbit.owner.verify.snp_files import holds_snp, read_certificates
from cbit.spec.errors import CbitError, WireError
from cbit.spec.snp_report import ARK_GUID, VCEK_GUID, build_cert_table
from owner.snp_worlds import as_pem, real_chain
from owner.worlds import VECTORS, emulated

CHAIN = [cert.raw for _, cert in real_chain("virtee").roles()]
PEM = "".join(map(as_pem, CHAIN))


def raws(data: bytes | str) -> list[bytes]:
    found = blocks_of(data.encode() if isinstance(data, str) else data, label=CERTIFICATE, source="file")
    return [block.raw for block in found]


def one_line(text: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    bodies = [part.partition(end)[0].replace("\n", "") for part in text.split(begin)[1:]]
    return "".join(f"{begin}\n{body}\n{end}\n" for body in bodies)


SAME: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no newline at the end": lambda text: text.rstrip("\n"),
    "no newline between blocks": lambda text: text.replace("-----\n-----BEGIN", "----------BEGIN"),
    "one line": one_line,
    "no line ends at all": lambda text: text.replace("\n", ""),
    "spaces and tabs": lambda text: text.replace("\n", " \t\n"),
    "empty lines": lambda text: text.replace("\n", "\n\n"),
    "text around": lambda text: f"subject=CN = SEV-Milan\n{text}\nthat was all\n",
    "text between": lambda text: text.replace("-----BEGIN", "\n# the next one\n-----BEGIN"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "not our letters around": lambda text: f"Zertifikat für Köln\n{text}",
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_certificates_come_out(name: str) -> None:
    assert CHAIN == raws(SAME[name](PEM))
    assert is_x509(SAME[name](PEM).encode())


BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
FIRST = as_pem(CHAIN[0])
BAD: dict[str, tuple[str, str]] = {
    "no end": (FIRST.replace(END, ""), "cut short"),
    "cut inside": (FIRST[:500], "cut short"),
    "the last of several cut": (PEM[:-40], "3 PEM blocks begin and 2 end"),
    "no begin": (FIRST.replace(BEGIN, "") + FIRST, "cut short"),
    "begin twice": (f"{BEGIN}\n{FIRST}", "2 PEM blocks begin and 1 end"),
    "ends as another thing": (FIRST.replace("END CERT", "END X509 CERT"), "ends as X509 CERTIFICATE"),
    "a strange letter inside": (FIRST.replace("\nM", "\nM!", 1), "not base64"),
    "a header inside": (FIRST.replace(BEGIN, f"{BEGIN}\nProc-Type: 4,ENCRYPTED\n"), "cut short"),
    "a letter missing": (FIRST[:80] + FIRST[81:], "not base64"),
    "nothing inside": (f"{BEGIN}\n{END}\n", "not base64"),
    "spare bits set": (f"{BEGIN}\nMAB=\n{END}\n", "not base64"),
    "padding twice": (f"{BEGIN}\nMAA==\n{END}\n", "not base64"),
    "a private key": (as_pem(b"key", "PRIVATE KEY"), "holds a private key"),
    "a private key beside": (FIRST + as_pem(b"key", "EC PRIVATE KEY"), "file #2: holds a private key"),
    "a revocation list": (as_pem(b"0\x00", "X509 CRL"), "holds a X509 CRL, a CERTIFICATE is wanted"),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_an_error(name: str) -> None:
    text, reason = BAD[name]
    with pytest.raises(WireError, match=reason):
        raws(text)


def test_an_error_about_a_private_key_does_not_print_it() -> None:
    with pytest.raises(WireError) as caught:
        raws(as_pem(b"a secret", "PRIVATE KEY"))
    assert base64.b64encode(b"a secret").decode() not in str(caught.value)


@given(st.integers(0, len(FIRST) - 1), st.integers(0, 7))
def test_a_flipped_bit_of_pem_gives_the_same_bytes_or_an_error_or_says_so(at: int, bit: int) -> None:
    data = bytearray(FIRST.encode())
    data[at] ^= 1 << bit
    try:
        found = raws(bytes(data))
    except CbitError:
        return
    # What decodes to other bytes is another certificate, for the signature to judge: never two spellings.
    if found != [CHAIN[0]]:
        body = "".join(data.decode().split("-----")[2].split())
        assert base64.b64encode(found[0]).decode() == body


@given(st.binary(max_size=300))
def test_any_bytes_around_do_not_matter_unless_they_look_like_pem(noise: bytes) -> None:
    if b"-----" in noise:
        return
    assert CHAIN == raws(noise + b"\n" + PEM.encode() + noise)


def test_der_one_or_several() -> None:
    assert CHAIN[:1] == raws(CHAIN[0])
    assert CHAIN == raws(b"".join(CHAIN))
    blocks = blocks_of(b"".join(CHAIN), label=CRL, source="file")
    assert [Block(CRL, raw, f"file #{n}") for n, raw in enumerate(CHAIN, 1)] == blocks
    for bad in (CHAIN[0][:-1], CHAIN[0] + b"\x00", CHAIN[0] + CHAIN[1][:9], b"", b"text"):
        with pytest.raises(WireError):
            raws(bad)


def test_the_table_of_a_host() -> None:
    table = build_cert_table({VCEK_GUID: CHAIN[0], ARK_GUID: CHAIN[2]})
    assert [CHAIN[0], CHAIN[2]] == raws(table)
    assert [CHAIN[0], CHAIN[2]] == raws(bytes(0x4A0) + table)  # behind the report that brought it
    with pytest.raises(WireError, match="certificate table"):
        raws(table[:30])


def test_pem_in_the_strings_of_a_metadata_service() -> None:
    leaf, end, rest = PEM.partition("-----END CERTIFICATE-----\n")
    answer = {"vcekCert": leaf + end, "tcbm": "DB18000000000004", "certificateChain": rest}
    assert CHAIN == raws(json.dumps(answer).encode())
    for bad in (b"{", b"{}", json.dumps({"vcekCert": leaf}).encode(), json.dumps([PEM]).encode()):
        with pytest.raises(WireError):
            raws(bad)


# ---- DER ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "the end in place of"),
        ("31 00", "0x31 in place of tag 0x30"),
        ("30", "cut short"),
        ("30 05 00", "cut short"),
        ("30 80 00 00", "length is not in its shortest form"),
        ("30 81", "length is not in its shortest form"),
        ("30 81 01 00", "length is not in its shortest form"),
        ("30 82 00 81" + "00" * 129, "length is not in its shortest form"),
        ("30 85 01 00 00 00 00", "length is not in its shortest form"),
        ("30 ff", "length is not in its shortest form"),
    ],
)
def test_der_has_one_form(data: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        Der(bytes.fromhex(data), what="it").take(der.SEQUENCE)


def read(data: str) -> Der:
    return Der(bytes.fromhex(data), what="it")


def test_der_values() -> None:
    assert [0, 127, 128, -1, 256] == [
        read(data).integer() for data in ("020100", "02017f", "02020080", "0201ff", "02020100")
    ]
    assert "1.2.840.113549.1.1.10" == read("06092a864886f70d01010a").oid()
    assert "2.5.4.3" == read("0603550403").oid()
    assert (True, False) == (read("0101ff").boolean(), read("010100").boolean())
    assert b"\xaa" == read("030200aa").bits()
    moment = datetime(2024, 1, 31, 12, 0, 1, tzinfo=UTC)
    assert moment == read("170d" + b"240131120001Z".hex()).time()
    assert moment == read("180f" + b"20240131120001Z".hex()).time()
    assert 1950 == read("170d" + b"500131120001Z".hex()).time().year
    assert 2049 == read("170d" + b"490131120001Z".hex()).time().year


@pytest.mark.parametrize(
    "data",
    [
        "0200",
        "02020001",
        "0202ffff",
        "010101",
        "0100",
        "0300",
        "030201aa",
        "0600",
        "060180",
        "06022a80",
        "0603558003",
    ]
    + [
        f"{tag}{len(text):02x}{text.hex()}"
        for tag, text in (
            ("17", b"240131120001"),
            ("17", b"2401311200Z"),
            ("17", b"240231120001Z"),
            ("17", b"240131126001Z"),
            ("18", b"20240131120001+0100"),
            ("18", b"20240131120001.5Z"),
            ("17", "²40131120001".encode("latin-1") + b"Z"),
        )
    ],
)
def test_values_that_are_not_in_their_form(data: str) -> None:
    tag = int(data[:2], 16)
    name = {2: "integer", 1: "boolean", 3: "bits", 6: "oid"}.get(tag, "time")
    with pytest.raises(WireError, match="not DER as certificates use it"):
        getattr(read(data), name)()


@given(st.binary(max_size=100))
def test_splitting_loses_nothing(data: bytes) -> None:
    try:
        assert data == b"".join(split(data, what="it"))
    except WireError:
        return


# ---- folders -----------------------------------------------------------------------------------------------


def test_a_folder_with_the_tools_names_is_read(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"none of vcek\.pem"):
        read_certificates([tmp_path])
    (tmp_path / "vcek.der").write_bytes(CHAIN[2])
    (tmp_path / "cert_chain").write_text(as_pem(CHAIN[1]) + as_pem(CHAIN[0]))
    assert [CHAIN[2], CHAIN[1], CHAIN[0]] == [cert.raw for cert in read_certificates([tmp_path])]
    assert holds_snp([tmp_path])


def test_sev_and_snp_do_not_mix(tmp_path: Path) -> None:
    certs = emulated().write(tmp_path / "certs")
    pem = VECTORS / "snp-chain" / "ask_ark_milan.pem"
    assert (False, True) == (holds_snp([certs]), holds_snp([pem]))
    for paths in ([certs, pem], [certs / "pek.cert", pem]):
        with pytest.raises(ValueError, match="one chain at a time"):
            holds_snp(paths)
    (certs / "vcek.pem").write_text(FIRST)
    with pytest.raises(ValueError, match="one chain at a time"):
        holds_snp([certs])
