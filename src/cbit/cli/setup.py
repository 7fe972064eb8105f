"""``cbit setup``: manufacture a chip and its certificates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from cbit.cli.capabilities import require_machine
from cbit.cli.envelope import Outcome
from cbit.cli.pasted import pasted

AMD_KEY_ID = "amd-key-id"
HELP = "manufacture a chip and its certificates"
EXAMPLE = """example:
  cbit setup --state ./machine --profile milan
  cbit owner verify ./machine/certs --trust ./machine/certs/ark.cert"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the new machine's state folder"
    )
    parser.add_argument("--profile", default="milan", help="naples, rome, milan (default) or genoa")

    parser.add_argument(
        "--compat",
        choices=[AMD_KEY_ID],
        help="amd-key-id: the root carries the key id of AMD's, for clients that insist on it",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Make root, chip, images and certificates, then start once so that the platform has its own keys."""
    require_machine()
    from cbit.cli.progress import progress
    from cbit.crypto.amd_cert import pin
    from cbit.crypto.entropy import SystemEntropy
    from cbit.machine.manufacture import AMD_KEY_IDS, ARK_KEY_ID, make_root, manufacture
    from cbit.machine.profiles import profile
    from cbit.machine.state_folder import erase_state, insist_on_new

    chosen = profile(args.profile)
    insist_on_new(args.state)
    with progress(f"making a {chosen.root_bits}-bit root", quiet=args.json):
        key_id = AMD_KEY_IDS[chosen.name] if args.compat == AMD_KEY_ID else ARK_KEY_ID
        root = make_root(chosen.root_bits, ark_key_id=key_id)
    manufacture(args.state, chosen, entropy=SystemEntropy(), root=root)
    try:
        with progress("first start: the platform makes its own keys", quiet=args.json):
            chip_id = _first_start(args.state)
    except BaseException:
        erase_state(args.state)  # half a machine would only stand in the way of the next attempt
        raise
    result = {
        "state": str(args.state),
        "profile": chosen.name,
        "api": str(chosen.api),
        "build": chosen.build,
        "chip_id": chip_id.hex(),
        "root_pin": pin(root.ark),
        "root": "SIMULATED",
        "root_key_id": root.ark.header.key_id.hex(),
        "compat": [args.compat] if args.compat else [],
        "certs": sorted(file.name for file in (args.state / "certs").iterdir()),
    }
    return Outcome(True, result, lines=lambda: _lines(result))


def _first_start(path: Path) -> bytes:
    """Let the platform make its identity, whose certificates are published, and return the chip's id."""
    from cbit.hypervisor.host import Host
    from cbit.machine.board import Machine
    from cbit.machine.state_folder import StateFolder

    with StateFolder(path) as state:
        machine = Machine(state)
        machine.power_on()
        host = Host(machine)
        host.initialise()
        return host.chip_id()


def _lines(result: dict[str, object]) -> Iterator[str]:
    yield f"machine   {result['profile']}, firmware API {result['api']} build {result['build']}"
    yield f"state     {result['state']}"
    yield f"chip id   {str(result['chip_id'])[:32]}…"
    yield f"root      SIMULATED (not AMD's), pin {str(result['root_pin'])[:16]}…"
    if result["compat"]:
        yield "compat    the root's key id is that of AMD's root, its key is not: trust it by its file alone"
    certs = Path(str(result["state"]), "certs")
    yield f"next      cbit owner verify {pasted(certs)} --trust {pasted(certs / 'ark.cert')}"
