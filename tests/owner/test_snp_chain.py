"""An SNP chain is accepted when every signature and every rule of its certificates holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec as curves
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cbit.crypto import amd_cert
from cbit.owner.errors import Missing, Untrusted
from cbit.owner.validate.facts import of_snp_report
from cbit.owner.verify.kds import Endorsement, read_endorsement, vcek_address
from cbit.owner.verify.report import read_report
from cbit.owner.verify.snp_chain import (
    Endorser,
    SnpChain,
    TrustedRoot,
    assemble_snp,
    certificates_of,
    inspect_snp,
    trusted_root,
    verify_snp_chain,
)
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import Usage
from cbit.spec.errors import WireError
from cbit.spec.snp_report import Product, SigningKey
from owner.snp_worlds import (
    ARC,
    CHIP,
    REAL,
    World,
    as_pem,
    integer,
    leaf_extensions,
    pss,
    read_certs,
    real_chain,
    real_paths,
    real_report,
    rsa_key,
    text,
)
from owner.worlds import VECTORS

CHAINS = VECTORS / "snp-chain"


@pytest.mark.parametrize("name", REAL)
def test_a_real_chain_verifies_under_the_pinned_root(name: str) -> None:
    endorser = verify_snp_chain(real_chain(name))
    assert ("AMD Milan (pinned)", False) == (endorser.root, endorser.simulated)
    assert [True] * 3 == [link.good for link in endorser.inspection.links]
    assert Product.MILAN is endorser.endorsement.product


def test_the_leaves_of_real_machines_say_what_they_are_for() -> None:
    found = {name: read_endorsement(real_chain(name).leaf) for name in REAL}
    assert ["Milan-B0", "Milan", "Milan-B0"] == [e.product_name for e in found.values()]
    assert [SigningKey.VCEK, SigningKey.VLEK, SigningKey.VCEK] == [e.signing_key for e in found.values()]
    tcb = found["trustee"].tcb
    assert (4, 0, 24, 217, None) == (tcb.boot_loader, tcb.tee, tcb.snp, tcb.microcode, tcb.fmc)
    assert "CN=cc-us-east-2.amazonaws.com" == found["trustee"].provider_id
    assert (b"", None) == (found["trustee"].hardware_id, found["trustee"].chip_id)
    assert real_report("virtee")[0x1A0:0x1E0] == found["virtee"].hardware_id == found["virtee"].chip_id


@pytest.mark.parametrize("product", ["milan", "genoa"])
def test_one_pin_serves_both_formats(product: str) -> None:
    _, root = read_certs(str(CHAINS / f"ask_ark_{product}.pem"))
    ark = AmdCert.parse((VECTORS / "amd-root" / f"ark_{product}.cert").read_bytes())
    assert amd_cert.pin(ark) == root.pin()


@pytest.mark.parametrize("path", sorted(CHAINS.glob("*.pem")), ids=lambda path: path.stem)
def test_our_reader_agrees_with_a_general_one(path: Path) -> None:
    compare(path.read_bytes())


@pytest.mark.parametrize("name", REAL)
def test_our_reader_agrees_with_a_general_one_on_leaves(name: str) -> None:
    compare(Path(real_paths(name)[0]).read_bytes())


def compare(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AMD's leaves have the serial number 0
        if b"BEGIN" in data:
            theirs = x509.load_pem_x509_certificates(data)
        else:
            theirs = [x509.load_der_x509_certificate(data)]
        ours = certificates_of(data, source="a file")
        assert len(theirs) == len(ours)
        for their, our in zip(theirs, ours, strict=True):
            assert their.tbs_certificate_bytes == our.outer.body
            assert their.signature == our.outer.signature
            assert their.serial_number == our.serial
            assert (their.subject.public_bytes(), their.issuer.public_bytes()) == (our.subject, our.issuer)
            dates = their.not_valid_before_utc, their.not_valid_after_utc
            assert dates == (our.not_before, our.not_after)
            assert [e.oid.dotted_string for e in their.extensions] == list(our.extensions)
            unknown = {
                e.oid.dotted_string: e.value.value
                for e in their.extensions
                if isinstance(e.value, x509.UnrecognizedExtension)
            }
            assert unknown.items() <= {oid: e.value for oid, e in our.extensions.items()}.items()
            assert their.fingerprint(hashes.SHA256()).hex() == our.fingerprint


def refused(chain: SnpChain, *trust: TrustedRoot, **options: Any) -> str:
    with pytest.raises(Untrusted) as caught:
        verify_snp_chain(chain, trust=trust, **options)
    return " | ".join(caught.value.reasons)


# ---- trust -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SigningKey.VCEK, SigningKey.VLEK])
@pytest.mark.parametrize("product", Product)
def test_a_made_up_chain_stands_only_under_a_root_that_is_named(product: Product, kind: SigningKey) -> None:
    world = World(product, kind)
    assert "ARK: not one of AMD's pinned roots" in refused(world.chain())
    endorser = verify_snp_chain(world.chain(), trust=[world.root()])
    assert endorser.simulated
    assert endorser.root.startswith("SIMULATED")
    assert (product, kind) == (endorser.endorsement.product, endorser.endorsement.signing_key)


def test_trusting_one_root_trusts_no_other() -> None:
    other = TrustedRoot(rsa_key("ask").public_key(), None)
    assert "not one of AMD's pinned roots" in refused(World().chain(), other)


def test_a_trusted_root_may_come_in_either_format() -> None:
    world = World()
    key = rsa_key("ark")
    amd = amd_cert.issue(
        key=key.public_key(), usage=Usage.ARK, key_id=b"R" * 16, signer=key, signer_key_id=b"R" * 16
    )
    for data in (world.ark.make(), as_pem(world.ark.make()).encode(), bytes(amd)):
        assert verify_snp_chain(world.chain(), trust=[trusted_root(data, source="root")]).simulated


def test_a_trusted_root_that_came_as_x509_stands_in_for_a_missing_one() -> None:
    world = World()
    leaf, ask, _ = world.certificates()
    root = trusted_root(world.ark.make(), source="root.der")
    assert verify_snp_chain(assemble_snp([leaf, ask], roots=[root]), trust=[root]).simulated


def test_a_trusted_root_may_be_the_chains_own_key_in_another_certificate() -> None:
    world = World()
    given_ = world.certificates()
    world.ark.serial = 99  # the same key, signed anew
    again = trusted_root(world.ark.make(), source="root.der")
    chain = assemble_snp(given_, roots=[again])
    assert given_[2] == chain.root
    assert verify_snp_chain(chain, trust=[again]).simulated
    # Another key under the same name is no such root.
    world.ark.key = world.ark.signer = rsa_key("somebody")
    stranger = trusted_root(world.ark.make(), source="root.der")
    chain = assemble_snp(given_, roots=[stranger])
    assert "not one of AMD's pinned roots" in refused(chain, stranger)


def test_only_one_root_is_a_trusted_root() -> None:
    world = World()
    with pytest.raises(WireError, match="one certificate that signs itself"):
        trusted_root(world.ask.make(), source="ask.der")
    with pytest.raises(WireError, match="one certificate that signs itself"):
        trusted_root((CHAINS / "ask_ark_milan.pem").read_bytes(), source="both.pem")


def test_an_endorser_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="verify_snp_chain"):
        Endorser(inspect_snp(real_chain("virtee")), made_by=object())


# ---- what is missing, and what contends --------------------------------------------------------------------


def test_the_chain_says_what_is_missing() -> None:
    leaf, ask, ark = World().certificates()
    for given_, missing in (((ask, ark), "VCEK or VLEK"), ((leaf, ark), "ASK named SEV-Milan")):
        with pytest.raises(Missing, match=f"no {missing}"):
            assemble_snp(given_)
    with pytest.raises(Missing, match="no ARK named ARK-Milan"):
        assemble_snp([leaf, ask])


def test_an_authority_of_another_product_or_kind_is_no_authority() -> None:
    for name, others in (("virtee", "ask_ark_genoa"), ("virtee", "ask_ark_milan_vlek")):
        with pytest.raises(Missing, match="no ASK named SEV-Milan"):
            assemble_snp(read_certs(real_paths(name)[0], str(CHAINS / f"{others}.pem")))
    with pytest.raises(Missing, match="no ASVK named SEV-VLEK-Milan"):
        assemble_snp(read_certs(real_paths("trustee")[0], str(CHAINS / "ask_ark_milan.pem")))


def test_more_certificates_than_needed_do_not_matter_and_twins_do() -> None:
    everything = [str(path) for path in sorted(CHAINS.glob("*.pem"))]
    chain = assemble_snp(read_certs(*real_paths("virtee"), *everything))
    assert verify_snp_chain(chain).endorsement.product is Product.MILAN
    world, other = World(), World()
    other.leaf.serial = 8
    with pytest.raises(Untrusted, match=r"contend for the place of VCEK or VLEK: leaf\.der, leaf\.der"):
        assemble_snp([*world.certificates(), *other.certificates()])


def test_an_ask_that_only_has_the_name_is_refused() -> None:
    world = World()
    world.ask.key = rsa_key("somebody")
    assert "VCEK signed by ASK: the RSA-PSS signature does not verify" in refused(world.chain(), world.root())
    world = World()
    world.ask.signer = rsa_key("somebody")
    assert "ASK signed by ARK: the RSA-PSS signature does not verify" == refused(world.chain(), world.root())


# ---- the rules of each certificate -------------------------------------------------------------------------


def named(role: str, **changes: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        for name, value in changes.items():
            setattr(getattr(world, role), name, value() if callable(value) else value)

    return change


def extension(name: str, value: bytes | None) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.leaf.extensions.pop(f"{ARC}{name}", None)
        if value is not None:
            world.leaf.extensions[f"{ARC}{name}"] = value

    return change


def exponent_three() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 4096)


def under_another_root(world: World) -> None:
    world.ark.subject = world.ark.issuer = world.ask.issuer = "ARK-Genoa"


RULES: tuple[tuple[Callable[[World], None], str], ...] = (
    (named("ask", ca=None), "ASK (ask.der): is not marked as an authority"),
    (named("ask", ca=False), "ASK (ask.der): is not marked as an authority"),
    (named("ask", cert_sign=False), "ASK (ask.der): its key usage does not allow to sign certificates"),
    (named("leaf", ca=True), "VCEK (leaf.der): is marked as an authority, a leaf is not"),
    (named("ask", key=lambda: rsa_key("short", 2048)), "SEV-Milan: the key is not RSA of 4096 bits"),
    (named("ask", key=exponent_three), "SEV-Milan: the RSA exponent is not 65537"),
    (
        named("leaf", key=lambda: curves.generate_private_key(curves.SECP256R1())),
        "SEV-VCEK: the key is not one on P-384",
    ),
    (named("leaf", key=lambda: rsa_key("short", 2048)), "SEV-VCEK: the key is not one on P-384"),
    (named("leaf", padding=padding.PKCS1v15), "algorithm is not RSASSA-PSS with SHA-384"),
    (named("ask", padding=lambda: pss(32)), "ASK signed by ARK: the signature's algorithm is not RSASSA-PSS"),
    (
        named("leaf", hash=hashes.SHA256, padding=lambda: padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
        "algorithm is not RSASSA-PSS with SHA-384",
    ),
    (
        named("leaf", padding=lambda: padding.PSS(padding.MGF1(hashes.SHA256()), 48)),
        "algorithm is not RSASSA-PSS with SHA-384",
    ),
    (under_another_root, "named 'ARK-Genoa', over a Milan leaf stands 'ARK-Milan'"),
    (extension("2", text("Genoa-B1")), "named 'SEV-Milan', over a Genoa leaf stands 'SEV-Genoa'"),
    (extension("2", text("Rome")), "product 'Rome' is none of Milan, Genoa, Turin"),
    (extension("2", None), "a SEV-VCEK certificate without its product name"),
    (
        extension("2", b"\x16\x01\x00"),
        "the product name (extension 1.3.6.1.4.1.3704.1.2) is no printable text",
    ),
    (extension("2", b"\x0c\x05Milan"), "not DER as certificates use it"),
    (extension("3.1", None), "without its boot_loader (extension 1.3.6.1.4.1.3704.1.3.1)"),
    (extension("3.3", integer(256)), "snp 256 (extension 1.3.6.1.4.1.3704.1.3.3) is not one byte"),
    (extension("3.3", b"\x02\x01\xff"), "snp -1"),
    (extension("3.3", integer(1) + b"\x00"), "1 bytes too many"),
    (extension("3.3", b"\x02\x02\x00\x01"), "an integer is not in its shortest form"),
    (extension("3.5", integer(1)), "extension 1.3.6.1.4.1.3704.1.3.5 is reserved on Milan and not 0"),
    (extension("3.9", integer(1)), "a SEV-VCEK certificate of Milan has no extension 1.3.6.1.4.1.3704.1.3.9"),
    (extension("3.9", integer(0)), "a SEV-VCEK certificate of Milan has no extension 1.3.6.1.4.1.3704.1.3.9"),
    *((extension(f"3.{n}", None), f"without its reserved part (extension {ARC}3.{n})") for n in (4, 5, 6, 7)),
    (extension("1", None), "without its structure version (extension 1.3.6.1.4.1.3704.1.1)"),
    (extension("1", integer(2)), "structure version 2: only 0 and 1 are known"),
    (extension("1", text("0")), "not DER as certificates use it"),
    (extension("4", None), "without its hardware id"),
    (extension("4", CHIP[:63]), "hardware id: not DER"),
    (extension("4", b"\x04\x08" + CHIP[:8]), "a hardware id of 8 bytes, Milan has 64"),
    (extension("5", text("CN=x")), "a SEV-VCEK certificate has no extension 1.3.6.1.4.1.3704.1.5"),
)


@pytest.mark.parametrize(("change", "reason"), RULES, ids=[reason[:60] for _, reason in RULES])
def test_every_rule_is_named_when_it_is_broken(change: Callable[[World], None], reason: str) -> None:
    world = World()
    change(world)
    assert reason in refused(world.chain(), world.root())


def test_a_provider_key_has_the_providers_id_and_no_chip() -> None:
    world = World(kind=SigningKey.VLEK)
    world.leaf.extensions[f"{ARC}4"] = CHIP
    assert "a SEV-VLEK certificate has no extension 1.3.6.1.4.1.3704.1.4" in refused(
        world.chain(), world.root()
    )
    world = World(kind=SigningKey.VLEK)
    del world.leaf.extensions[f"{ARC}5"]
    assert "a SEV-VLEK certificate without its provider's id" in refused(world.chain(), world.root())


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("product", Product)
def test_both_encodings_of_the_hardware_id_are_read(product: Product, wrapped: bool) -> None:
    world = World(product)
    world.leaf.extensions = leaf_extensions(product, SigningKey.VCEK, wrapped=wrapped)
    endorsement = read_endorsement(world.chain().leaf)
    assert isinstance(endorsement, Endorsement)
    assert CHIP[: 8 if product is Product.TURIN else 64] == endorsement.hardware_id
    assert 64 == len(endorsement.chip_id or b"")


def test_turin_has_its_own_first_part() -> None:
    world = World(Product.TURIN)
    assert 1 == read_endorsement(world.chain().leaf).tcb.fmc
    del world.leaf.extensions[f"{ARC}3.9"]
    assert "without its fmc" in refused(world.chain(), world.root())


@pytest.mark.parametrize("structure", [0, 1])
def test_turins_certificates_have_fmc_where_others_have_a_fourth_part(structure: int) -> None:
    world = World(Product.TURIN)
    world.leaf.extensions[f"{ARC}1"] = integer(structure)
    assert verify_snp_chain(world.chain(), trust=[world.root()]).endorsement.product is Product.TURIN
    for change, reason in (
        (extension("3.4", integer(0)), "a SEV-VCEK certificate of Turin has no extension"),
        *((extension(f"3.{n}", None), "without its reserved part") for n in (5, 6, 7)),
        (extension("3.6", integer(9)), "reserved on Turin and not 0"),
        (extension("1", integer(2)), "structure version 2: only 0 and 1 are known"),
    ):
        world = World(Product.TURIN)
        change(world)
        assert reason in refused(world.chain(), world.root())


def test_a_critical_extension_that_nobody_here_understands_is_not_passed_over() -> None:
    world = World()
    world.leaf.extensions["1.2.3.4"] = integer(1)
    assert verify_snp_chain(world.chain(), trust=[world.root()]).simulated
    world.leaf.critical = frozenset({"1.2.3.4"})
    assert "VCEK (leaf.der): critical extension 1.2.3.4 is not understood" == refused(
        world.chain(), world.root()
    )


def test_all_problems_are_collected() -> None:
    world = World()
    world.ask.ca, world.ask.signer = None, rsa_key("somebody")
    world.leaf.extensions[f"{ARC}3.3"] = integer(999)
    found = inspect_snp(world.chain())
    assert 4 == len(found.problems), found.problems
    assert found.endorsement is None


def test_where_the_key_server_has_the_leaf_of_a_report() -> None:
    address = vcek_address(read_report(real_report("virtee")))
    chip = real_report("virtee")[0x1A0:0x1E0].hex()
    assert (
        f"https://kdsintf.amd.com/vcek/v1/PRODUCT/{chip}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115" == address
    )
    address = vcek_address(read_report(World(Product.TURIN).report()))
    spls = "fmcSPL=01&blSPL=01&teeSPL=00&snpSPL=04&ucodeSPL=80"
    assert f"https://kdsintf.amd.com/vcek/v1/Turin/0001020304050607?{spls}" == address
    # A version 2 report names no processor; a chip id of 8 bytes is Turin's.
    unnamed = World(Product.TURIN).report(version=2, cpuid_family=0, cpuid_model=0, cpuid_stepping=0)
    assert address == vcek_address(read_report(unnamed))
    assert Product.TURIN.value == of_snp_report(read_report(unnamed)).facts["product"]
