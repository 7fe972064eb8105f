"""``cbit owner measure``: what a launch must measure, and whether it did."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner import measure_output
from cbit.cli.owner.arguments import SIMULATED, api_version, byte, measure_blob, policy, transport_keys
from cbit.cli.owner.measure_explain import add_explain, check_size, explain_launch
from cbit.cli.owner.measure_inputs import add_image, add_vcpus, launch_of
from cbit.cli.parser import Parser
from cbit.crypto.session import TransportKeys
from cbit.owner import files
from cbit.owner.explain import Measurement
from cbit.owner.measure import DirectLaunch, Launch, Mode
from cbit.owner.receipt import CheckedReceipt, SessionRecord
from cbit.owner.session import Measuring
from cbit.owner.validate.launch import OLDEST_API, Minimum
from cbit.owner.verify.files import read_limited
from cbit.spec.policy import ApiVersion, GuestPolicy, Policy
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob

HELP: Final = "compute what a launch must measure, check a measurement, explain a bad one"
DESCRIPTION: Final = (
    "Compute the launch digest from your own copies of the files.  With the transport keys and what\n"
    "the platform reports, check the measurement and write the receipt that `cbit owner secret` asks for.\n"
    "With --explain, search for the reason why a value does not match."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd\n"
    "  cbit owner measure --mode sev --kernel vmlinuz --initrd initrd.img --append quiet --memory 256M\n"
    "  cbit owner measure --mode snp --firmware OVMF.fd --vcpus 4 --vcpu-type EPYC-Milan --toml want.toml\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd --tk launch/tmp_tk.bin \\\n"
    "      --launch-receipt launch.json --min-api 1.51 --min-build 3 --receipt checked.json\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd --tk launch/tmp_tk.bin --measurement B64 \\\n"
    "      --api-major 0 --api-minor 24 --build-id 15 --policy NODBG --receipt checked.json\n"
    "  cbit owner measure --mode snp --firmware OVMF.fd --vcpus 4 --vcpu-type EPYC-Milan \\\n"
    "      --explain --expect 80479ca8…"
)


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--mode", type=Mode, choices=list(Mode), required=True, help="how the guest is protected"
    )
    add_image(parser)
    add_vcpus(parser)
    report = parser.add_argument_group("what the platform reports")
    report.add_argument("--launch-receipt", type=Path, metavar="FILE", help="all of it in one file")
    report.add_argument("--measurement", type=measure_blob, metavar="B64", help="base64 of measure and nonce")
    report.add_argument("--api-major", type=byte, metavar="N", help="API version of its firmware")
    report.add_argument("--api-minor", type=byte, metavar="N", help="likewise")
    report.add_argument("--build-id", type=byte, metavar="N", help="build of its firmware")
    owner = parser.add_argument_group("what you know and want")
    owner.add_argument("--tk", type=Path, metavar="TK", help=f"the session's {files.TRANSPORT_KEYS}")
    owner.add_argument(
        "--policy",
        type=policy,
        help=f"your policy; without it the one of {files.SESSION_RECORD} beside the keys",
    )
    owner.add_argument(
        "--min-api", type=api_version, metavar="X.Y", help="oldest firmware API that you accept"
    )
    owner.add_argument("--min-build", type=byte, metavar="N", help="oldest build, at that API version")
    owner.add_argument("--receipt", type=Path, metavar="OUT", help="write the checked receipt here")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", choices=("hex", "base64"), help="print the digest alone, written so (for scripts)"
    )
    output.add_argument(
        "--toml", type=Path, metavar="FILE", help="write it as a wish that `cbit owner validate` takes"
    )
    add_explain(parser)


def run(args: Namespace) -> Outcome:
    """Compute the digest; check the measurement if one is given; explain it if asked to."""
    launch = launch_of(args)
    _refuse_odd_words(args)
    if args.explain:
        return explain_launch(args, launch, _reported(args))
    if args.tk is not None:
        return _check(args, launch)
    expectation = launch.expectation()
    result = measure_output.as_json(launch, expectation.digest)
    if args.expect is not None:
        check_size(launch, args.expect)
        if args.expect != expectation.digest:
            reason = "the launch digest is not the expected one; --explain searches for the reason"
            return Outcome(ok=False, result=result, reasons=(reason,))
    if args.toml is not None:
        measure_output.write_wishes(args.toml, result)
    return Outcome(ok=True, result=result, lines=lambda: _lines(args, result))


def _refuse_odd_words(args: Namespace) -> None:
    words = ("measurement", "launch_receipt", "receipt")
    asked = [f"--{name.replace('_', '-')}" for name in words if getattr(args, name) is not None]
    if asked and args.mode is Mode.SNP:
        raise ValueError(
            f"{asked[0]} belongs to SEV and SEV-ES; an SNP guest gives a report: give its measurement as "
            "--expect, or the report to `cbit owner report`"
        )
    if asked and args.tk is None:
        raise ValueError(f"{asked[0]} needs the session's keys: --tk")
    if args.tk is not None and args.mode is Mode.SNP:
        raise ValueError("--tk belongs to SEV and SEV-ES: an SNP launch has no transport keys")
    if args.tk is not None and args.expect is not None:
        raise ValueError("--expect is a digest, --tk checks a measurement: one of them")
    if args.explain and (args.receipt is not None or args.toml is not None):
        raise ValueError("--explain writes no file: --receipt and --toml belong to a launch that is good")


def _lines(args: Namespace, result: dict[str, Any]) -> Iterator[str]:
    if args.output is not None:
        yield result["digest" if args.output == "hex" else "digest_base64"]
        return
    yield from measure_output.lines(result)
    if args.expect is not None:
        yield "verdict: this is the expected digest"
    if args.toml is not None:
        yield f"wrote {args.toml}"


def _check(args: Namespace, launch: Launch | DirectLaunch) -> Outcome:
    report, keys = _report(args), transport_keys(args.tk)
    measuring = _measuring(args, keys)
    if (wanted := _mode_of(measuring.policy)) is not args.mode:
        word = "demands" if wanted is Mode.SEV_ES else "does not demand"
        raise ValueError(
            f"policy {measuring.policy:#x} {word} SEV-ES, and hosts launch as it says: --mode {wanted}"
        )
    expectation = launch.expectation()
    trusted = measuring.check(
        report.blob,
        expectation,
        api=report.api,
        build=report.build,
        reported_policy=report.policy,
        minimum=Minimum(args.min_api or OLDEST_API, args.min_build or 0),
    )
    if trusted.receipt is None:
        raise AssertionError("check() keeps the evidence")
    result = measure_output.as_json(launch, expectation.digest) | _checked(trusted.receipt)
    if args.toml is not None:
        measure_output.write_wishes(args.toml, result)
    if args.receipt is not None:
        files.write_public(args.receipt, trusted.receipt.to_json(keys.tik).encode())
    result |= {"receipt": args.receipt and str(args.receipt)}
    return Outcome(ok=True, result=result, lines=lambda: _checked_lines(args, result))


def _mode_of(policy: int) -> Mode:
    return Mode.SEV_ES if policy & Policy.ES else Mode.SEV


def _reported(args: Namespace) -> Measurement | None:
    """Read what is to be explained, if it is a measurement."""
    if args.tk is None:
        return None
    report, keys = _report(args), transport_keys(args.tk)
    return Measurement(
        keys=keys,
        blob=report.blob,
        api=report.api,
        build=report.build,
        policy=_measuring(args, keys).policy,
        reported_policy=report.policy,
    )


@dataclass(frozen=True, slots=True)
class Report:
    """What the platform reports, from either form."""

    blob: MeasureBlob
    api: ApiVersion
    build: int
    policy: int | None


def _report(args: Namespace) -> Report:
    words = {name: getattr(args, name) for name in ("measurement", "api_major", "api_minor", "build_id")}
    given = [f"--{name.replace('_', '-')}" for name, value in words.items() if value is not None]
    absent = [f"--{name.replace('_', '-')}" for name, value in words.items() if value is None]
    if args.launch_receipt is not None:
        if given:
            raise ValueError(f"--launch-receipt says all of it: {', '.join(given)} cannot stand beside it")
        receipt = LaunchReceipt.from_json(read_limited(args.launch_receipt))
        return Report(receipt.blob, receipt.api, receipt.build, receipt.policy)
    if absent:
        raise ValueError(f"to check a measurement, give --launch-receipt, or also {', '.join(absent)}")
    return Report(args.measurement, ApiVersion(args.api_major, args.api_minor), args.build_id, None)


def _measuring(args: Namespace, keys: TransportKeys) -> Measuring:
    """Take the session up again, with its record if that lies beside the keys."""
    beside = args.tk.with_name(files.SESSION_RECORD)
    record = SessionRecord.from_json(read_limited(beside), keys.tik) if beside.is_file() else None
    if args.policy is None and record is None:
        raise ValueError(f"--policy is wanted: there is no {files.SESSION_RECORD} beside {args.tk.name}")
    word = args.policy if args.policy is not None or record is None else record.policy
    return Measuring(keys, policy=word, record=record)


def _checked(receipt: CheckedReceipt) -> dict[str, Any]:
    return {
        "verdict": "trusted",
        "measure": receipt.measure.hex(),
        "nonce": receipt.mnonce.hex(),
        "api": {"major": receipt.api.major, "minor": receipt.api.minor},
        "build": receipt.build,
        "policy": receipt.policy,
        "platform": receipt.platform or None,
        "simulated": receipt.simulated,
        "chain_verified": receipt.verified,
        "dangerously_unverified": receipt.verified is False,
    }


def _checked_lines(args: Namespace, result: dict[str, Any]) -> Iterator[str]:
    if args.output is not None:
        yield from _lines(args, result)
        return
    yield from measure_output.lines(result)
    yield f"measurement   {result['measure']}"
    api = result["api"]
    yield f"firmware      API {api['major']}.{api['minor']} build {result['build']}"
    yield f"policy        {GuestPolicy.parse(result['policy'])}"
    if result["dangerously_unverified"]:
        yield "platform      DANGEROUSLY UNVERIFIED: the session was made for a chain that nobody verified"
    elif result["platform"]:
        yield f"platform      {result['platform']}"
    else:
        yield f"platform      not recorded: there is no {files.SESSION_RECORD} beside the keys"
    yield f"verdict: {f'{SIMULATED}: ' if result['simulated'] else ''}the guest was launched from these files"
    for path in (args.receipt, args.toml):
        if path is not None:
            yield f"wrote {path}"
