"""``cbit capabilities``: what this build and this computer can do, for programs to ask first."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterator

from cbit import __version__
from cbit.cli.envelope import Outcome

HELP = "what this build and this computer can do, as one JSON object"
EXAMPLE = "example:\n  cbit capabilities --json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> Outcome:
    """Collect what is there; nothing is started."""
    from cbit.cli import COMMANDS

    machine = all(importlib.util.find_spec(name) is not None for name in ("numpy", "fcntl"))
    result: dict[str, object] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
        "commands": [name for name, module, _ in COMMANDS if importlib.util.find_spec(module)],
        "owner": True,
        "machine": machine,
        "executes_guests": False,
        "guest_modes": ["none", "sme", "sev"] if machine else [],
        "profiles": _profiles() if machine else {},
        "firmware_commands": _firmware_commands() if machine else [],
    }
    return Outcome(True, result, lines=lambda: _lines(result))


def _profiles() -> dict[str, object]:
    from cbit.machine.profiles import PROFILES

    return {
        profile.name: {
            "c_bit": profile.features.c_bit,
            "physical_address_reduction": profile.features.address_reduction,
            "max_asid": profile.features.guests,
            "min_sev_no_es_asid": profile.features.min_sev_no_es_asid,
            "api": str(profile.api),
            "build": profile.build,
            "modes": [str(mode) for mode in profile.modes],
        }
        for profile in PROFILES.values()
    }


def _firmware_commands() -> list[str]:
    from cbit.secure_processor.dispatch import COMMANDS

    return [command.name for command in COMMANDS]


def _lines(result: dict[str, object]) -> Iterator[str]:
    for name, value in result.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | dict) else value
        yield f"{name:<18} {shown}"
