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
