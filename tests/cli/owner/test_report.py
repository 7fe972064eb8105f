"""``cbit owner report`` and ``cbit owner validate``, and ``cbit owner verify`` on SNP chains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbit.cli.owner.report_fields import sev_fields, shown_sev, shown_snp, snp_fields
from cbit.owner.verify.report import read_report
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.snp_report import (
    ARK_GUID,
    ASK_GUID,
    CRL_GUID,
    VCEK_GUID,
    Product,
    SigningKey,
    SnpReport,
    build_cert_table,
)
from cli.owner.day import Cli
from owner.snp_worlds import ARC, REAL, World, as_pem, crl, integer, real_chain, real_paths, real_report
from owner.worlds import CASE, VECTORS, flipped

REPORTS = {
    "virtee": VECTORS / "snp-report" / "virtee_milan_v2_report.hex",
    "trustee": VECTORS / "snp-report" / "trustee_milan_v3_vlek_report.bin",
    "azure": VECTORS / "snp-report" / "azure_milan_hcl_report.bin",
}


def words(name: str) -> tuple[str, ...]:
    leaf, *ca = real_paths(name)
    return ("--vcek", leaf, *(word for path in ca for word in ("--ca", path)))


def line(*words: str | Path) -> tuple[str | Path, ...]:
    """A command line, in words."""
    return words


def wishes(folder: Path, text: str) -> Path:
    path = folder / "wishes.toml"
    path.write_text(text)
    return path


def made(folder: Path, world: World, report: bytes | None = None) -> tuple[Path, ...]:
    """Write a made-up world; returns report, leaf and authorities."""
    leaf, ask, ark = world.certificates()
    (folder / "report.bin").write_bytes(world.report() if report is None else report)
    (folder / "leaf.pem").write_text(as_pem(leaf.raw))
    (folder / "ca.pem").write_text(as_pem(ask.raw) + as_pem(ark.raw))
    (folder / "ark.pem").write_text(as_pem(ark.raw))
    return tuple(folder / name for name in ("report.bin", "leaf.pem", "ca.pem", "ark.pem"))


# ---- report ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_real_report(cli: Cli, name: str) -> None:
    call = line("owner", "report", REPORTS[name], *words(name))
    code, found = cli(*call)
    result = found["result"]
    assert (0, "owner report", "snp-report") == (code, found["command"], result["kind"])
    assert "verified, root AMD Milan (pinned)" == result["verdict"] == result["chain"]["verdict"]
    assert [True] * 5 == [check["good"] for check in result["checks"]]
    assert [True] * 3 == [signature["good"] for signature in result["chain"]["signatures"]]
    code, out, err = cli.read(*call)
    assert (0, "") == (code, err)
    assert result["report"]["measurement"] in out
    assert "nothing is said about whether this is your guest" in out
    assert "verdict: verified, root AMD Milan (pinned)" == out.splitlines()[-1]
    assert "SIMULATED" not in out
    assert "note: dates were not judged" in out


def test_every_field_has_a_name(cli: Cli) -> None:
    call = line("owner", "report", REPORTS["trustee"], *words("trustee"))
    report = cli(*call)[1]["result"]["report"]
    assert {"snp": 24, "boot_loader": 4, "tee": 0, "microcode": 217} == report["tcb"]["reported_tcb"]
    assert ["SMT", "TSME", "ECC", "ALIAS_CHECK_COMPLETE"] == report["platform_flags"]
    assert ("VLEK", 1, "0.0") == (report["signing_key"], report["vmpl"], report["policy_abi"])
    out = cli.read(*call)[1]
    for wanted in (
        "  VMPL               1",
        "  POLICY             0x30000 (SMT|MUST_BE_ONE, ABI >= 0.0)",
        "  REPORTED_TCB       04000000000018d9 (boot_loader 4, tee 0, snp 24, microcode 217)",
        "  PLATFORM_INFO      0x27 (SMT|TSME|ECC|ALIAS_CHECK_COMPLETE)",
        "  CPUID              family 0x19, model 0x1, stepping 1",
        "  CURRENT firmware   1.55 build 29",
        "  REPORT_ID_MA       none (no migration agent)",
        "   └─ VLEK  the provider CN=cc-us-east-2.amazonaws.com, Milan, …",
    ):
        begin = wanted.partition("…")[0]
        assert any(shown.startswith(begin) for shown in out.splitlines()), wanted
    assert "MIT_VECTOR" not in out


@pytest.mark.parametrize("name", REAL)
def test_no_field_is_left_out(name: str) -> None:
    report = read_report(real_report(name))
    assert set(SnpReport.FIELDS) <= set(snp_fields(report, Product.MILAN))
    shown = " ".join(value for _, value in shown_snp(report, Product.MILAN))
    for field in SnpReport.FIELDS:
        value = getattr(report, field)
        if isinstance(value, bytes) and field != "report_id_ma":
            assert value.hex() in shown, field
    sev = AttestationReport.parse((CASE / "attestation_report.bin").read_bytes())
    assert set(AttestationReport.FIELDS) <= set(sev_fields(sev))
    assert {name.upper() for name in sev_fields(sev)} == {name for name, _ in shown_sev(sev)}


def test_wishes_and_signatures_are_judged_in_one_go(cli: Cli, tmp_path: Path) -> None:
    call = line("owner", "report", REPORTS["trustee"], *words("trustee"), "--want")
    good = wishes(tmp_path, "vmpl = 1\nverified = true\nsimulated = false\nproduct = 'Milan'\n")
    code, found = cli(*call, good)
    assert (0, []) == (code, found["result"]["wishes"]["violations"])
    assert "wishes: all fulfilled" in cli.read(*call, good)[1]
    code, found = cli(*call, wishes(tmp_path, "vmpl = 0\n[minimum.reported_tcb]\nsnp = 99\nmicrocode = 1"))
    assert (1, 2) == (code, len(found["reasons"]))
    assert "signed, and NOT WHAT YOU WANT; verified, root AMD Milan (pinned)" == found["result"]["verdict"]
    code, out, err = cli.read(*call, tmp_path / "wishes.toml")
    assert (1, 2) == (code, len(err.splitlines()))
    assert "wishes: 2 not fulfilled" in out


def test_a_bad_signature_and_bad_wishes_are_both_listed(cli: Cli, tmp_path: Path) -> None:
    raw = REPORTS["trustee"].read_bytes()
    (tmp_path / "report.bin").write_bytes(flipped(raw, 8 * 0x90))
    call = line("owner", "report", tmp_path / "report.bin", *words("trustee"))
    code, found = cli(*call, "--want", wishes(tmp_path, f"measurement = '{raw[0x90:0xC0].hex()}'"))
    assert (1, "NOT TRUSTWORTHY") == (code, found["result"]["verdict"])
    assert "report: the ECDSA signature does not verify" == found["reasons"][0]
    assert {"measurement", "verified"} == {reason.partition(":")[0] for reason in found["reasons"][1:]}
    assert "signed by the VLEK: BAD" in cli.read(*call)[1]


def test_a_report_so_broken_that_wishes_cannot_be_judged(cli: Cli, tmp_path: Path) -> None:
    world = World()
    report, leaf, ca, ark = made(tmp_path, world, world.report(launch_tcb=b"\xff" * 8))
    call = line("owner", "report", report, "--vcek", leaf, "--ca", ca, "--trust", ark)
    code, found = cli(*call, "--want", wishes(tmp_path, "vmpl = 0"))
    assert (1, 2) == (code, len(found["reasons"]))
    assert "the wishes cannot be judged: TCB version" in found["reasons"][1]
    assert found["result"]["report"]["tcb"]["launch_tcb"] is None


@pytest.mark.parametrize("kind", [SigningKey.VCEK, SigningKey.VLEK])
@pytest.mark.parametrize("product", Product)
def test_a_made_up_report_says_simulated(
    cli: Cli, tmp_path: Path, product: Product, kind: SigningKey
) -> None:
    report, leaf, ca, ark = made(tmp_path, World(product, kind))
    call = line("owner", "report", report, "--vcek", leaf, "--ca", ca)
    code, found = cli(*call)
    assert (1, True) == (code, "not one of AMD's pinned roots" in found["reasons"][0])
    code, out, err = cli.read(*call, "--trust", ark)
    assert (0, "") == (code, err)
    assert (
        "verdict: verified, root SIMULATED: not an AMD root, trusted by your --trust" == out.splitlines()[-1]
    )
    assert ("fmc 1" in out) is (product is Product.TURIN)
    code, found = cli(*call, "--trust", ark, "--want", wishes(tmp_path, "simulated = false"))
    assert (1, ["simulated: true, wanted false"]) == (code, found["reasons"])


def test_dates_and_revocation(cli: Cli, tmp_path: Path) -> None:
    call = line("owner", "report", REPORTS["trustee"], *words("trustee"))
    assert 0 == cli(*call, "--at", "2025-06-01")[0]
    code, found = cli(*call, "--at", "2026-01-31T12:00Z")
    assert (1, True) == (code, "expired at 2025-12-10" in found["reasons"][0])
    assert "2026-01-31T12:00:00+00:00" == found["result"]["chain"]["dates_judged_at"]
    assert 2 == cli(*call, "--at", "tomorrow")[0]
    world = World()
    report, leaf, ca, ark = made(tmp_path, world)
    (tmp_path / "list.crl").write_bytes(crl(world, revoked=(2,)))
    call = line("owner", "report", report, "--vcek", leaf, "--ca", ca, "--trust", ark)
    code, found = cli(*call, "--crl", tmp_path / "list.crl")
    assert (1, ["SEV-Milan: revoked by ARK-Milan (serial number 0x2)"]) == (code, found["reasons"])
    assert 2 == cli(*call, "--crl", leaf)[0]


def test_a_hosts_table_of_certificates_is_a_leaf_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.bin").write_bytes(build_cert_table({VCEK_GUID: real_chain("virtee").leaf.raw}))
    _, *ca = words("virtee")
    code, _ = cli("owner", "report", REPORTS["virtee"], "--vcek", tmp_path / "table.bin", *ca[1:])
    assert 0 == code


def test_what_a_hosts_table_holds_besides_is_named(cli: Cli, tmp_path: Path) -> None:
    world = World()
    leaf, ask, ark = world.certificates()
    entries = {CRL_GUID: crl(world, revoked=(2,)), VCEK_GUID: leaf.raw, ASK_GUID: ask.raw, ARK_GUID: ark.raw}
    (tmp_path / "extended.bin").write_bytes(world.report() + build_cert_table(entries))
    (tmp_path / "ark.der").write_bytes(ark.raw)
    extended = tmp_path / "extended.bin"
    call = line("owner", "report", extended, "--vcek", extended, "--trust", tmp_path / "ark.der")
    note = f"extended.bin under {CRL_GUID}: a X509 CRL, left aside"
    code, found = cli(*call)
    assert (0, [note]) == (code, found["result"]["chain"]["notes"])
    assert "revocation was not judged: no --crl was given" in found["result"]["chain"]["caveats"]
    assert f"note: {note}" in cli.read(*call)[1].splitlines()
    # Who wants to judge by the host's list says so.
    code, found = cli(*call, "--crl", extended)
    assert (1, ["SEV-Milan: revoked by ARK-Milan (serial number 0x2)"]) == (code, found["reasons"])
    verify = line("owner", "verify", extended, "--trust", tmp_path / "ark.der")
    assert f"note: {note}" in cli.read(*verify)[1].splitlines()


def test_a_leaf_that_cannot_be_read_leaves_the_report_unjudged_and_refused(cli: Cli, tmp_path: Path) -> None:
    world = World()
    world.leaf.extensions[f"{ARC}3.1"] = integer(999)
    report, leaf, ca, ark = made(tmp_path, world)
    code, found = cli("owner", "report", report, "--vcek", leaf, "--ca", ca, "--trust", ark)
    assert (1, []) == (code, found["result"]["checks"])
    assert "boot_loader 999" in found["reasons"][0]
    assert found["result"]["report"]["tcb"]["reported_tcb"] is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--chain", "x"), "--chain is for SEV reports"),
        (("--offset", "-1"), "is no offset"),
        (("--offset", "x"), "is no offset"),
        (("--offset", "9999"), "hold no whole report at offset 9999"),
        (("--want", "/no/such"), "/no/such: No such file"),
        (("--vcek", "/no/such"), "/no/such: No such file"),
        (("--vcek", VECTORS / "amd-root" / "ark_milan.cert"), "neither PEM nor DER nor a certificate table"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_sentence(cli: Cli, more: tuple[str, ...], reason: str) -> None:
    code, found = cli("owner", "report", REPORTS["virtee"], *more)
    assert (2, 1, {}) == (code, len(found["reasons"]), found["result"])
    assert reason in found["reasons"][0]


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("virtee", (), "AMD's key server has it: https://kdsintf.amd.com/vcek/v1/PRODUCT/d49554ec"),
        ("trustee", (), "a VLEK is handed out by the host, with an extended report"),
        ("virtee", ("--vcek", VECTORS / "snp-chain" / "ask_ark_milan.pem"), "no VCEK or VLEK"),
        ("virtee", ("--vcek", real_paths("virtee")[0]), "no ASK named SEV-Milan"),
    ],
    ids=str,
)
def test_a_report_is_shown_whatever_is_missing_and_not_verified(
    cli: Cli, name: str, more: tuple[str, ...], reason: str
) -> None:
    call = line("owner", "report", REPORTS[name], *more)
    code, found = cli(*call)
    result = found["result"]
    assert (2, 1, "NOT VERIFIED") == (code, len(found["reasons"]), result["verdict"])
    assert reason in found["reasons"][0]
    assert read_report(real_report(name)).measurement.hex() == result["report"]["measurement"]
    code, out, err = cli.read(*call)
    assert (2, True) == (code, reason in err)
    assert result["report"]["measurement"] in out
    assert "verdict: NOT VERIFIED" == out.splitlines()[-1]
    assert ("MISSING" in out) is bool(more)


def test_wishes_are_judged_without_certificates_and_the_missing_one_is_a_violation(
    cli: Cli, tmp_path: Path
) -> None:
    call = line("owner", "report", REPORTS["trustee"], "--want")
    code, found = cli(*call, wishes(tmp_path, "vmpl = 1\n[minimum.reported_tcb]\nsnp = 24"))
    violations = found["result"]["wishes"]["violations"]
    assert (2, ["verified: false, wanted true"]) == (code, [why.split(" (")[0] for why in violations])
    code, found = cli(*call, wishes(tmp_path, "vmpl = 0"))
    assert (2, 2) == (code, len(found["result"]["wishes"]["violations"]))


def test_a_malformed_report_is_shown_without_certificates_too(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "report.bin").write_bytes(flipped(REPORTS["trustee"].read_bytes(), 8 * 0x4C))
    code, found = cli("owner", "report", tmp_path / "report.bin")
    assert (2, "NOT VERIFIED", False) == (
        code,
        found["result"]["verdict"],
        found["result"]["checks"][0]["good"],
    )
    assert any("reserved bytes" in reason for reason in found["reasons"])


def test_a_sev_report_is_shown_whatever_is_missing(cli: Cli, tmp_path: Path) -> None:
    call = line("owner", "report", CASE / "attestation_report.bin")
    digest = AttestationReport.parse((CASE / "attestation_report.bin").read_bytes()).launch_digest.hex()
    code, found = cli(*call)
    assert (2, "NOT VERIFIED", digest) == (
        code,
        found["result"]["verdict"],
        found["result"]["report"]["launch_digest"],
    )
    assert "--chain" in found["reasons"][0]
    pek = tmp_path / "pek.cert"
    pek.write_bytes((CASE / "cert_chain_pek_oca_cek.bin").read_bytes()[:CERT_SIZE])
    code, found = cli(*call, "--chain", pek)
    assert (2, ["form", "signed by the PEK"]) == (code, [c["what"] for c in found["result"]["checks"]])
    assert "NOT VERIFIED" == found["result"]["verdict"]
    code, out, _ = cli.read(*call, "--chain", pek)
    assert "signed by the PEK: good" in out
    assert 5 == out.count("MISSING: ")


def test_a_provider_keys_certificate_comes_from_the_host(cli: Cli) -> None:
    assert "a VLEK is handed out by the host" in cli("owner", "report", REPORTS["trustee"])[1]["reasons"][0]


def test_a_sev_report(cli: Cli, certs: Path, tmp_path: Path) -> None:
    raw = (CASE / "attestation_report.bin").read_bytes()
    vector: dict[str, Any] = json.loads((CASE / "vector.json").read_text())
    (tmp_path / "report.bin").write_bytes(raw)
    call = line("owner", "report", tmp_path / "report.bin", "--chain", certs, "--trust", certs / "ark.cert")
    text = (
        f"measurement = '{vector['launch_digest']}'\nnonce = '{vector['attestation_mnonce']}'\n"
        "policy.debug = false\nsimulated = true\nverified = true"
    )
    code, found = cli(*call, "--want", wishes(tmp_path, text))
    assert (0, "sev-report") == (code, found["result"]["kind"])
    assert ["NODBG"] == found["result"]["report"]["policy_flags"]
    code, out, err = cli.read(*call)
    assert (0, "") == (code, err)
    assert f"  LAUNCH_DIGEST      {vector['launch_digest']}" in out
    assert "signed by the PEK: good" in out
    (tmp_path / "report.bin").write_bytes(flipped(raw, 8 * 0x30 + 7))
    code, found = cli(*call)
    assert (1, 2) == (code, len(found["reasons"]))
    assert found["result"]["report"]["policy_flags"] is None
    assert 2 == cli("owner", "report", tmp_path / "report.bin")[0]
    assert 2 == cli(*call, "--vcek", "x")[0]
    assert 2 == cli(*call, "--at", "2026-01-01")[0]


# ---- validate ----------------------------------------------------------------------------------------------


def test_validate_a_report(cli: Cli, tmp_path: Path) -> None:
    call = line("owner", "validate", REPORTS["azure"], "--want")
    code, out, err = cli.read(*call, wishes(tmp_path, "vmpl = 0\nminimum.guest_svn = 5"))
    assert (0, "") == (code, err)
    assert "believed because of nothing: what it says was compared, its signature was not checked here" in out
    assert "verdict: as wanted (2 wishes)" == out.splitlines()[-1]
    code, found = cli(*call, wishes(tmp_path, "vmpl = 1\nminimum.guest_svn = 6\nverified = true"))
    assert (1, 3) == (code, len(found["reasons"]))
    assert found["reasons"] == found["result"]["wishes"]["violations"]
    assert "verdict: NOT WHAT YOU WANT" == cli.read(*call, tmp_path / "wishes.toml")[1].splitlines()[-1]


def test_validate_knows_a_turin_report_of_version_2_by_its_chip_id(cli: Cli, tmp_path: Path) -> None:
    world = World(Product.TURIN)
    unnamed = {"version": 2, "cpuid_family": 0, "cpuid_model": 0, "cpuid_stepping": 0}
    report, leaf, ca, ark = made(tmp_path, world, world.report(unnamed))
    want = wishes(tmp_path, 'product = "Turin"\n[minimum.reported_tcb]\nfmc = 1\nsnp = 4')
    call = line("owner", "report", report, "--vcek", leaf, "--ca", ca, "--trust", ark, "--want", want)
    assert 0 == cli(*call)[0]
    assert 0 == cli("owner", "validate", report, "--want", want)[0]
    report.write_bytes(world.report(unnamed, current_tcb=bytes((1, 1, 0, 4, 0, 0, 7, 80))))
    for words_ in (call, line("owner", "validate", report, "--want", want)):
        code, found = cli(*words_)
        assert (1, True) == (code, "current_tcb: TCB version" in found["reasons"][0])


def test_validate_refuses_a_report_that_is_not_in_its_form(cli: Cli, tmp_path: Path) -> None:
    raw = REPORTS["trustee"].read_bytes()
    (tmp_path / "report.bin").write_bytes(flipped(raw, 8 * 0x4C))
    code, found = cli("owner", "validate", tmp_path / "report.bin", "--want", wishes(tmp_path, "vmpl = 1"))
    assert (1, ["report: reserved bytes 0x4c..0x4f are not zero"]) == (code, found["reasons"])


def test_validate_a_sev_report(cli: Cli, tmp_path: Path) -> None:
    call = line("owner", "validate", CASE / "attestation_report.bin", "--want")
    assert 0 == cli(*call, wishes(tmp_path, "evidence = 'sev-report'\npolicy.word = 1"))[0]
    assert 1 == cli(*call, wishes(tmp_path, "vmpl = 0"))[0]


def test_validate_a_launch_receipt(
    cli: Cli, reported: Path, launch: Path, tmp_path: Path, firmware: Path
) -> None:
    digest = cli("owner", "measure", "--mode", "sev", "--firmware", firmware)[1]["result"]["digest"]
    good = wishes(tmp_path, f"measurement = '{digest}'\n[minimum]\napi = '1.51'\nbuild = 3")
    call = line("owner", "validate", reported, "--want", good)
    code, found = cli(*call, "--tk", launch / "tmp_tk.bin")
    assert (0, True) == (code, found["result"]["believed"].startswith("the measurement"))
    code, found = cli(*call)  # without the key nobody can tell what was measured
    assert (1, True) == (code, "does not say it" in found["reasons"][0])
    wishes(tmp_path, f"measurement = '{'00' * 32}'")
    code, found = cli(*call, "--tk", launch / "tmp_tk.bin")
    assert (1, True) == (code, "nothing of what is wanted" in found["reasons"][0])


def test_validate_a_checked_receipt(cli: Cli, checked: Path, launch: Path, tmp_path: Path) -> None:
    call = line("owner", "validate", checked, "--want", wishes(tmp_path, "verified = true\nsimulated = true"))
    code, found = cli(*call, "--tk", launch / "tmp_tk.bin")
    assert (0, True) == (code, found["result"]["believed"].startswith("your own seal"))
    assert 2 == cli(*call)[0]
    wishes(tmp_path, "verified = true\nsimulated = false\nminimum.build = 200")
    assert 2 == len(cli(*call, "--tk", launch / "tmp_tk.bin")[1]["reasons"])
    checked.write_text(checked.read_text().replace('"policy":1', '"policy":0'))
    code, found = cli(*call, "--tk", launch / "tmp_tk.bin")
    assert (1, True) == (code, "its MAC does not match" in found["reasons"][0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vmpll = 0", "wishes.toml: unknown key vmpll; the nearest known one is vmpl"),
        ("", "wishes.toml: wishes for nothing"),
        ("vmpl", "wishes.toml: not TOML"),
    ],
)
def test_wishes_that_cannot_be_meant(cli: Cli, tmp_path: Path, text: str, reason: str) -> None:
    for step in ("validate", "report"):
        code, found = cli("owner", step, REPORTS["azure"], "--want", wishes(tmp_path, text))
        assert (2, True) == (code, found["reasons"][0].startswith(reason))


def test_validate_needs_evidence(cli: Cli, tmp_path: Path) -> None:
    want = wishes(tmp_path, "vmpl = 0")
    for content in (b"", b"{}", b"{", b"text", bytes(0x4A0)):
        (tmp_path / "evidence").write_bytes(content)
        assert 2 == cli("owner", "validate", tmp_path / "evidence", "--want", want)[0]


# ---- verify ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_verify_an_snp_chain(cli: Cli, name: str) -> None:
    call = line("owner", "verify", *words(name)[1:])
    code, found = cli(*call)
    assert (0, "owner verify") == (code, found["command"])
    result = found["result"]
    assert ("Milan", True, None) == (
        result["root"]["product"],
        result["root"]["pinned"],
        result["root"]["key_id"],
    )
    assert ["ARK", {"virtee": "ASK", "trustee": "ASVK", "azure": "ASK"}[name]] == [
        signature["certificate"] for signature in result["signatures"]
    ][:2]
    assert 3 == sum(signature["good"] for signature in result["signatures"])
    code, out, err = cli.read(*call)
    assert (0, "") == (code, err)
    assert 3 == out.count(": good\n")
    assert "verdict: verified, root AMD Milan (pinned)" == out.splitlines()[-1]


def test_verify_a_folder_and_refuse_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    chain = real_chain("virtee")
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "vcek.der").write_bytes(chain.leaf.raw)
    (folder / "cert_chain.pem").write_text(as_pem(chain.authority.raw) + as_pem(chain.root.raw))
    assert 0 == cli("owner", "verify", folder, "--at", "2025-01-01")[0]
    assert 1 == cli("owner", "verify", folder, "--at", "2050-01-01")[0]
    (folder / "vcek.der").write_bytes(flipped(chain.leaf.raw, 8 * len(chain.leaf.raw) - 1))
    code, found = cli("owner", "verify", folder)
    assert (1, ["VCEK signed by ASK: the RSA-PSS signature does not verify"]) == (code, found["reasons"])
    code, out, _ = cli.read("owner", "verify", folder)
    assert "signed by ASK: BAD: the RSA-PSS signature does not verify" in out
    assert "verdict: NOT TRUSTWORTHY" == out.splitlines()[-1]


def test_verify_does_not_mix_the_two_kinds(cli: Cli, certs: Path) -> None:
    code, found = cli("owner", "verify", certs, real_paths("virtee")[0])
    assert (2, True) == (code, "one chain at a time" in found["reasons"][0])
    code, found = cli("owner", "verify", certs, "--at", "2026-01-01")
    assert (2, True) == (code, "--crl and --at are for SNP" in found["reasons"][0])


def test_verify_takes_an_emulators_root_in_either_format(cli: Cli, tmp_path: Path) -> None:
    _, leaf, ca, ark = made(tmp_path, World(Product.GENOA))
    call = line("owner", "verify", leaf, "--ca", ca)
    assert 1 == cli(*call)[0]
    code, out, _ = cli.read(*call, "--trust", ark)
    assert (0, True) == (code, "SIMULATED" in out)
