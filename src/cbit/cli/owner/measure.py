"""``cbit owner measure``: what a launch must measure, and whether it did."""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import Final

from cbit.cli.envelope import Outcome
from cbit.cli.mapped import mapped
from cbit.cli.owner.arguments import api_version, byte, file_path, measure_blob, policy
from cbit.cli.owner.measure_arguments import MODES, add_explain, add_image, add_vcpus
from cbit.cli.parser import Parser
from cbit.owner import files
from cbit.owner.blob import LARGEST, Blob
from cbit.owner.files import read_limited

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
    parser.add_argument("--mode", choices=MODES, required=True, help="how the guest is protected")
    add_image(parser)
    add_vcpus(parser)
    report = parser.add_argument_group("what the platform reports")
    report.add_argument("--launch-receipt", type=file_path, metavar="FILE", help="all of it in one file")
    report.add_argument("--measurement", type=measure_blob, metavar="B64", help="base64 of measure and nonce")
    report.add_argument("--api-major", type=byte, metavar="N", help="API version of its firmware")
    report.add_argument("--api-minor", type=byte, metavar="N", help="likewise")
    report.add_argument("--build-id", type=byte, metavar="N", help="build of its firmware")
    owner = parser.add_argument_group("what you know and want")
    owner.add_argument("--tk", type=file_path, metavar="TK", help=f"the session's {files.TRANSPORT_KEYS}")
    owner.add_argument(
        "--policy",
        type=policy,
        help=f"your policy; without it the one of {files.SESSION_RECORD} beside the keys",
    )
    owner.add_argument(
        "--min-api", type=api_version, metavar="X.Y", help="oldest firmware API that you accept"
    )
    owner.add_argument("--min-build", type=byte, metavar="N", help="oldest build, at that API version")
    owner.add_argument("--receipt", type=file_path, metavar="OUT", help="write the checked receipt here")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", choices=("hex", "base64"), help="print the digest alone, written so (for scripts)"
    )
    output.add_argument(
        "--toml", type=file_path, metavar="FILE", help="write it as a wish that `cbit owner validate` takes"
    )
    add_explain(parser)


def run(args: Namespace) -> Outcome:
    """Begin to hash what is large, if that has not begun; then load what does the rest, and do it."""
    # An explanation and a direct boot want the bytes themselves.
    hashed = args.firmware is not None and args.kernel is not None and not args.explain
    args.begun = {
        name: args.begun.get(path) or mapped(path) or Blob(read_limited(path, limit=LARGEST))
        for name, path in (("initrd", args.initrd), ("kernel", args.kernel))
        if hashed and path is not None
    }
    outcome: Outcome = importlib.import_module("cbit.cli.owner.measure_run").run(args)
    return outcome
