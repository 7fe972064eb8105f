"""What a command line asks for: parse, call, print.

Each sub-command is a module with ``HELP`` (one line), ``configure(parser)`` and ``run(args) -> Outcome``.  It
is imported only when it is asked for, so that ``cbit owner`` needs nothing of the machine.

Errors that the library raises on purpose become one sentence and exit code 2; what was checked and found
wanting is an ``Outcome`` with ``ok`` False and exit code 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, TextIO

from cbit import __version__
from cbit.cli import ending_signals, standard_streams
from cbit.cli.envelope import Exit, Outcome, envelope
from cbit.cli.parser import Parser, UsageError
from cbit.spec.errors import CbitError, NotModelled

if TYPE_CHECKING:
    from cbit.owner.blob import Blob

#: Name, module, and what `cbit --help` says.  A name whose module is not there answers "not modelled yet".
COMMANDS: Final = (
    ("demo", "cbit.cli.demo", "the whole story, from power-on to a sealed secret, on this machine"),
    ("setup", "cbit.cli.setup", "manufacture a chip and its certificates"),
    ("run", "cbit.cli.run", "boot a guest"),
    ("memory", "cbit.cli.memory", "show the pages of a dump, or of a guest"),
    ("serve", "cbit.cli.serve", "the machine as a daemon"),
    ("control", "cbit.cli.control", "ask a served machine for its status, reset it, cut its power"),
    ("exec", "cbit.cli.exec", "run an unmodified program that finds /dev/sev"),
    ("kds", "cbit.cli.kds", "a local key-distribution service"),
    ("migrate", "cbit.cli.migrate", "move a guest to another machine"),
    ("owner", "cbit.cli.owner", "the guest owner: verify, session, measure, secret, report, validate"),
    ("attack", "cbit.cli.attack", "the lab: published attacks and what stops them"),
    ("bench", "cbit.cli.bench", "figures against their limit, side by side"),
    ("capabilities", "cbit.cli.capabilities", "what this build and this computer can do"),
)

#: The command whose exit code is its program's, whatever becomes of what cbit prints.
_ANOTHERS: Final = "exec"

EXAMPLE: Final = "example:\n  cbit owner verify ./certs --ca ask_ark.cert"


def run(words: list[str], begun: Mapping[str, Blob]) -> int:
    """Run one command line and return the exit code.

    Args:
        words: what stands behind ``cbit``.
        begun: the files that are being hashed already, by their names in the words.
    """
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without our letters shows "?" and no traceback
            stream.reconfigure(errors="replace")
    command, usage = "", ""
    try:
        command, words = _choose(words)
        with ending_signals.raised():
            command, outcome = _call(command, words, begun)
    except ending_signals.Ended as ended:
        outcome = Outcome(ok=False, reasons=(str(ended),), exit_code=Exit.BY_SIGNAL + ended.number)
    except UsageError as error:
        command, usage = error.command, error.usage
        outcome = _unusable(error, error.exit_code)
    except (CbitError, ValueError, OSError) as error:
        command = getattr(error, "command", command)
        outcome = _unusable(error)
    except KeyboardInterrupt:
        outcome = Outcome(ok=False, reasons=("interrupted",), exit_code=Exit.INTERRUPTED)
    return _print(command, outcome, as_json=as_json, usage=usage)


def _choose(words: list[str]) -> tuple[str, list[str]]:
    """Split the command's name from its arguments; answers --help and --version itself."""
    parser = Parser(
        prog="cbit",
        description="AMD's memory encryption (SME and SEV) as software.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<14}{text}" for name, _, text in COMMANDS)
        + f"\n\n{EXAMPLE}",
        usage="cbit COMMAND [--json] …",
    )
    parser.add_argument("--version", action="version", version=f"cbit {__version__}")
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    parser.parse_args(words[:at])
    if at == len(words):
        parser.error("name a command; `cbit --help` lists them")
    if words[at] not in {name for name, _, _ in COMMANDS}:
        parser.error(f"{words[at]!r} is no command; `cbit --help` lists them")
    return words[at], words[:at] + words[at + 1 :]


def _call(name: str, words: list[str], begun: Mapping[str, Blob]) -> tuple[str, Outcome]:
    target = next(module for known, module, _ in COMMANDS if known == name)
    if importlib.util.find_spec(target) is None:
        raise NotModelled("this part is not modelled yet")
    module = importlib.import_module(target)
    parser = Parser(prog=f"cbit {name}", description=module.HELP)
    module.configure(parser)
    try:
        args = parser.parse_args(words)
    except UsageError as error:
        error.exit_code = getattr(module, "FAILED", Exit.UNUSABLE)  # exec's own codes are another program's
        raise
    args.json, args.begun = getattr(args, "json", False), begun
    try:
        return args.label, module.run(args)
    except (CbitError, ValueError, OSError) as error:
        return args.label, _unusable(error)


def _unusable(error: Exception, exit_code: int = Exit.UNUSABLE) -> Outcome:
    return Outcome(ok=False, reasons=(_sentence(error),), exit_code=exit_code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # without the number, which is for programs
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _print(command: str, outcome: Outcome, *, as_json: bool, usage: str) -> int:
    lost = _write(sys.stdout, [envelope(command or "cbit", outcome)] if as_json else outcome.lines())
    said = [] if as_json else [*([usage.strip()] if usage else []), *_named(command, outcome.reasons)]
    if not as_json:
        said += _named(command, (f"note: {note}" for note in outcome.notes))
    if lost:
        said += _named(command, [f"standard output: {lost}"])
    _write(sys.stderr, said)
    if lost and command != _ANOTHERS:
        return outcome.code or Exit.UNUSABLE
    return outcome.code


def _named(command: str, reasons: Iterable[str]) -> list[str]:
    name = f"cbit {command}".strip()
    return [f"{name}: {why}" for why in reasons]


def _write(stream: TextIO, lines: Iterable[str]) -> str:
    """Print lines, and what was not printed before; return why some are lost."""
    lost = ""
    try:
        for line in lines:
            print(line, file=stream)
        stream.flush()
    except BrokenPipeError:
        standard_streams.give_up(stream.fileno())  # the reader has read enough; the verdict stands
    except OSError as error:
        lost = error.strerror or str(error)
        standard_streams.give_up(
            stream.fileno()
        )  # Python would try once more, and end with a code of its own
    return lost
