"""``cbit owner measure --explain``: every input with its place, and why a reported value is another."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner import measure_output
from cbit.cli.owner.measure_arguments import DIGEST_SIZES
from cbit.owner.blob import LARGEST
from cbit.owner.explain import Digest, Explanation, File, Measurement, explain, explain_direct
from cbit.owner.files import read_limited
from cbit.owner.measure import DirectLaunch, Launch, Mode

_SIBLINGS: Final = frozenset({".fd", ".bin", ".rom"})
_LARGEST_SIBLING: Final = 1 << 24
_MOST_SIBLINGS: Final = 16


def check_size(launch: Launch | DirectLaunch, value: bytes) -> None:
    """Refuse a digest that belongs to another mode.

    Raises:
        ValueError: says which.
    """
    if len(value) == DIGEST_SIZES[launch.mode]:
        return
    if len(value) == DIGEST_SIZES[Mode.SNP]:
        raise ValueError(
            "--expect has 48 bytes: a digest of SNP (--mode snp), or a measurement with its nonce "
            "(--measurement, with --tk and the firmware's version)"
        )
    raise ValueError("--expect has 32 bytes: a digest of SEV or SEV-ES (--mode sev, --mode sev-es)")


def explain_launch(args: Namespace, launch: Launch | DirectLaunch, reported: Measurement | None) -> Outcome:
    """Show the inputs; search if there is a value to search for."""
    reasons = launch.unusable()
    digest = None if reasons else launch.expectation().digest
    result = measure_output.as_json(launch, digest) | {"unusable": reasons}
    value: Digest | Measurement | None = reported
    if value is None and args.expect is not None:
        check_size(launch, args.expect)
        value = Digest(args.expect)
    if value is None:
        return Outcome(
            ok=not reasons, result=result, reasons=tuple(reasons), lines=lambda: _input_lines(result)
        )
    if args.time_limit <= 0:
        raise ValueError("--time-limit is in seconds, and more than none")
    others = _others(args)
    if isinstance(launch, DirectLaunch):
        found = explain_direct(launch, value, others=others, limit_s=args.time_limit)
    else:
        found = explain(launch, value, others=others, limit_s=args.time_limit)
    result["explanation"] = {
        "matches": found.matches,
        "causes": list(found.causes),
        "excluded": list(found.excluded),
        "unfinished": list(found.unfinished),
        "not_tried": list(found.not_tried),
        "tried": found.tried,
    }
    return Outcome(
        ok=found.matches and not reasons,
        result=result,
        reasons=(*reasons, *_reasons(found)),
        lines=lambda: _lines(result, found),
    )


def _reasons(found: Explanation) -> Iterator[str]:
    if found.matches:
        return
    if found.causes:
        yield f"the reported value is another launch's; what differs: {'; '.join(found.causes)}"
        return
    yield f"the value does not match, and none of {found.tried} combinations of usual causes gives it"


def _others(args: Namespace) -> list[File]:
    """Read the files that were named, and firmware images that lie beside the owner's."""
    named = [File(path.name, read_limited(path, limit=LARGEST)) for path in args.also]
    given = {Path(name).resolve() for name in (args.firmware, args.kernel, args.initrd, *args.also) if name}
    beside = (
        path
        for path in (sorted(Path(args.firmware).parent.iterdir()) if args.firmware else ())
        if path.suffix in _SIBLINGS and path.resolve() not in given and path.is_file()
    )
    small = [path for path in beside if path.stat().st_size <= _LARGEST_SIBLING]
    return named + [
        File(path.name, read_limited(path, limit=_LARGEST_SIBLING)) for path in small[:_MOST_SIBLINGS]
    ]


def _input_lines(result: dict[str, Any]) -> Iterator[str]:
    yield from measure_output.lines(result)
    for item in result["inputs"]:
        yield f"place: {' '.join(filter(None, (item['what'], item['name'])))}: {item['place']}"


def _lines(result: dict[str, Any], found: Explanation) -> Iterator[str]:
    yield from _input_lines(result)
    if found.matches:
        yield "the reported value is the one that these inputs give"
        return
    for cause in found.causes:
        yield f"cause: {cause}"
    if found.causes:
        yield f"found after {found.tried} combinations"
        return
    yield f"tried {found.tried} combinations; excluded:"
    for words in found.excluded:
        yield f"  {words}"
    for words in found.unfinished:
        yield f"not finished in time: {words}"
    for words in found.not_tried:
        yield f"not tried: {words}"
