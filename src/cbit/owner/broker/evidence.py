"""Hold evidence against a policy of the broker: the verification and validation that the owner does by hand.

Paper: sev-crypto.md §4, §9; launch-inputs.md §5, §8, §9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from cbit.owner.broker.store import Kind, Policy
from cbit.owner.errors import Untrusted
from cbit.owner.measure import Expectation, Mode
from cbit.owner.secret import LARGEST, raw
from cbit.owner.session import Measuring, Trusted
from cbit.owner.validate.facts import of_checked_receipt, of_snp_report
from cbit.owner.validate.wishes import BadWishes, Wishes, read_wishes
from cbit.owner.verify.chain import assemble
from cbit.owner.verify.files import Piece, pieces_of
from cbit.owner.verify.report import VerifiedReport, read_report, verify_report
from cbit.owner.verify.roots import read_root
from cbit.owner.verify.snp_chain import (
    assemble_snp,
    certificates_of,
    crls_of,
    trusted_root,
    verify_snp_chain,
)
from cbit.owner.verify.verdict import VerifiedPlatform, verify_chain
from cbit.spec.certificate import UNUSED_SLOT, Usage
from cbit.spec.errors import BadMeasurement
from cbit.spec.firmware_table import Area
from cbit.spec.policy import ApiVersion, GuestPolicy
from cbit.spec.policy import Policy as PolicyBit
from cbit.spec.receipt import Fields, LaunchReceipt
from cbit.spec.session import MeasureBlob

_DIGEST_SIZES: Final = {Kind.SEV: 32, Kind.SNP: 48}
_PINNING: Final = ("measurement", "id_key_digest", "author_key_digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What the platform reports about a launch; the chain is empty where no receipt brought one."""

    blob: MeasureBlob
    api: ApiVersion
    build: int
    policy: int | None
    chain: bytes = b""

    @classmethod
    def of_receipt(cls, receipt: LaunchReceipt) -> Self:
        """Take it from a launch receipt."""
        return cls(
            blob=receipt.blob,
            api=receipt.api,
            build=receipt.build,
            policy=receipt.policy,
            chain=receipt.chain,
        )

    @classmethod
    def of_qemu(cls, value: object) -> Self:
        """Take it from what QEMU answers: query-sev-launch-measure's ``data`` and query-sev's numbers.

        Raises:
            WireError: a field is missing, unknown or out of range.
        """
        what = "measurement"
        fields = Fields(value, "data", "api-major", "api-minor", "build-id", "policy", what=what)
        return cls(
            blob=MeasureBlob.parse(fields.base64("data")),
            api=ApiVersion(fields.number("api-major", below=256), fields.number("api-minor", below=256)),
            build=fields.number("build-id", below=256),
            policy=fields.number("policy", below=1 << 32),
        )


def wishes_of(policy: Policy) -> Wishes:
    """Read the wishes of a policy.

    Raises:
        BadWishes: they cannot be used.
    """
    return read_wishes(policy.wishes, source=f"policy {policy.name}")


def policy_word(policy: Policy) -> int:
    """Return the policy word that a session is made for: the one that is wished for.

    Raises:
        BadWishes: none is, or several are.
        WireError: it sets reserved bits.
    """
    words = wishes_of(policy).wanted.get("policy.word", ())
    if len(words) != 1:
        raise BadWishes(
            [f"policy {policy.name}: a session is made for one policy word: wish for it (policy.word = 0x1)"]
        )
    return int(GuestPolicy.parse(words[0]))


def check_policy(policy: Policy) -> None:
    """Refuse a policy that nothing can fulfil, or that any guest would.

    Raises:
        BadWishes, WireError, InvalidCertificate, ValueError: what is wrong with it.
    """
    if not policy.name or not policy.name.isprintable() or len(policy.name) > 100:
        raise ValueError("a policy has a name of up to 100 printable letters")
    wishes = wishes_of(policy)
    size = _DIGEST_SIZES[policy.kind]
    if any(len(digest) != size for digest in wishes.digests):
        raise BadWishes([f"policy {policy.name}: a digest of {policy.kind} has {size} bytes"])
    check = _sev_mistakes if policy.kind is Kind.SEV else _snp_mistakes
    if reasons := [f"policy {policy.name}: {mistake}" for mistake in check(policy, wishes)]:
        raise BadWishes(reasons)


def _sev_mistakes(policy: Policy, wishes: Wishes) -> Iterator[str]:
    policy_word(policy)
    raw(policy.secret.material())
    for name, data in policy.certificates:
        pieces_of(data, source=name)
    _sev_roots(policy)
    if not wishes.digests:
        yield "wishes for no measurement: any guest would get the secret"
    if policy.crls:
        yield "has revocation lists, which are for SNP"


def _snp_mistakes(policy: Policy, wishes: Wishes) -> Iterator[str]:
    for name, data in policy.certificates:
        certificates_of(data, source=name)
    for name, data in policy.roots:
        trusted_root(data, source=name)
    for name, data in policy.crls:
        crls_of(data, source=name)
    if not 0 < len(policy.secret) <= LARGEST:
        yield f"a secret has 1 to {LARGEST} bytes"
    if not any(name in wishes.wanted for name in _PINNING):
        yield f"wishes for none of {', '.join(_PINNING)}: any guest would get the secret"
    if "report_data" in wishes.wanted:
        yield "wishes for report_data, which the broker's challenge decides"


def _sev_roots(policy: Policy) -> list[Piece]:
    for name, data in policy.roots:
        read_root(data, source=name)
    return [Piece(Usage.ARK, data, name) for name, data in policy.roots]


def platform(policy: Policy, chain: bytes) -> VerifiedPlatform:
    """Verify a platform's chain, completed by the policy's certificates.

    Raises:
        Untrusted, Missing: it does not hold, or is not whole.
        WireError: it cannot be read.
    """
    roots = _sev_roots(policy)
    pieces = pieces_of(chain, source="chain")
    for name, data in policy.certificates:
        pieces += pieces_of(data, source=name)
    trust = [read_root(piece.raw, source=piece.source) for piece in roots]
    return verify_chain(assemble(pieces, roots=roots), trust=trust)


def judge_launch(policy: Policy, measuring: Measuring, reported: Reported) -> Trusted:
    """Decide whether a launch is one of those that a policy wishes for.

    Raises:
        BadMeasurement, Untrusted, Missing: it is not; with every reason.
        WireError: the receipt's chain cannot be read.
    """
    wishes = wishes_of(policy)
    problems = list(_chain_problems(policy, measuring, reported))
    trusted = _measured(wishes, measuring, reported)
    if trusted.receipt is None:
        raise AssertionError("check() keeps the evidence")
    problems += wishes.violations(of_checked_receipt(trusted.receipt))
    if problems:
        raise Untrusted(problems)
    return trusted


def _chain_problems(policy: Policy, measuring: Measuring, reported: Reported) -> Iterator[str]:
    """Check a receipt's chain; it adds nothing to the keys, and must be the session's all the same."""
    if not reported.chain or measuring.record is None:
        return
    found = platform(policy, reported.chain)
    if hashlib.sha256(bytes(found.pdh)).hexdigest() != measuring.record.pdh_sha256:
        yield "the receipt is of another platform than the one that the session was made for"
    for piece in pieces_of(reported.chain, source="chain"):
        # The firmware makes the CEK's certificate at every INIT, with its own version; only AMD signs it.
        cert = piece.sev() if piece.role is Usage.CEK else None
        if cert is not None and cert.slots() == (UNUSED_SLOT, UNUSED_SLOT):
            api = ApiVersion(cert.api_major, cert.api_minor)
            if api != reported.api:
                yield f"the receipt says firmware API {reported.api}, and its exported CEK {api}"


def _measured(wishes: Wishes, measuring: Measuring, reported: Reported) -> Trusted:
    mode = Mode.SEV_ES if measuring.policy & PolicyBit.ES else Mode.SEV
    first: BadMeasurement | None = None
    for digest in wishes.digests:
        try:
            return measuring.check(
                reported.blob,
                Expectation(mode, digest, (), Area(0, 0)),
                api=reported.api,
                build=reported.build,
                reported_policy=reported.policy,
            )
        except BadMeasurement as error:
            first = first or error
    raise first or BadMeasurement("no measurement is wished for")


def judge_report(
    policy: Policy, report: bytes, *, certificates: bytes, report_data: bytes, now: datetime
) -> VerifiedReport:
    """Decide whether a report is of a guest that a policy wishes for.

    Args:
        policy: what is wished for.
        report: 0x4A0 bytes.
        certificates: the leaf, and perhaps its chain.
        report_data: what the report must cover.
        now: the moment to judge dates by.

    Raises:
        Untrusted, Missing: it is not; with every reason.
        WireError: something cannot be read.
    """
    given = certificates_of(certificates, source="certificates")
    for name, data in policy.certificates:
        given += certificates_of(data, source=name)
    roots = [trusted_root(data, source=name) for name, data in policy.roots]
    crls = [crl for name, data in policy.crls for crl in crls_of(data, source=name)]
    chain = assemble_snp(given, roots=roots, signed_by=read_report(report).signing_key)
    endorser = verify_snp_chain(chain, trust=roots, crls=crls, at=now)
    verified = verify_report(report, endorser)
    facts = of_snp_report(
        verified.report, product=endorser.endorsement.product, simulated=endorser.simulated, verified=True
    )
    problems = wishes_of(policy).violations(facts)
    if verified.report.report_data != report_data:
        problems.append(
            "report_data: does not cover the broker's challenge and the guest's key (SHA-512 of both)"
        )
    if not any(verified.report.report_id):
        problems.append("report_id: is zero, which does not tell one launch from another")
    if problems:
        raise Untrusted(problems)
    return verified
