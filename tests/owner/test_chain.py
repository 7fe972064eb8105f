"""Certificates are found under the ecosystem's names and in its blobs, and what is missing is named."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.owner.errors import Missing, Untrusted
from cbit.owner.files import LARGEST
from cbit.owner.verify.chain import chain_of, read_chain
from cbit.owner.verify.files import LAYOUTS, NAMES, Piece, pieces_of
from cbit.owner.verify.verdict import inspect, verify_chain
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE, Usage
from cbit.spec.errors import WireError
from owner.worlds import ROLES, VECTORS, emulated, flipped, real


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.cert").write_bytes(data)
    return folder


def raws(product: str = "milan") -> dict[str, bytes]:
    return {role: getattr(real(product), role).raw for role in ROLES}


def test_a_folder_with_single_certificates(tmp_path: Path) -> None:
    assert real("milan") == read_chain([write(tmp_path, **raws())])


def test_a_folder_with_the_export_and_the_joined_ca(tmp_path: Path) -> None:
    one = raws()
    exported_cek = bytes(sev_cert.without_signatures(real("milan").cek.sev()))
    write(tmp_path, pdh=one["pdh"], cert_chain=one["pek"] + one["oca"] + exported_cek, cek=one["cek"])
    write(tmp_path, ask_ark=one["ask"] + one["ark"])
    assert not verify_chain(read_chain([tmp_path])).simulated


def test_one_blob_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "platform.chain"
    path.write_bytes(b"".join(raws("naples").values()))
    assert not inspect(read_chain([path])).problems


def test_certificates_in_base64_as_hypervisors_print_them(tmp_path: Path) -> None:
    """QEMU's query-sev-capabilities and libvirt's domain capabilities give PDH and chain so."""
    one = raws()
    files = {"pdh": one["pdh"], "chain": one["pek"] + one["oca"] + one["cek"], "ca": one["ask"] + one["ark"]}
    for name, data in files.items():
        (tmp_path / f"{name}.b64").write_bytes(base64.b64encode(data) + b"\n")
    assert [p.raw for p in real("milan").pieces()] == [
        p.raw for p in read_chain(sorted(tmp_path.iterdir())).pieces()
    ]
    text = base64.b64encode(one["ask"])  # 1600 bytes: the last letter has four spare bits
    spare = text[:-3] + bytes((text[-3] + 1,)) + text[-2:]
    for bad in (text[:-1], spare, text + b"!", b"\x00" + text):
        with pytest.raises(WireError, match="bytes are no certificate"):
            pieces_of(bad, source="file")


def test_the_lengths_of_the_blobs_are_those_of_the_paper() -> None:
    assert 6252 == CHAIN_SIZE
    assert {0x680, 0xC80} < set(LAYOUTS)
    assert (Usage.PEK, Usage.OCA, Usage.CEK) == tuple(usage for usage, _ in LAYOUTS[CHAIN_SIZE])
    assert ROLES == tuple(usage.name.lower() for usage, _ in LAYOUTS[4 * CERT_SIZE + 0xC80])
    assert all(sum(size for _, size in layout) == length for length, layout in LAYOUTS.items())


def test_a_blob_in_another_order_is_refused(tmp_path: Path) -> None:
    one = raws()
    write(tmp_path, pdh=one["pdh"], cert_chain=one["oca"] + one["pek"] + one["cek"])
    write(tmp_path, ask_ark=one["ask"] + one["ark"])
    why = " ".join(inspect(read_chain([tmp_path])).problems)
    assert "PEK (cert_chain.cert at 0x0): the key's usage is OCA, here stands a PEK" in why


def test_a_joined_ca_in_another_order_is_refused(tmp_path: Path) -> None:
    one = raws()
    write(tmp_path, **{role: one[role] for role in ROLES[:4]}, ask_ark=one["ark"] + one["ask"])
    assert "here stands an ASK" in " ".join(inspect(read_chain([tmp_path])).problems)


def test_files_of_any_name_are_told_apart_by_their_usage(tmp_path: Path) -> None:
    files = []
    for number, raw in enumerate(raws().values()):
        files.append(tmp_path / f"{number}.bin")
        files[-1].write_bytes(raw)
    assert not inspect(read_chain(reversed(files))).problems


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_certificate_is_named_with_what_to_do(role: str, tmp_path: Path) -> None:
    files = raws()
    del files[role]
    with pytest.raises(Missing, match=f"{role.upper()} is missing, .*(export|AMD)"):
        read_chain([write(tmp_path, **files)])


def test_an_empty_folder_says_which_names_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"ask_ark\.cert, cert_chain\.cert"):
        read_chain([tmp_path])
    assert set(NAMES) >= {"pdh.cert", "pek.cert", "oca.cert", "cek.cert", "ask.cert", "ark.cert"}


def test_the_ca_adds_certificates_and_a_named_root_stands_in(tmp_path: Path) -> None:
    one = {role: getattr(emulated().chain, role).raw for role in ROLES}
    folder = write(tmp_path / "certs", **{role: one[role] for role in ROLES[:4]})
    ca = write(tmp_path / "ca", ask=one["ask"]) / "ask.cert"
    chain = read_chain([folder], ca=[ca], roots=[Piece(Usage.ARK, one["ark"], "root")])
    assert "root" == chain.ark.source
    assert inspect(chain).problems  # present is not trusted
    assert not inspect(chain, trust=[emulated().ark]).problems


def test_the_same_certificate_twice_is_one(tmp_path: Path) -> None:
    one = raws()
    write(tmp_path, **one, cert_chain=one["pek"] + one["oca"] + one["cek"])
    assert not inspect(read_chain([tmp_path])).problems


@pytest.mark.parametrize("role", ["pek", "oca", "pdh"])
def test_two_that_differ_are_refused(role: str, tmp_path: Path) -> None:
    blob = tmp_path / "other.bin"
    blob.write_bytes(flipped(raws()[role], 8 * 0x500))
    with pytest.raises(Untrusted, match=f"two {role.upper()} certificates that differ"):
        read_chain([write(tmp_path, **raws()), blob])


def test_the_signed_cek_may_carry_another_api_version_than_the_exported(tmp_path: Path) -> None:
    # The key server writes 0.14 whatever the firmware; the exported one carries the firmware's version.
    exported = bytearray(bytes(sev_cert.without_signatures(real("milan").cek.sev())))
    exported[4:6] = bytes([1, 28])
    one = raws()
    write(tmp_path, **one, cert_chain=one["pek"] + one["oca"] + bytes(exported))
    chain = read_chain([tmp_path])
    assert one["cek"] == chain.cek.raw
    assert not inspect(chain).problems


def test_the_cek_of_another_chip_is_not_spliced_in(tmp_path: Path) -> None:
    one = raws()
    other = bytes(sev_cert.without_signatures(real("naples").cek.sev()))
    write(tmp_path, **one, cert_chain=one["pek"] + one["oca"] + other)
    with pytest.raises(Untrusted, match="of another chip"):
        read_chain([tmp_path])


@pytest.mark.parametrize(
    "length", [0, 1, CERT_SIZE - 1, CERT_SIZE + 1, 2 * CERT_SIZE, CHAIN_SIZE - 1, LARGEST]
)
def test_a_file_of_no_usual_length_is_refused(length: int) -> None:
    with pytest.raises(WireError, match="cut short, or something else"):
        pieces_of(bytes(length), source="x.cert")


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(LARGEST + 1))
    with pytest.raises(WireError, match="larger than"):
        read_chain([tmp_path / "big"])


def test_a_pem_chain_is_said_to_be_of_snp() -> None:
    data = (VECTORS / "snp-chain" / "ask_ark_milan.pem").read_bytes()
    with pytest.raises(WireError, match="SEV-SNP"):
        pieces_of(data, source="ask_ark.pem")


def test_a_file_without_a_known_usage_and_name_is_refused() -> None:
    with pytest.raises(WireError, match="usage 0x0 is none of PDH, PEK, OCA, CEK"):
        pieces_of(bytes(CERT_SIZE), source="x.bin")
    assert Usage.PEK is pieces_of(bytes(CERT_SIZE), source="pek.cert")[0].role


def test_the_chain_of_a_launch_receipt_is_read_like_a_file() -> None:
    world = emulated()
    signed = (
        world.exported()[: 3 * CERT_SIZE] + world.chain.cek.raw + world.chain.ask.raw + world.chain.ark.raw
    )
    assert verify_chain(chain_of(signed, source="launch receipt"), trust=[world.ark]).simulated


LENGTHS = st.sampled_from([CERT_SIZE, 576, 832, 1088, 1600, *LAYOUTS]) | st.integers(0, 12000)


@given(LENGTHS, st.integers(0, 1 << 32))
def test_any_bytes_give_pieces_or_a_typed_error(length: int, seed: int) -> None:
    data = SeededEntropy(seed).draw(length)
    try:
        pieces = pieces_of(data, source="x.bin")
    except WireError:
        return
    assert data == b"".join(piece.raw for piece in pieces)


@given(st.integers(0, 1 << 32), st.integers(0, 5))
def test_any_certificates_are_inspected_without_an_accident(seed: int, place: int) -> None:
    raw = list(raws().values())
    raw[place] = SeededEntropy(seed).draw(len(raw[place]))
    chain = chain_of(b"".join(raw), source="x")
    assert inspect(chain).problems
