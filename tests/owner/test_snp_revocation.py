"""When certificates hold, and what revocation lists take back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cbit.owner.errors import Untrusted
from cbit.owner.verify.crl import Crl, crl_problems
from cbit.owner.verify.snp_chain import (
    SnpChain,
    TrustedRoot,
    crls_of,
    find_snp_parts,
    inspect_snp,
    inspect_snp_parts,
    verify_snp_chain,
)
from cbit.spec.errors import WireError
from owner.snp_worlds import BORN, DIES, World, as_pem, crl, real_chain, rsa_key
from owner.worlds import flipped


def refused(chain: SnpChain, *trust: TrustedRoot, **options: Any) -> str:
    with pytest.raises(Untrusted) as caught:
        verify_snp_chain(chain, trust=trust, **options)
    return " | ".join(caught.value.reasons)


def test_dates_are_judged_only_at_a_moment_that_is_given() -> None:
    world = World()
    found = inspect_snp(world.chain(), trust=[world.root()])
    assert ((), True) == (found.problems, any("dates were not judged" in c for c in found.caveats))
    found = inspect_snp(world.chain(), trust=[world.root()], at=BORN)
    assert ((), False) == (found.problems, any("dates" in caveat for caveat in found.caveats))
    assert verify_snp_chain(world.chain(), trust=[world.root()], at=DIES)
    second = timedelta(seconds=1)
    assert 3 == refused(world.chain(), world.root(), at=BORN - second).count("not valid before 2024-01-01")
    assert 3 == refused(world.chain(), world.root(), at=DIES + second).count("expired at 2034-01-01")


def test_the_provider_key_of_a_real_machine_has_expired() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert "VLEK (trustee_milan_v3_vlek.der): expired at 2025-12-10T22:14:21+00:00" == refused(
        real_chain("trustee"), at=at
    )
    assert verify_snp_chain(real_chain("trustee"), at=datetime(2025, 1, 1, tzinfo=UTC))


def lists(*raws: bytes) -> list[Crl]:
    return [one for raw in raws for one in crls_of(raw, source="list.crl")]


def test_a_revocation_list_that_names_nobody_here_changes_nothing() -> None:
    world = World()
    for raw in (crl(world), crl(world, revoked=(77,)), as_pem(crl(world), "X509 CRL").encode()):
        found = inspect_snp(world.chain(), trust=[world.root()], crls=lists(raw))
        assert ((), 1) == (found.problems, found.crls)
        assert not any("revocation" in caveat for caveat in found.caveats)


def test_a_revoked_certificate_is_refused() -> None:
    world = World()
    why = refused(world.chain(), world.root(), crls=lists(crl(world, revoked=(3, 2))))
    assert "SEV-Milan: revoked by ARK-Milan (serial number 0x2)" == why
    # The same number by another authority is another certificate.
    by_ask = crl(world, revoked=(2,), signer=world.ask.key, issuer="SEV-Milan")
    assert verify_snp_chain(world.chain(), trust=[world.root()], crls=lists(by_ask))
    by_ask = crl(world, revoked=(7,), signer=world.ask.key, issuer="SEV-Milan")
    assert "SEV-VCEK: revoked by SEV-Milan" in refused(world.chain(), world.root(), crls=lists(by_ask))


def test_a_list_whose_issuer_is_missing_is_not_judged_and_said_so() -> None:
    world = World()
    leaf, ask, ark = world.certificates()
    by_root, by_ask = crl(world, revoked=(2,)), crl(world, signer=world.ask.key, issuer="SEV-Milan")
    unjudged = "revocation list list.crl: not judged, its issuer ARK-Milan is missing"
    found = inspect_snp_parts(find_snp_parts([leaf, ask]), crls=lists(by_root))
    assert ((), 0, (unjudged,)) == (found.problems, found.crls, found.unjudged)
    assert [unjudged] == [caveat for caveat in found.caveats if "revocation" in caveat]
    # A list by somebody who is there counts, whoever else is missing.
    found = inspect_snp_parts(find_snp_parts([leaf, ask]), crls=lists(by_root, by_ask))
    assert (1, (unjudged,)) == (found.crls, found.unjudged)
    by_ask = crl(world, revoked=(7,), signer=world.ask.key, issuer="SEV-Milan")
    found = inspect_snp_parts(find_snp_parts([leaf, ask]), crls=lists(by_ask))
    assert ("SEV-VCEK: revoked by SEV-Milan (serial number 0x7)",) == found.problems
    # With the root there is nothing that is not judged.
    found = inspect_snp_parts(find_snp_parts([leaf, ask, ark]), trust=[world.root()], crls=lists(by_root))
    assert (1, (), 1) == (found.crls, found.unjudged, len(found.problems))
    found = inspect_snp_parts(find_snp_parts([leaf, ask, ark]), trust=[world.root()])
    assert any("no --crl was given" in caveat for caveat in found.caveats)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"issuer": "ARK-Genoa"}, "issued by ARK-Genoa, who is not in this chain"),
        ({"signer": "somebody"}, "the RSA-PSS signature does not verify"),
        ({"critical": True}, "critical extension 2.5.29.27 is not understood"),
    ],
)
def test_a_list_that_does_not_hold_is_a_problem(options: dict[str, Any], reason: str) -> None:
    if "signer" in options:
        options = options | {"signer": rsa_key(options["signer"])}
    world = World()
    (made,) = lists(crl(world, **options))
    assert reason in refused(world.chain(), world.root(), crls=[made])
    assert reason in " ".join(crl_problems(made, world.certificates(), None))


def test_a_list_is_judged_by_its_dates_too() -> None:
    world = World()
    due = BORN + timedelta(days=30)
    old = lists(crl(world, due=due))
    assert verify_snp_chain(world.chain(), trust=[world.root()], crls=old)
    why = refused(world.chain(), world.root(), crls=old, at=due + timedelta(days=1))
    assert "revocation list list.crl: out of date since 2024-01-31" in why
    early = lists(crl(world, made=due, due=DIES))
    assert "made only at 2024-01-31" in refused(world.chain(), world.root(), crls=early, at=BORN)


def test_no_flipped_bit_of_a_revocation_list_leaves_it_silent() -> None:
    world = World()
    raw, chain = crl(world, revoked=(77,)), world.chain()
    for bit in range(0, 8 * len(raw), 29):
        try:
            found = inspect_snp(chain, trust=[world.root()], crls=lists(flipped(raw, bit)))
        except WireError:
            continue
        assert found.problems, f"bit {bit} was not noticed"
