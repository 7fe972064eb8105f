"""What ``cbit owner measure`` does with files alone: the digest, and its explanation.

Each way loads what it needs: who wants a digest waits for nothing else.
"""

from __future__ import annotations

import base64
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cbit.cli.envelope import Outcome
from cbit.cli.owner.measure_inputs import launch_of
from cbit.owner.measure import Launch, Mode

if TYPE_CHECKING:
    from cbit.owner.measure import DirectLaunch


def run(args: Namespace) -> Outcome:
    """Compute the digest; check the measurement if one is given; explain it if asked to."""
    args.mode = Mode(args.mode)
    if args.receipt is not None or args.toml is not None:
        from cbit.cli.target import insist_apart

        insist_apart(args, "receipt", "toml", texts=("firmware", "kernel", "initrd"))
    launch = launch_of(args)
    _refuse_odd_words(args)
    if args.explain:
        return _explained(args, launch)
    if args.tk is not None:
        from cbit.cli.owner.measure_check import check

        return check(args, launch)
    if isinstance(launch, Launch) and _is_digest_alone(args):
        digest = launch.digest()
        text = digest.hex() if args.output == "hex" else base64.b64encode(digest).decode()
        return Outcome(ok=True, lines=lambda: [text], notes=tuple(launch.lacks()))
    from cbit.cli.owner import measure_output

    expectation = launch.expectation()
    result = measure_output.as_json(launch, expectation.digest)
    if args.expect is not None:
        from cbit.cli.owner.measure_explain import check_size

        check_size(launch, args.expect)
        if args.expect != expectation.digest:
            reason = "the launch digest is not the expected one; --explain searches for the reason"
            return Outcome(ok=False, result=result, reasons=(reason,))
    if args.toml is not None:
        measure_output.write_wishes(args.toml, result)
    notes = () if args.output is None else tuple(result["lacks"])
    return Outcome(ok=True, result=result, lines=lambda: _lines(args, result), notes=notes)


def _explained(args: Namespace, launch: Launch | DirectLaunch) -> Outcome:
    from cbit.cli.owner.measure_explain import explain_launch

    if args.tk is None:
        return explain_launch(args, launch, None)
    from cbit.cli.owner.measure_check import reported

    return explain_launch(args, launch, reported(args))


def _is_digest_alone(args: Namespace) -> bool:
    return args.output is not None and not args.json and args.toml is None and args.expect is None


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
    from cbit.cli.owner import measure_output

    yield from measure_output.lines(result)
    if args.expect is not None:
        yield "verdict: this is the expected digest"
    if args.toml is not None:
        yield f"wrote {args.toml}"
