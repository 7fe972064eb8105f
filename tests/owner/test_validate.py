"""Wishes about every kind of evidence: fulfilled, violated, all violations at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cbit.crypto.session import TransportKeys
from cbit.owner.measure import Mode, expect
from cbit.owner.session import Measuring
from cbit.owner.validate.facts import (
    Evidence,
    Kind,
    of_checked_receipt,
    of_launch_receipt,
    of_sev_report,
    of_snp_report,
)
from cbit.owner.validate.wishes import (
    UNASKED,
    WISHES,
    BadWishes,
    Wishes,
    read_wishes,
)
from cbit.owner.verify.report import read_report
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.errors import NotModelled, WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.snp_report import PlatformInfo, Product, SigningKey, SnpReport
from owner.snp_worlds import CHIP, World, real_report
from owner.worlds import CASE, a_launch

KEYS = TransportKeys.parse(bytes(range(32)))
HEX: dict[str, str] = {
    "measurement": "4d" * 48,
    "report_data": "44" * 64,
    "host_data": "48" * 32,
    "family_id": "00" * 16,
    "image_id": "49" * 16,
    "report_id": "52" * 32,
    "report_id_ma": "ff" * 32,
    "chip_id": CHIP.hex(),
    "id_key_digest": "00" * 48,
    "author_key_digest": "00" * 48,
}


def wishes(text: str) -> Wishes:
    return read_wishes(text.encode(), source="wishes.toml")


def report(**changes: Any) -> SnpReport:
    return read_report(World().report(changes))


def evidence(**changes: Any) -> Evidence:
    return of_snp_report(report(**changes))


def violations(text: str, found: Evidence | None = None) -> list[str]:
    return wishes(text).violations(found or evidence())


# ---- an SNP report -----------------------------------------------------------------------------------------

ALL_FULFILLED = "\n".join(
    [
        'evidence = "snp-report"',
        *(f'{name} = "{value}"' for name, value in HEX.items()),
        "vmpl = 0",
        "version = [3, 5]",
        'signing_key = "vcek"',
        "author_key = false",
        'product = ["Milan", "Genoa"]',
        "[policy]",
        "word = 0x3001f",
        'abi = "0.31"',
        "smt = true",
        *(
            f"{name} = false"
            for name in (
                *("debug", "migration", "single_socket", "cxl", "aes_256_xts", "rapl_disabled"),
                *("ciphertext_hiding", "page_swap_disabled"),
            )
        ),
        "[platform]",
        "smt = true",
        "ecc = true",
        *(f"{name} = false" for name in ("tsme", "rapl_disabled", "ciphertext_hiding", "alias_check", "tio")),
        "[minimum]",
        "version = 2",
        "guest_svn = 2",
        'api = "1.55"',
        "build = 21",
        *(
            f"[minimum.{which}_tcb]\nboot_loader = 4\ntee = 0\nsnp = 24\nmicrocode = 219"
            for which in ("reported", "current", "committed", "launch")
        ),
    ]
)


def test_a_report_that_is_as_wanted() -> None:
    assert [] == violations(ALL_FULFILLED)
    asked = set(wishes(ALL_FULFILLED).wanted)
    # Every wish is tried here except those that another kind of evidence answers.
    others = {name for name in WISHES if name.endswith(".fmc") or "mitigations" in name} | {
        *("nonce", "verified", "simulated", "policy.key_sharing", "policy.es", "policy.domain", "policy.sev"),
    }
    assert set(WISHES) == asked | others


def opposite(line: str) -> str:
    """The same wish, unfulfilled by the report of ``ALL_FULFILLED``."""
    name, _, value = line.partition(" = ")
    turned = {"true": "false", "false": "true", '"vcek"': '"vlek"', '"snp-report"': '"launch"'}
    if value in turned:
        return f"{name} = {turned[value]}"
    if value.startswith('"') and "." in value:
        return f'{name} = "9.9"'
    if value.startswith('"'):
        return f'{name} = "{"a5" * (len(value) // 2 - 1)}"'
    exact = {"vmpl": "3", "version": "[2, 5]", "word": "0x30020", "product": '"Turin"'}
    return f"{name} = {exact[name]}" if name in exact and value != "2" else f"{name} = 250"


def test_every_wish_can_be_violated_and_all_violations_are_listed_at_once() -> None:
    lines = [line if line.startswith("[") else opposite(line) for line in ALL_FULFILLED.splitlines()]
    found = violations("\n".join(lines))
    named = {violation.partition(":")[0] for violation in found}
    expected = set(wishes(ALL_FULFILLED).wanted) - {"minimum.api", "minimum.build"} | {"minimum"}
    assert expected == named
    assert len(expected) == len(found)


@pytest.mark.parametrize("line", [line for line in ALL_FULFILLED.splitlines() if " = " in line])
def test_one_wish_alone(line: str) -> None:
    """One violation, the same whatever else is wished for."""
    table = ""
    for each in ALL_FULFILLED.splitlines():
        if each.startswith("["):
            table = each + "\n"
        elif each == line:
            break
    assert [] == violations(table + line)
    assert 1 == len(violations(table + opposite(line)))


def test_a_violation_says_what_is_and_what_was_wanted() -> None:
    assert ["vmpl: 1, wanted 0 or 2"] == violations("vmpl = [0, 2]", evidence(vmpl=1))
    assert ["minimum.launch_tcb.snp: 24, wanted at least 25"] == violations("[minimum.launch_tcb]\nsnp = 25")
    assert ["policy.smt: true, wanted false"] == violations("policy = {smt = false}")
    assert [f"host_data: {'48' * 32}, wanted {'00' * 32}"] == violations(f'host_data = "{"00" * 32}"')
    assert ["policy.word: 0x3001f, wanted 0x30000"] == violations("policy.word = 0x30000")
    assert ["policy.abi: 0.31, wanted at least 1.0"] == violations('policy.abi = "1.0"')


@pytest.mark.parametrize(
    ("wanted", "met"),
    [
        ('api = "1.55"', True),
        ('api = "1.56"', False),
        ('api = "0.99"', True),
        ("build = 21", True),
        ("build = 22", False),
        ('api = "1.55"\nbuild = 22', False),
        ('api = "1.54"\nbuild = 200', True),  # builds count within one version only
        ('api = "2.0"\nbuild = 0', False),
    ],
)
def test_firmware_is_judged_by_the_older_of_current_and_committed(wanted: str, met: bool) -> None:
    assert met is (violations(f"[minimum]\n{wanted}") == [])


def test_a_provisional_version_is_judged_by_what_is_committed() -> None:
    found = evidence(committed_minor=40, committed_build=99)
    assert ["minimum: firmware API 1.40 build 99, wanted at least API 1.55"] == violations(
        'minimum.api = "1.55"', found
    )


@pytest.mark.parametrize(
    ("change", "wish"),
    [
        ({"policy": 1 << 16 | 1 << 17}, "policy.smt"),
        ({"policy": 1 << 18 | 1 << 17}, "policy.migration"),
        ({"policy": 1 << 19 | 1 << 17}, "policy.debug"),
        ({"policy": 1 << 20 | 1 << 17}, "policy.single_socket"),
        ({"policy": 1 << 21 | 1 << 17}, "policy.cxl"),
        ({"policy": 1 << 22 | 1 << 17}, "policy.aes_256_xts"),
        ({"policy": 1 << 23 | 1 << 17}, "policy.rapl_disabled"),
        ({"policy": 1 << 24 | 1 << 17}, "policy.ciphertext_hiding"),
        ({"policy": 1 << 25 | 1 << 17}, "policy.page_swap_disabled"),
        ({"platform_info": PlatformInfo(1 << 0)}, "platform.smt"),
        ({"platform_info": PlatformInfo(1 << 1)}, "platform.tsme"),
        ({"platform_info": PlatformInfo(1 << 2)}, "platform.ecc"),
        ({"platform_info": PlatformInfo(1 << 3)}, "platform.rapl_disabled"),
        ({"platform_info": PlatformInfo(1 << 4)}, "platform.ciphertext_hiding"),
        ({"platform_info": PlatformInfo(1 << 5)}, "platform.alias_check"),
        ({"platform_info": PlatformInfo(1 << 7)}, "platform.tio"),
    ],
)
def test_each_bit_is_one_fact(change: dict[str, Any], wish: str) -> None:
    facts = evidence(**change).facts
    table = wish.partition(".")[0] + "."
    assert {wish} == {name for name, value in facts.items() if name.startswith(table) and value is True}
    assert [] == violations(f"{wish} = true", evidence(**change))
    assert 1 == len(violations(f"{wish} = false", evidence(**change)))


# ---- what is refused without being asked for ---------------------------------------------------------------


def test_a_guest_that_the_host_may_read_is_refused_unless_it_is_wanted() -> None:
    open_ = evidence(policy=0x30000 | 1 << 19)
    assert ["policy.debug: true, wanted false (by default; the file may say otherwise)"] == violations(
        "version = 3", open_
    )
    assert [] == violations("version = 3\npolicy.debug = true", open_)


def test_a_report_that_the_host_asked_for_is_refused_unless_it_is_wanted() -> None:
    hosts = evidence(vmpl=0xFFFFFFFF)
    assert ["vmpl: host, wanted 0 or 1 or 2 or 3 (by default; the file may say otherwise)"] == violations(
        "version = 3", hosts
    )
    assert [] == violations('vmpl = ["host", 0]', hosts)


def test_what_nobody_verified_is_refused_where_that_is_known() -> None:
    assert {"policy.debug", "vmpl", "verified"} == set(UNASKED)
    known = of_snp_report(report(), verified=False, simulated=True)
    assert ["verified: false, wanted true (by default; the file may say otherwise)"] == violations(
        "version = 3", known
    )
    assert [] == violations("verified = false\nsimulated = true", known)
    assert ["simulated: true, wanted false"] == violations("verified = false\nsimulated = false", known)


def test_a_wish_that_the_evidence_says_nothing_about_is_not_fulfilled() -> None:
    found = violations(
        f'nonce = "{"00" * 16}"\nsimulated = false\n[policy]\nes = true\n[minimum.reported_tcb]\nfmc = 0'
    )
    assert 4 == len(found)
    assert all("this snp-report does not say it" in violation for violation in found)


# ---- versions and products ---------------------------------------------------------------------------------


def test_turin_has_its_own_parts() -> None:
    turin = of_snp_report(read_report(World(Product.TURIN).report()))
    text = "[minimum.reported_tcb]\nfmc = 1\nboot_loader = 1\nsnp = 4\nmicrocode = 80"
    assert [] == violations(text, turin)
    assert ["minimum.reported_tcb.fmc: 1, wanted at least 2"] == violations(
        "minimum.reported_tcb.fmc=2", turin
    )


def test_a_turins_chip_id_may_be_written_with_its_eight_bytes() -> None:
    turin, milan = (
        of_snp_report(read_report(World(product).report())) for product in (Product.TURIN, Product.MILAN)
    )
    short = f'chip_id = "{CHIP[:8].hex()}"'
    assert [] == violations(short, turin) == violations(f'chip_id = "{CHIP[:8].hex()}{"00" * 56}"', turin)
    assert 1 == len(violations(short, milan)) == len(violations(f'chip_id = "{"11" * 8}"', turin))
    for text in ("", "00" * 7, "00" * 9, "00" * 63):
        with pytest.raises(BadWishes, match="chip_id must be 16 or 128 hex digits"):
            wishes(f'chip_id = "{text}"')


def test_a_version_2_report_does_not_name_its_product() -> None:
    old = read_report(real_report("virtee"))
    assert ["product: Milan is wanted, and this snp-report does not say it"] == violations(
        'product = "Milan"', of_snp_report(old)
    )
    assert [] == violations('product = "Milan"', of_snp_report(old, product=Product.MILAN))
    assert [] == violations("[minimum.reported_tcb]\nsnp = 8\nmicrocode = 115", of_snp_report(old))


def test_mitigations_are_told_by_version_5() -> None:
    text = "platform.launch_mitigations = 0b101\nplatform.current_mitigations = 1"
    new = evidence(version=5, launch_mit_vector=0b111, current_mit_vector=0b001)
    assert [] == violations(text, new)
    assert ["platform.launch_mitigations: 3, wanted all of 5"] == violations(
        text, evidence(version=5, launch_mit_vector=3, current_mit_vector=3)
    )
    assert 2 == len(violations(text, evidence()))


def test_a_provider_key_can_be_wished_for() -> None:
    vlek = of_snp_report(read_report(World(kind=SigningKey.VLEK).report()))
    assert [] == violations('signing_key = "vlek"', vlek)
    assert ["signing_key: vlek, wanted vcek"] == violations('signing_key = "vcek"', vlek)


def test_an_author_key_can_be_wished_for() -> None:
    with_one = evidence(key_info=1, author_key_digest=b"A" * 48)
    digest = f'author_key_digest = "{"41" * 48}"'
    assert [] == violations(f"author_key = true\n{digest}", with_one)
    assert ["author_key: true, wanted false"] == violations("author_key = false", with_one)
    assert ["author_key: false, wanted true"] == violations("author_key = true")
    # A digest that the report itself says is nobody's fulfils no wish (and is refused when it is verified).
    for wish in (digest, f'author_key_digest = "{"00" * 48}"'):
        (why,) = violations(wish, evidence(author_key_digest=b"A" * 48))
        assert why.endswith("is wanted, and this snp-report does not say it")


def test_facts_of_a_malformed_report_are_not_told() -> None:
    with pytest.raises(WireError, match="reserved on Milan"):
        evidence(reported_tcb=b"\x01" * 8)
    with pytest.raises(NotModelled):
        evidence(cpuid_family=0x99)


# ---- SEV ---------------------------------------------------------------------------------------------------


def test_a_sev_report() -> None:
    found = of_sev_report(AttestationReport.parse((CASE / "attestation_report.bin").read_bytes()))
    digest, nonce = found.facts["measurement"].hex(), found.facts["nonce"].hex()
    text = f'evidence = "sev-report"\nmeasurement = "{digest}"\nnonce = "{nonce}"\npolicy.word = 1'
    assert [] == violations(text, found)
    assert ["evidence: sev-report, wanted snp-report or launch"] == violations(
        'evidence = ["snp-report", "launch"]', found
    )
    assert 1 == len(violations("vmpl = 0", found))


@pytest.mark.parametrize(
    ("word", "facts"),
    [
        (
            0x00,
            {
                "debug": True,
                "key_sharing": True,
                "es": False,
                "migration": True,
                "domain": False,
                "sev": False,
            },
        ),
        (
            0x3F,
            {
                "debug": False,
                "key_sharing": False,
                "es": True,
                "migration": False,
                "domain": True,
                "sev": True,
            },
        ),
        (0x01, {"debug": False, "key_sharing": True}),
        (0x02, {"debug": True, "key_sharing": False}),
        (0x04, {"es": True, "migration": True}),
        (0x08, {"es": False, "migration": False}),
        (0x10, {"domain": True, "sev": False}),
        (0x20, {"domain": False, "sev": True}),
    ],
)
def test_sev_bits_forbid_where_snp_bits_allow(word: int, facts: Mapping[str, bool]) -> None:
    found = of_launch_receipt(a_launch(KEYS, digest=bytes(32), policy=word))
    assert facts.items() <= {n.removeprefix("policy."): v for n, v in found.facts.items()}.items()


def test_a_launch_receipt_tells_its_measurement_only_to_who_has_the_key() -> None:
    digests = [bytes([n]) * 32 for n in range(3)]
    launch = a_launch(KEYS, digest=digests[1], build=7, api=ApiVersion(1, 51))
    text = 'verified = false\nmeasurement = "' + digests[1].hex() + '"\n[minimum]\napi = "1.51"\nbuild = 7'
    assert [] == violations(text, of_launch_receipt(launch, tik=KEYS.tik, digests=digests))
    blind = violations(text, of_launch_receipt(launch))
    assert [f"measurement: {digests[1].hex()} is wanted, and this launch does not say it"] == blind
    other = violations(text, of_launch_receipt(launch, tik=KEYS.tik, digests=[digests[0], b"", bytes(48)]))
    assert [f"measurement: nothing of what is wanted, wanted {digests[1].hex()}"] == other
    strangers = TransportKeys.parse(bytes(32))
    assert other == violations(text, of_launch_receipt(launch, tik=strangers.tik, digests=digests))


def test_a_checked_receipt() -> None:
    firmware = b"\x90" * 4096
    expectation = expect(Mode.SEV, firmware)
    launch = a_launch(KEYS, digest=expectation.digest, policy=1)
    trusted = Measuring(KEYS, policy=1).check(launch.blob, expectation, api=launch.api, build=launch.build)
    assert trusted.receipt is not None
    found = of_checked_receipt(trusted.receipt)
    digest = expectation.digest.hex()
    text = f'verified = false\nevidence = "launch"\nmeasurement = "{digest}"\n[policy]\ndebug = false\n'
    assert [] == violations(f'{text}[minimum]\napi = "1.51"\nbuild = 3', found)
    # No record of the session: nobody knows whether the chain was verified.
    assert 2 == len(violations("verified = true\nsimulated = false", found))
    unsaid = "verified: this launch does not say for whom its keys were made"
    assert [unsaid] == violations("verified = true", found)
    assert [f"{unsaid} (by default; the file may say otherwise)"] == violations("minimum.build = 3", found)
    assert ["minimum: firmware API 1.51 build 3, wanted at least build 4"] == violations(
        "verified = false\nminimum.build = 4", found
    )
    assert Kind.LAUNCH is found.kind
