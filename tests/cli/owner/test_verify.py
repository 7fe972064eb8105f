"""``cbit owner verify``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.owner.day import Cli
from owner.worlds import VECTORS, flipped


@pytest.mark.parametrize("product", ["naples", "milan"])
def test_verify_a_real_platform(cli: Cli, product: str) -> None:
    ca = (
        word for name in ("ask", "ark") for word in ("--ca", VECTORS / "amd-root" / f"{name}_{product}.cert")
    )
    words = ("owner", "verify", VECTORS / f"sev-chain-{product}", *ca)
    code, found = cli(*words)
    assert (0, "owner verify") == (code, found["command"])
    root = found["result"]["root"]
    assert (product.capitalize(), True, False) == (root["product"], root["pinned"], root["simulated"])
    assert 7 == sum(signature["good"] for signature in found["result"]["signatures"])
    code, out, err = cli.read(*words)
    assert (0, "") == (code, err)
    assert 7 == out.count(": good\n")
    assert f"verdict: verified, root AMD {product.capitalize()} (pinned)" == out.splitlines()[-1]
    assert "SIMULATED" not in out


def test_verify_an_emulated_platform(cli: Cli, certs: Path) -> None:
    code, found = cli("owner", "verify", certs)
    assert 1 == code
    assert "not one of AMD's pinned roots" in found["reasons"][0]
    code, out, err = cli.read("owner", "verify", certs)
    assert (1, True) == (code, "verdict: NOT TRUSTWORTHY" in out)
    assert err.startswith("cbit owner verify: ARK: not one of AMD's pinned roots")
    assert "SIMULATED" in out
    code, out, _ = cli.read("owner", "verify", certs, "--trust", certs / "ark.cert")
    assert (0, True) == (code, "verdict: verified, root SIMULATED" in out)
    assert cli("owner", "verify", certs, "--trust", certs / "ark.cert")[1]["result"]["root"]["simulated"]
    assert 1 == cli("owner", "verify", certs, "--ca", certs / "ark.cert")[0]  # --ca adds no trust


def test_verify_names_the_signature_that_is_bad(cli: Cli, certs: Path) -> None:
    (certs / "pdh.cert").write_bytes(flipped((certs / "pdh.cert").read_bytes(), 8 * 0x420))
    code, found = cli("owner", "verify", certs, "--trust", certs / "ark.cert")
    assert 1 == code
    bad = [s for s in found["result"]["signatures"] if not s["good"]]
    assert [("PDH", "PEK", 1)] == [(s["certificate"], s["signer"], s["slot"]) for s in bad]


@pytest.mark.parametrize("role", ["pdh", "pek", "oca", "cek", "ask", "ark"])
def test_verify_says_what_is_missing_or_cut_short(cli: Cli, certs: Path, role: str) -> None:
    whole = (certs / f"{role}.cert").read_bytes()
    (certs / f"{role}.cert").write_bytes(whole[:-1])
    code, found = cli("owner", "verify", certs)
    assert (2, True) == (
        code,
        f"{role}.cert: {len(whole) - 1} bytes are no certificate" in found["reasons"][0],
    )
    (certs / f"{role}.cert").unlink()
    code, found = cli("owner", "verify", certs)
    assert (2, True) == (code, f"{role.upper()} is missing" in found["reasons"][0])


def test_verify_reports_the_early_naples_ark_as_unsigned(cli: Cli) -> None:
    code, found = cli(
        *("owner", "verify", VECTORS / "sev-chain-naples", "--ca", VECTORS / "amd-root" / "ask_naples.cert"),
        *("--ca", VECTORS / "sev-chain-naples" / "ark_no_signature.bin"),
    )
    assert (1, True) == (code, "carries no signature" in found["reasons"][0])


def test_an_incomplete_chain_is_shown_and_not_verified(cli: Cli) -> None:
    words = ("owner", "verify", VECTORS / "sev-chain-milan", "--ca", VECTORS / "amd-root" / "ask_milan.cert")
    code, found = cli(*words)
    result = found["result"]
    assert (2, "NOT VERIFIED", ["ARK"], None) == (code, result["verdict"], result["missing"], result["root"])
    assert ["the chain is not complete: ARK is missing"] == [why.split(",")[0] for why in found["reasons"]]
    unchecked = [s for s in result["signatures"] if not s["good"]]
    assert [("ASK", "ARK")] == [(s["certificate"], s["signer"]) for s in unchecked]
    code, out, _ = cli.read(*words)
    assert 2 == code
    assert "ARK  MISSING: AMD publishes it" in out
    assert "signed by ARK: not checked, ARK is missing" in out
    assert 5 == out.count(": good\n")
    assert "verdict: NOT VERIFIED" == out.splitlines()[-1]


def test_what_is_there_of_an_incomplete_chain_is_judged_all_the_same(cli: Cli, certs: Path) -> None:
    (certs / "pdh.cert").write_bytes(flipped((certs / "pdh.cert").read_bytes(), 8 * 0x420))
    (certs / "ask.cert").unlink()
    code, found = cli("owner", "verify", certs, "--trust", certs / "ark.cert")
    assert (2, "NOT VERIFIED") == (code, found["result"]["verdict"])
    assert "ASK is missing" in found["reasons"][0]
    assert any(why.startswith("PDH signed by PEK") for why in found["reasons"][1:])


@pytest.mark.parametrize("product", ["naples", "milan", "genoa"])
def test_the_authority_alone_is_verified_as_that(cli: Cli, product: str) -> None:
    pair = [VECTORS / "amd-root" / f"{name}_{product}.cert" for name in ("ask", "ark")]
    code, found = cli("owner", "verify", *pair)
    wanted = f"verified, the authority only: root AMD {product.capitalize()} (pinned)"
    assert (0, wanted, []) == (code, found["result"]["verdict"], found["reasons"])
    assert {"PDH", "PEK", "OCA", "CEK"} == set(found["result"]["missing"])
    code, out, _ = cli.read("owner", "verify", *pair)
    assert (0, 2) == (code, out.count(": good\n"))
    assert "nothing is said about a chip or a platform" in out
    assert "MISSING" not in out


def test_the_authority_of_two_products_is_none(cli: Cli) -> None:
    pair = [VECTORS / "amd-root" / name for name in ("ask_milan.cert", "ark_genoa.cert")]
    code, found = cli("owner", "verify", *pair)
    assert (1, "NOT TRUSTWORTHY") == (code, found["result"]["verdict"])
    assert "ASK signed by ARK" in found["reasons"][0]
    assert 2 == cli("owner", "verify", pair[0])[0]


def test_a_folder_of_the_authority_alone_lacks_its_platform(cli: Cli, certs: Path) -> None:
    for role in ("pdh", "pek", "oca", "cek"):
        (certs / f"{role}.cert").unlink()
    trust = ("--trust", certs / "ark.cert")
    code, found = cli("owner", "verify", certs, *trust)
    assert (2, "NOT VERIFIED") == (code, found["result"]["verdict"])
    assert "PDH is missing" in found["reasons"][0]
    assert "PDH  MISSING" in cli.read("owner", "verify", certs, *trust)[1]
    named = ("owner", "verify", certs / "ask.cert", certs / "ark.cert")
    assert 1 == cli(*named)[0], "nobody trusts this root"
    assert "verified, the authority only: root SIMULATED" in cli.read(*named, *trust)[1]


@pytest.mark.parametrize(
    ("name", "middle"), [("ask_ark_milan", "ASK"), ("ask_ark_genoa", "ASK"), ("ask_ark_milan_vlek", "ASVK")]
)
def test_the_x509_authority_alone_is_verified_as_that(cli: Cli, name: str, middle: str) -> None:
    path = VECTORS / "snp-chain" / f"{name}.pem"
    code, found = cli("owner", "verify", path)
    assert 0 == code
    assert found["result"]["verdict"].startswith("verified, the authority only: root AMD ")
    links = [(s["certificate"], s["good"]) for s in found["result"]["signatures"]]
    assert [("ARK", True), (middle, True)] == links
    assert "nothing is said about a chip" in cli.read("owner", "verify", path)[1]


def test_a_mixed_or_lone_x509_authority_is_none(cli: Cli, tmp_path: Path) -> None:
    milan, genoa = (
        (VECTORS / "snp-chain" / f"ask_ark_{name}.pem").read_text() for name in ("milan", "genoa")
    )
    end = "-----END CERTIFICATE-----\n"
    ask, ark = milan.split(end)[0] + end, genoa.split(end)[1] + end
    (tmp_path / "ask.pem").write_text(ask)
    (tmp_path / "ark.pem").write_text(ark)
    code, found = cli("owner", "verify", tmp_path / "ask.pem", tmp_path / "ark.pem")
    assert 2 == code, "the ASK asks for another ARK"
    assert "no ARK named ARK-Milan" in " ".join(found["reasons"])
    for name in ("ask", "ark"):
        code, found = cli("owner", "verify", tmp_path / f"{name}.pem")
        assert (2, "NOT VERIFIED") == (code, found["result"]["verdict"])
