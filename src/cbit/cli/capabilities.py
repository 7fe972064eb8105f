"""``cbit capabilities``: what this build and this computer can do, for programs to ask first."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterator
from typing import Final

from cbit import __version__
from cbit.cli.envelope import Outcome
from cbit.spec.errors import CbitError

HELP = "what this build and this computer can do, as one JSON object"
EXAMPLE = "example:\n  cbit capabilities --json"


#: What the machine's half of cbit needs besides the owner's, and where it comes from.
_NEEDS: Final = {
    "numpy": "pip install './cbit[machine]' beside a clone",
    "rich": "pip install './cbit[machine]' beside a clone",
    "fcntl": "a Unix system",
    "resource": "a Unix system",
}


class NoMachine(CbitError):
    """This computer has the owner's half only; the message says what the machine's half needs."""


def require_machine() -> None:
    """Refuse in one sentence where the machine's half cannot run.

    Raises:
        NoMachine: something that it needs is not here.
    """
    if missing := _missing():
        whence = ", ".join(dict.fromkeys(_NEEDS[name] for name in missing))
        raise NoMachine(f"the machine needs {', '.join(missing)}: {whence}; cbit owner runs without")


def _missing() -> list[str]:
    return [name for name in _NEEDS if importlib.util.find_spec(name) is None]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> Outcome:
    """Collect what is there; nothing is started."""
    from cbit.cli.command_line import COMMANDS

    machine = not _missing()
    executes = machine and _executes_guests()
    result: dict[str, object] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
        "commands": [name for name, module, _ in COMMANDS if importlib.util.find_spec(module)],
        "owner": True,
        "machine": machine,
        "executes_guests": executes,
        "guest_modes": ["none", "sme", "sev"] if executes else [],
        "profiles": _profiles() if machine else {},
        "firmware_commands": _firmware_commands() if machine else [],
    }
    return Outcome(True, result, lines=lambda: _lines(result))


def _executes_guests() -> bool:
    """Whether what guests execute with is here; it is not compiled for the question."""
    from cbit.cpu.engine.build import can_have_stubs
    from cbit.cpu.engine.errors import NoEngine
    from cbit.cpu.engine.library import check_platform

    try:
        check_platform()
    except NoEngine:
        return False
    return importlib.util.find_spec("unicorn") is not None and can_have_stubs()


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
