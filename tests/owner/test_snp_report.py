"""A report is accepted when the chip of its certificate signed it, as it is, to the last byte."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import ec, sev_cert
from cbit.owner.errors import Untrusted
from cbit.owner.verify.report import (
    Check,
    VerifiedReport,
    VerifiedSevReport,
    form_problems,
    inspect_report,
    inspect_sev_report,
    read_report,
    verify_report,
    verify_sev_report,
)
from cbit.owner.verify.snp_chain import Endorser, verify_snp_chain
from cbit.owner.verify.snp_files import find_report
from cbit.owner.verify.verdict import verify_chain
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.certificate import EcdsaSignature, SevCert
from cbit.spec.errors import CbitError, NotModelled, WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.snp_report import (
    VCEK_GUID,
    PlatformInfo,
    Product,
    SigningKey,
    SnpReport,
    TcbVersion,
    build_cert_table,
    parse_cert_table,
)
from owner.snp_worlds import CHIP, LATER, REAL, World, real_chain, real_file, real_report, resigned
from owner.worlds import CASE, VECTORS, emulated, flipped

KINDS = (SigningKey.VCEK, SigningKey.VLEK)


def endorser_of(world: World) -> Endorser:
    return verify_snp_chain(world.chain(), trust=[world.root()])


def refused(raw: bytes, endorser: Endorser) -> str:
    with pytest.raises(Untrusted) as caught:
        verify_report(raw, endorser)
    return " | ".join(caught.value.reasons)


# ---- good reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REAL, *LATER])
def test_a_real_report_verifies(name: str) -> None:
    verified = verify_report(real_report(name), verify_snp_chain(real_chain(name)))
    assert isinstance(verified, VerifiedReport)
    assert real_report(name) == bytes(verified.report) == verified.raw


def test_what_real_reports_say() -> None:
    virtee, trustee, azure = (read_report(real_report(name)) for name in REAL)
    assert (2, 3, 2) == (virtee.version, trustee.version, azure.version)
    assert (0x30000, 0x30000, 0x3001F) == (virtee.policy, trustee.policy, azure.policy)
    assert (None, Product.MILAN, None) == (virtee.product, trustee.product, azure.product)
    assert (SigningKey.VCEK, SigningKey.VLEK) == (virtee.signing_key, trustee.signing_key)
    assert (1, 5) == (trustee.vmpl, azure.guest_svn)
    assert (ApiVersion(1, 52), 4) == (virtee.current_api, virtee.current_build)
    assert ApiVersion(1, 55) == trustee.committed_api
    assert (
        PlatformInfo.SMT | PlatformInfo.TSME | PlatformInfo.ECC | PlatformInfo.ALIAS_CHECK_COMPLETE
        == trustee.platform_info
    )
    assert (3, 8, 0x73) == (virtee.reported_tcb[0], virtee.reported_tcb[6], virtee.reported_tcb[7])


def test_what_real_reports_of_later_products_say() -> None:
    early, genoa, turin = (read_report(real_report(name)) for name in LATER)
    assert (3, 5, 5) == (early.version, genoa.version, turin.version)
    assert (Product.GENOA, Product.GENOA, Product.TURIN) == (early.product, genoa.product, turin.product)
    assert (0xB, 0xB) == (genoa.launch_mit_vector, genoa.current_mit_vector)
    assert (bytes.fromhex("3b42092f69c656d3") + bytes(56)) == turin.chip_id
    assert TcbVersion(fmc=0, boot_loader=1, tee=0, snp=2, microcode=71) == TcbVersion.parse(
        turin.reported_tcb, Product.TURIN
    )
    assert 0x67 == turin.platform_info  # bit 6 among them


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", Product)
def test_every_product_version_and_key_verifies(product: Product, kind: SigningKey, version: int) -> None:
    world = World(product, kind)
    changes: dict[str, Any] = {"version": version}
    if version == 2:
        changes |= {"cpuid_family": 0, "cpuid_model": 0, "cpuid_stepping": 0}
    if version == 5:
        changes |= {"launch_mit_vector": 0b101, "current_mit_vector": 0b111}
    assert verify_report(world.report(changes), endorser_of(world)).report.version == version


def test_one_chain_serves_any_number_of_reports() -> None:
    world = World()
    endorser = endorser_of(world)
    found = {verify_report(world.report(guest_svn=svn), endorser).report.guest_svn for svn in range(5)}
    assert set(range(5)) == found


@pytest.mark.parametrize("name", [*REAL, *LATER])
def test_the_report_of_another_machine_is_refused(name: str) -> None:
    endorser = verify_snp_chain(real_chain(name))
    for other in {*REAL, *LATER} - {name}:
        assert "report: the ECDSA signature does not verify" in refused(real_report(other), endorser)


# ---- bad ones ----------------------------------------------------------------------------------------------


RULES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"key_info": 1 << 2}, "report: names VLEK as its key, the certificate is for a VCEK"),
    ({"key_info": 2 << 2}, "names a reserved key"),
    ({"key_info": 7 << 2}, "report: not signed, the platform was configured to sign nothing"),
    ({"key_info": 1 << 5}, "the word at 0x48 (0x20) sets reserved bits"),
    ({"signature_algo": 2}, "signature algorithm 0x2, must be 1"),
    ({"platform_info": PlatformInfo(1 << 8)}, "platform info 0x100 sets reserved bits"),
    ({"platform_info": PlatformInfo(1 << 40)}, "sets reserved bits"),
    ({"policy": 0x10000}, "policy 0x10000: bit 17 must be 1"),
    ({"policy": 0x4020000}, "policy 0x4020000 sets reserved bits 0x4000000"),
    ({"launch_mit_vector": 1}, "version 3 has no mitigation vectors, and their bytes are not zero"),
    ({"current_mit_vector": 1}, "version 3 has no mitigation vectors, and their bytes are not zero"),
    ({"version": 2}, "version 2 names no processor, and bytes 0x188..0x18a are not zero"),
    ({"reported_tcb": bytes((4, 0, 0, 0, 0, 0, 23, 219))}, "snp is 23, the certificate was made for 24"),
    (
        {"reported_tcb": bytes((5, 0, 0, 0, 0, 0, 24, 219))},
        "boot_loader is 5, the certificate was made for 4",
    ),
    ({"reported_tcb": bytes((4, 1, 0, 0, 0, 0, 24, 219))}, "tee is 1, the certificate was made for 0"),
    (
        {"reported_tcb": bytes((4, 0, 0, 0, 0, 0, 24, 220))},
        "microcode is 220, the certificate was made for 219",
    ),
    ({"reported_tcb": bytes((4, 0, 1, 0, 0, 0, 24, 219))}, "reported_tcb: TCB version"),
    ({"launch_tcb": bytes((4, 0, 0, 0, 0, 9, 24, 219))}, "launch_tcb: TCB version 0400000000"),
    ({"chip_id": b"\x01" * 64}, "CHIP_ID: 0101"),
    ({"chip_id": bytes(63) + b"\x01"}, "CHIP_ID: 0000"),
    ({"vmpl": 4}, "report: VMPL 4, there are 0 to 3"),
    ({"vmpl": 0xFFFFFFFE}, "report: VMPL 4294967294, there are 0 to 3"),
    ({"author_key_digest": bytes(47) + b"\x01"}, "has an AUTHOR_KEY_DIGEST, and says that there is no"),
    *(
        ({name: bytes(tcb)}, f"{words} (current_tcb)")
        for name, tcb, words in (
            (
                "committed_tcb",
                (5, 0, 0, 0, 0, 0, 24, 219),
                "committed_tcb: boot_loader is 5, and only 4 runs",
            ),
            (
                "committed_tcb",
                (0, 0, 0, 0, 0, 0, 24, 220),
                "committed_tcb: microcode is 220, and only 219 runs",
            ),
            ("current_tcb", (4, 0, 0, 0, 0, 0, 23, 255), "committed_tcb: snp is 24, and only 23 runs"),
            ("current_tcb", (4, 0, 0, 0, 0, 0, 23, 255), "reported_tcb: snp is 24, and only 23 runs"),
            ("reported_tcb", (4, 1, 0, 0, 0, 0, 24, 219), "reported_tcb: tee is 1, and only 0 runs"),
        )
    ),
    ({"cpuid_model": 0x11}, "CPUID: the report is of Genoa, the certificate of Milan"),
    ({"cpuid_family": 0x1A, "cpuid_model": 0x50}, "CPUID: processor family 0x1a model 0x50 is no product"),
)


@pytest.mark.parametrize(("changes", "reason"), RULES, ids=[reason[:50] for _, reason in RULES])
def test_every_rule_is_named_when_it_is_broken(changes: dict[str, Any], reason: str) -> None:
    world = World()
    assert reason in refused(world.report(changes), endorser_of(world))


@pytest.mark.parametrize("key_info", [0, 2])
def test_a_masked_chip_id_is_zero_and_accepted(key_info: int) -> None:
    """MASK_CHIP_ID is a setting of its own: the bit in the report is about the key."""
    world = World()
    report = verify_report(world.report(key_info=key_info, chip_id=bytes(64)), endorser_of(world)).report
    assert bool(key_info) is report.mask_chip_key


@pytest.mark.parametrize(
    "changes",
    [
        *({"vmpl": number} for number in (0, 1, 2, 3, 0xFFFFFFFF)),
        {"key_info": 1, "author_key_digest": b"A" * 48},
        {"key_info": 1},  # the ABI's own words differ on it: "Zeroes if AUTHOR_KEY_EN is 1"
        {"committed_tcb": bytes((3, 0, 0, 0, 0, 0, 20, 100))},
        {"current_tcb": bytes((5, 1, 0, 0, 0, 0, 25, 220))},
        {"launch_tcb": bytes((9, 9, 0, 0, 0, 0, 99, 250))},
    ],
    ids=str,
)
def test_what_only_looks_odd_is_accepted(changes: dict[str, Any]) -> None:
    world = World()
    verify_report(world.report(changes), endorser_of(world))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_the_key_says_nothing_about_the_chip_id(kind: SigningKey) -> None:
    """SNP ABI, ATTESTATION_REPORT: CHIP_ID depends on MaskChipId, MASK_CHIP_KEY is MaskChipKey."""
    world = World(kind=kind)
    masked = world.report(key_info=kind << 2 | 2, chip_id=CHIP)
    assert CHIP == verify_report(masked, endorser_of(world)).report.chip_id
    unsigned = masked[:0x2A0] + bytes(0x200)
    why = "report: not signed, the platform withholds its key (MASK_CHIP_KEY)"
    assert why == refused(unsigned, endorser_of(world))
    # Zeros where the key is not withheld are a bad signature, and so is anything else where it is.
    plain = world.report(chip_id=CHIP)[:0x2A0] + bytes(0x200)
    for raw in (plain, flipped(masked, 8 * 0x2A0)):
        assert "not signed" not in refused(raw, endorser_of(world))


@pytest.mark.parametrize("product", Product)
def test_a_chip_may_name_itself_under_a_providers_key(product: Product) -> None:
    world = World(product, SigningKey.VLEK)
    chip = CHIP[:8].ljust(64, b"\0") if product is Product.TURIN else CHIP
    for chip_id in (chip, bytes(64)):
        assert chip_id == verify_report(world.report(chip_id=chip_id), endorser_of(world)).report.chip_id
    # The chip's own key is for that chip alone.
    own = World(product)
    stranger = own.report(chip_id=bytes((chip[0] ^ 1,)) + chip[1:])
    assert "the certificate is for chip" in refused(stranger, endorser_of(own))


def test_turin_names_its_chip_with_eight_bytes() -> None:
    world = World(Product.TURIN)
    assert "CHIP_ID" in refused(world.report(chip_id=CHIP), endorser_of(world))


@pytest.mark.parametrize(("start", "end"), SnpReport.gaps()[:-1])
def test_reserved_bytes_are_zero_even_under_a_good_signature(start: int, end: int) -> None:
    world = World()
    for at in (start, end - 1):
        raw = flipped(world.report(), 8 * at)
        assert f"reserved bytes {start:#x}..{end - 1:#x} are not zero" in refused(
            resigned(world.leaf_key, raw), endorser_of(world)
        )


def test_the_padding_of_the_signature_is_zero() -> None:
    raw = real_report("virtee")
    endorser = verify_snp_chain(real_chain("virtee"))
    for at in range(0x2A0 + 144, 0x4A0):
        assert "report: reserved bytes 0x330..0x49f are not zero" == refused(flipped(raw, 8 * at), endorser)


@pytest.mark.parametrize("r", [0, 1, ec.ORDER, 2**384])
@pytest.mark.parametrize("s", [0, 1, ec.ORDER, 2**384])
def test_signature_numbers_outside_their_range_are_refused(r: int, s: int) -> None:
    world = World()
    raw = world.report()[:0x2A0] + bytes(EcdsaSignature(r=r, s=s))
    why = refused(raw, endorser_of(world))
    assert ("R or S is not between 0 and the order" in why) is not (0 < r < ec.ORDER and 0 < s < ec.ORDER)


def test_the_same_signature_with_numbers_beyond_the_order_is_refused() -> None:
    report = read_report(real_report("virtee"))
    for name in ("r", "s"):
        raw = bytes(report.replace(**{name: getattr(report, name) + ec.ORDER}))
        assert "R or S is not between" in refused(raw, verify_snp_chain(real_chain("virtee")))


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_a_version_that_nobody_described_is_not_judged(version: int) -> None:
    world = World()
    with pytest.raises(NotModelled, match=f"version {version}: only 2, 3, 4, 5"):
        verify_report(world.report(version=version), endorser_of(world))


def test_all_problems_are_collected() -> None:
    world = World()
    raw = world.report(policy=0, chip_id=bytes(63) + b"\x01", cpuid_model=0x11, key_info=1 << 2)
    leaf = world.chain().leaf
    checks = inspect_report(raw, endorsement=endorser_of(world).endorsement, key=leaf.ec_key())
    assert all(isinstance(check, Check) for check in checks)
    bad = [check.what for check in checks if not check.good]
    assert ["form", "signed by the VCEK", "chip", "product"] == bad


def test_a_verified_report_cannot_be_made_by_hand() -> None:
    raw = real_report("virtee")
    with pytest.raises(TypeError, match="verify_report"):
        VerifiedReport(raw, read_report(raw), verify_snp_chain(real_chain("virtee")), made_by=object())


# ---- every bit ---------------------------------------------------------------------------------------------


def accepted_flips(name: str, bits: Iterable[int]) -> list[int]:
    raw, endorser = real_report(name), verify_snp_chain(real_chain(name))
    found = []
    for bit in bits:
        try:
            verify_report(flipped(raw, bit), endorser)
        except (Untrusted, NotModelled):
            continue
        found.append(bit)
    return found


@pytest.mark.parametrize("name", [*REAL, "turin_v5"])
def test_no_flipped_byte_of_a_report_is_accepted(name: str) -> None:
    # One bit of every byte, each bit position in turn; the slow test takes every bit.
    assert [] == accepted_flips(name, (8 * at + at % 8 for at in range(0x4A0)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", REAL)
def test_no_bit_of_a_report_can_be_flipped_unnoticed(name: str) -> None:
    assert [] == accepted_flips(name, range(8 * 0x4A0))


@given(st.binary(min_size=0x4A0, max_size=0x4A0), st.integers(2, 5))
def test_any_bytes_are_a_report_that_is_refused_in_words(data: bytes, version: int) -> None:
    endorser = verify_snp_chain(real_chain("virtee"))
    raw = version.to_bytes(4, "little") + data[4:]
    assert refused(raw, endorser)
    assert list(form_problems(raw, read_report(raw), Product.MILAN))


@given(st.binary(max_size=0x500))
def test_any_bytes_give_typed_errors(data: bytes) -> None:
    for read in (read_report, parse_cert_table, AttestationReport.parse):
        try:
            read(data)
        except CbitError:
            continue


@pytest.mark.parametrize("size", [0, 1, 0x49F, 0x4A1])
def test_a_report_of_another_size_is_none(size: int) -> None:
    with pytest.raises(WireError, match="SnpReport"):
        verify_report(bytes(size), verify_snp_chain(real_chain("virtee")))


# ---- where a file holds it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_report_is_found_in_the_forms_that_tools_write(name: str) -> None:
    raw = real_report(name)
    assert raw == find_report(real_file(name), source="file")
    assert raw == find_report(raw, source="file")
    assert raw == find_report(raw.hex().upper().encode() + b"\r\n", source="file")
    for prefix in (b"0x", b" 0X"):
        assert raw == find_report(prefix + raw.hex().encode() + b"\n", source="file")
    assert raw == find_report(base64.encodebytes(raw), source="file")
    answer = bytes(4) + len(raw).to_bytes(4, "little") + bytes(24) + raw  # MSG_REPORT_RSP
    assert raw == find_report(answer, source="file") == find_report(answer.ljust(4000, b"\0"), source="file")
    table = build_cert_table({VCEK_GUID: real_chain(name).leaf.raw})
    assert raw == find_report(raw + table, source="file")
    assert raw == find_report(b"x" * 7 + raw + b"y", source="file", offset=7)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"HCLA", b"00", b"\xff" * 1183, b"zz" * 1184, bytes(0x4A1)),
        *(b"0x", b"0x0x" + b"00" * 0x4A0, b"0x" + b"00" * 0x49F),
        bytes(4) + (0x4A0).to_bytes(4, "little") + bytes(24 + 0x4A0) + b"\x01",
        (22).to_bytes(4, "little") + (0x4A0).to_bytes(4, "little") + bytes(24 + 0x4A0),
        base64.b64encode(bytes(0x4A0))[:-2] + b"B=",  # spare bits that are not zero
    ],
)
def test_what_is_no_report_is_named(data: bytes) -> None:
    with pytest.raises(WireError, match=r"file: \d+ bytes"):
        find_report(data, source="file")
    with pytest.raises(WireError, match="hold no whole report at offset 8"):
        find_report(bytes(0x4A0), source="file", offset=8)


# ---- SEV ---------------------------------------------------------------------------------------------------


def sev_case(name: str) -> tuple[bytes, SevCert]:
    folder = VECTORS / "synthetic-e2e" / name
    pek = (folder / "cert_chain_pek_oca_cek.bin").read_bytes()[:0x824]
    return (folder / "attestation_report.bin").read_bytes(), SevCert.parse(pek)


@pytest.mark.parametrize("name", ["case1-sev", "case2-sev-es"])
def test_the_pek_signs_a_sev_report(name: str) -> None:
    raw, pek = sev_case(name)
    assert [True, True] == [check.good for check in inspect_sev_report(raw, pek)]
    for at in range(0xD0):
        checks = inspect_sev_report(flipped(raw, 8 * at + at % 8), pek)
        assert not all(check.good for check in checks), f"byte {at:#x} was not noticed"


def test_a_sev_report_of_a_verified_platform() -> None:
    platform = verify_chain(emulated().chain, trust=[emulated().ark])
    raw = (CASE / "attestation_report.bin").read_bytes()
    verified = verify_sev_report(raw, platform)
    assert isinstance(verified, VerifiedSevReport)
    assert raw == bytes(verified.report)
    assert 1 == verified.report.policy
    other, _ = sev_case("case2-sev-es")
    with pytest.raises(Untrusted, match="ECDSA signature does not verify"):
        verify_sev_report(other, platform)
    with pytest.raises(TypeError, match="verify_sev_report"):
        VerifiedSevReport(verified.report, platform, made_by=object())


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (0x30, b"\xc1", "sets reserved bits 0xc0"),
        (0x34, b"\x04", "signed by a key of usage 0x1004, must be the PEK"),
        (0x38, b"\x03", "signature algorithm 0x3, must be 0x2"),
        (0x3C, b"\x01", "reserved bytes 0x3c..0x3f are not zero"),
        (0x40, bytes(72), "R or S is not between 0 and the order"),
        (0x88, ec.ORDER.to_bytes(72, "little"), "R or S is not between 0 and the order"),
    ],
)
def test_every_rule_of_a_sev_report_is_named(offset: int, content: bytes, reason: str) -> None:
    raw, pek = sev_case("case1-sev")
    changed = raw[:offset] + content + raw[offset + len(content) :]
    assert reason in " | ".join(why for check in inspect_sev_report(changed, pek) for why in check.reasons)


@pytest.mark.slow
def test_no_bit_of_a_sev_report_can_be_flipped_unnoticed() -> None:
    raw, pek = sev_case("case1-sev")
    for bit in range(8 * 0xD0):
        assert not all(check.good for check in inspect_sev_report(flipped(raw, bit), pek)), f"bit {bit}"


def test_a_sev_report_by_a_key_off_the_curve_is_refused() -> None:
    raw, pek = sev_case("case1-sev")
    broken = pek.replace(pubkey=flipped(pek.pubkey, 100))
    assert "not a point on P-384" in " ".join(inspect_sev_report(raw, broken)[1].reasons)
    assert sev_cert.public_key(pek)
