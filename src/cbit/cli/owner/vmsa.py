"""``cbit owner vmsa``: the registers with which a vCPU starts; build a page, show one, compare two."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.owner.measure_arguments import LARGEST_FIRMWARE, add_vcpu
from cbit.cli.owner.measure_inputs import vcpus_of
from cbit.cli.parser import Parser
from cbit.cli.target import insist_apart
from cbit.owner import files, vmsa
from cbit.owner.errors import Missing
from cbit.owner.files import read_limited
from cbit.owner.measure import Image
from cbit.owner.vmsa import BOOT_EIP, CONVENTIONS, Vcpus
from cbit.spec.cpu_signature import name_of

HELP: Final = "build, show or compare the initial registers of a virtual CPU"
DESCRIPTION: Final = (
    "A VMSA is the page of registers that SEV-ES and SNP encrypt and measure, one for each vCPU.\n"
    "Build it as a hypervisor does, show one that was dumped, or see in which fields two differ."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner vmsa build --vcpu-type EPYC-Milan --vmsa init --out vmsa0.bin\n"
    "  cbit owner vmsa build --vcpu-type EPYC-Milan --firmware OVMF.fd --out vmsa1.bin\n"
    "  cbit owner vmsa show vmsa0.bin\n"
    "  cbit owner vmsa diff vmsa0.bin vmsa1.bin"
)


def configure(parser: Parser) -> None:
    """Declare the actions."""
    actions: Any = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    build = actions.add_parser("build", help="make the page of a vCPU", epilog=EXAMPLE)
    add_vcpu(build)
    start = build.add_mutually_exclusive_group()
    start.add_argument(
        "--firmware",
        type=Path,
        metavar="F",
        help="take where every vCPU but the first starts from this image",
    )
    start.add_argument(
        "--eip",
        type=lambda text: int(text, 0),
        metavar="ADDRESS",
        help="where it starts (default: the boot vCPU's reset vector)",
    )
    build.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page goes here")
    show = actions.add_parser("show", help="name every field of a page", epilog=EXAMPLE)
    show.add_argument("page", type=Path, metavar="PAGE")
    show.add_argument("--all", action="store_true", help="also the fields that are zero")
    diff = actions.add_parser("diff", help="name the fields in which two pages differ", epilog=EXAMPLE)
    diff.add_argument("first", type=Path, metavar="PAGE")
    diff.add_argument("second", type=Path, metavar="PAGE")


def run(args: Namespace) -> Outcome:
    """Do one of the three."""
    action = {"build": _build, "show": _show, "diff": _diff}[args.action]
    return action(args)


def _build(args: Namespace) -> Outcome:
    insist_apart(args, "out")
    vcpus = vcpus_of(args)
    eip = _eip(args)
    page = bytes(vcpus.page(eip))
    files.write_public(args.out, page)
    result = {"file": str(args.out), "size": len(page), "eip": eip, **_origin(vcpus)}
    return Outcome(ok=True, result=result, lines=lambda: [_words(result), f"wrote {args.out}"])


def _eip(args: Namespace) -> int:
    if args.eip is not None:
        if not 0 <= args.eip < 1 << 32:
            raise ValueError(f"--eip {args.eip:#x} is not an address below 4 GiB")
        return int(args.eip)
    if args.firmware is None:
        return BOOT_EIP
    reset = Image(read_limited(args.firmware, limit=LARGEST_FIRMWARE), args.firmware.name).table.ap_reset
    if not reset:
        raise Missing(f"{args.firmware.name} does not say where vCPUs start: it has no SEV-ES reset vector")
    return reset


def _show(args: Namespace) -> Outcome:
    page = read_limited(args.page)
    known = vmsa.recognise(page)
    result = {
        "initial": None if known is None else {"eip": known[1], **_origin(known[0])},
        "fields": {
            name: {"offset": offset, "value": value}
            for offset, name, value in vmsa.fields(page)
            if args.all or value.strip("0x")
        },
    }
    return Outcome(ok=True, result=result, lines=lambda: _show_lines(result))


def _show_lines(result: dict[str, Any]) -> Iterator[str]:
    for name, field in result["fields"].items():
        yield f"{field['offset']:#05x}  {name:<24} {field['value']}"
    if result["initial"] is None:
        yield "not an initial page of a known hypervisor: the vCPU has run, or was started otherwise"
    else:
        yield _words(result["initial"])


def _diff(args: Namespace) -> Outcome:
    found = vmsa.differences(read_limited(args.first), read_limited(args.second))
    result = {"differences": [asdict(difference) for difference in found]}
    reasons = tuple(
        f"{d.name} at {d.offset:#x}: {d.first} in the first, {d.second} in the second" for d in found
    )
    return Outcome(ok=not found, result=result, reasons=reasons, lines=lambda: () if found else ["equal"])


def _origin(vcpus: Vcpus) -> dict[str, Any]:
    convention = CONVENTIONS[vcpus.hypervisor]
    return {
        "hypervisor": vcpus.hypervisor.value,
        "variant": vcpus.variant.value if convention.fills_fpu else None,
        "cpu": name_of(vcpus.signature or 0) if convention.rdx is None else None,
        "features": int(vcpus.features or 0),
    }


def _words(origin: dict[str, Any]) -> str:
    named = [origin["hypervisor"], origin["variant"], origin["cpu"], f"SEV features {origin['features']:#x}"]
    return f"an initial page: {', '.join(filter(None, named))}, starting at {origin['eip']:#x}"
