"""``cbit owner measure``: what a launch must measure, and whether it did."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import SIMULATED, api_version, byte, measure_blob, policy, transport_keys
from cbit.cli.parser import Parser
from cbit.crypto.session import TransportKeys
from cbit.owner import files
from cbit.owner.measure import Expectation, Kernel, Mode, expect
from cbit.owner.receipt import CheckedReceipt, SessionRecord
from cbit.owner.session import Measuring
from cbit.owner.validate.launch import OLDEST_API, Minimum
from cbit.owner.verify.files import read_limited
from cbit.spec.errors import NotModelled
from cbit.spec.policy import ApiVersion, GuestPolicy, Policy
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob

HELP: Final = "compute what a launch must measure, and check a measurement"
DESCRIPTION: Final = (
    "Compute the launch digest from your own copies of the files.  With the transport keys and what\n"
    "the platform reports, check the measurement and write the receipt that `cbit owner secret` asks for."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd --tk launch/tmp_tk.bin \\\n"
    "      --launch-receipt launch.json --min-api 1.51 --min-build 3 --receipt checked.json\n"
    "  cbit owner measure --mode sev --firmware OVMF.fd --tk launch/tmp_tk.bin --measurement B64 \\\n"
    "      --api-major 0 --api-minor 24 --build-id 15 --policy NODBG --receipt checked.json"
)

_LARGEST: Final = 1 << 32  # bytes of a kernel or initrd
_LARGEST_FIRMWARE: Final = 1 << 28


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--mode", type=Mode, choices=list(Mode), required=True, help="how the guest is protected"
    )
    image = parser.add_argument_group("the image, from your own copies")
    image.add_argument(
        "--firmware", type=Path, required=True, metavar="F", help="the firmware image, pflash unit 0"
    )
    image.add_argument(
        "--kernel", type=Path, metavar="K", help="a kernel that is loaded directly, with kernel hashes"
    )
    image.add_argument("--initrd", type=Path, metavar="I", help="its initrd")
    image.add_argument("--append", metavar="S", help="its command line, exactly")
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
    later = parser.add_argument_group("not modelled yet")
    for name in ("--vcpus", "--vcpu-type", "--vmsa", "--expect"):
        later.add_argument(name, metavar="…", help="part 4")
    later.add_argument("--explain", action="store_true", help="part 4")


def run(args: Namespace) -> Outcome:
    """Compute the digest; check the measurement if one is given."""
    expectation = _expectation(args)
    if args.tk is None:
        asked = [
            name for name in ("measurement", "launch_receipt", "receipt") if getattr(args, name) is not None
        ]
        if asked:
            raise ValueError(f"--{asked[0].replace('_', '-')} needs the session's keys: --tk")
        digest = _expected(expectation)
        return Outcome(ok=True, result=digest, lines=lambda: _digest_lines(digest))
    report, keys = _report(args), transport_keys(args.tk)
    measuring = _measuring(args, keys)
    if measuring.policy & Policy.ES:
        raise NotModelled(
            "the policy demands SEV-ES, whose measurement covers the vCPUs: not modelled yet (part 4)"
        )
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
    if args.receipt is not None:
        files.write_public(args.receipt, trusted.receipt.to_json(keys.tik).encode())
    result = (
        _expected(expectation) | _checked(trusted.receipt) | {"receipt": args.receipt and str(args.receipt)}
    )
    return Outcome(ok=True, result=result, lines=lambda: _checked_lines(result))


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


def _expectation(args: Namespace) -> Expectation:
    later = [name for name in ("vcpus", "vcpu_type", "vmsa", "expect") if getattr(args, name) is not None]
    if args.mode is not Mode.SEV:
        raise NotModelled(f"--mode {args.mode} is not modelled yet (part 4)")
    if later or args.explain:
        raise NotModelled(f"--{(*later, 'explain')[0].replace('_', '-')} is not modelled yet (part 4)")
    kernel = None
    if args.kernel is not None:
        kernel = Kernel(
            kernel=read_limited(args.kernel, limit=_LARGEST),
            initrd=read_limited(args.initrd, limit=_LARGEST) if args.initrd else b"",
            cmdline=args.append or "",
            kernel_name=args.kernel.name,
            initrd_name=args.initrd.name if args.initrd else "",
        )
    elif args.initrd is not None or args.append is not None:
        raise ValueError("--initrd and --append belong to a --kernel")
    return expect(
        args.mode,
        read_limited(args.firmware, limit=_LARGEST_FIRMWARE),
        name=args.firmware.name,
        kernel=kernel,
    )


def _expected(expectation: Expectation) -> dict[str, Any]:
    area = expectation.secret_area
    return {
        "mode": expectation.mode.value,
        "digest": expectation.digest.hex(),
        "inputs": [asdict(item) for item in expectation.inputs],
        "kernel_hashes": len(expectation.inputs) > 1,
        "secret_area": asdict(area) if area else None,
    }


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


def _digest_lines(result: dict[str, Any]) -> Iterator[str]:
    for item in result["inputs"]:
        yield f"{item['what']:<18} {item['size']:>10} bytes  {item['sha256']}  {item['name']}"
    yield f"launch digest {result['digest']}"


def _checked_lines(result: dict[str, Any]) -> Iterator[str]:
    yield from _digest_lines(result)
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
    if result["receipt"]:
        yield f"wrote {result['receipt']}"
