"""What ``cbit owner measure`` does with the transport keys: check a measurement."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cbit.cli.envelope import Outcome
from cbit.cli.owner import measure_output
from cbit.cli.owner.arguments import SIMULATED, session_record, transport_keys
from cbit.crypto.session import TransportKeys
from cbit.owner import files
from cbit.owner.explain import Measurement
from cbit.owner.files import read_limited
from cbit.owner.measure import DirectLaunch, Launch, Mode
from cbit.owner.receipt import NOT_RECORDED, CheckedReceipt
from cbit.owner.session import Measuring
from cbit.owner.validate.launch import OLDEST_API, Minimum
from cbit.spec.policy import ApiVersion, GuestPolicy, Policy
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob


def check(args: Namespace, launch: Launch | DirectLaunch) -> Outcome:
    """Check a measurement, and write the receipt if it is asked for."""
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
    notes = () if args.output is None else tuple(result["lacks"])
    return Outcome(ok=True, result=result, lines=lambda: _checked_lines(args, result), notes=notes)


def _mode_of(policy: int) -> Mode:
    return Mode.SEV_ES if policy & Policy.ES else Mode.SEV


def reported(args: Namespace) -> Measurement:
    """Read the measurement that is to be explained."""
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
    record = session_record(args.tk, keys)
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
        yield result["digest" if args.output == "hex" else "digest_base64"]
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
        yield f"{NOT_RECORDED} (there is no {files.SESSION_RECORD} beside them)"
    yield f"verdict: {f'{SIMULATED}: ' if result['simulated'] else ''}the guest was launched from these files"
    for path in (args.receipt, args.toml):
        if path is not None:
            yield f"wrote {path}"
