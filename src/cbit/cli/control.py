"""``cbit control``: one request to the control channel of a served machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.capabilities import require_machine
from cbit.cli.durations import seconds
from cbit.cli.envelope import Outcome

HELP = "ask a served machine for its status, reset it, cut its power, carry its memory away, end it"
EXAMPLE = """examples:
  cbit control --socket ./cbit.sock --wait 10 status
  cbit control --socket ./cbit.sock freeze --file dram.bin --decay 0.001
  cbit control --socket ./cbit.sock power-cycle"""
_PAUSE_S: Final = 0.05


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH", help="where cbit serve listens")
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="S", help="seconds to wait for a daemon that is starting"
    )
    parser.add_argument("request", metavar="REQUEST", help="status, reset, power-cycle, freeze or shutdown")
    parser.add_argument("--file", type=Path, metavar="F", help="freeze: where the memory's cells go")
    parser.add_argument(
        "--decay", type=float, metavar="P", help="freeze, power-cycle: share of the cells that lose their bit"
    )
    parser.add_argument("--write-back", action="store_true", help="freeze: execute WBINVD first")


def run(args: argparse.Namespace) -> Outcome:
    """Ask once; what the daemon refuses is not true (exit 1), what is no request is unusable (exit 2)."""
    require_machine()
    from cbit.redirect.control import REQUESTS

    if args.request not in REQUESTS:
        raise ValueError(f"{args.request!r} is no request: {', '.join(REQUESTS)}")
    request: dict[str, object] = {"do": args.request}
    if args.file is not None:
        request["file"] = str(args.file.absolute())
    if args.decay is not None:
        request["decay"] = args.decay
    if args.write_back:
        request["write_back"] = True
    answer = _ask(args.socket, request, wait=args.wait)
    if not answer.get("ok"):
        return Outcome(ok=False, reasons=tuple(map(str, answer.get("reasons", ()))))
    result: dict[str, Any] = answer["result"]
    return Outcome(ok=True, result=result, lines=lambda: _lines(result))


def _ask(path: Path, request: dict[str, object], *, wait: float) -> dict[str, Any]:
    from cbit.redirect.remote import NoMachineThere, ask

    until = time.monotonic() + wait
    while True:
        try:
            return ask(path, request, clock=time.monotonic)
        except NoMachineThere:
            if time.monotonic() >= until:
                raise
            time.sleep(_PAUSE_S)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for name, value in result.items():
        yield f"{name:<20} {value if isinstance(value, str) else json.dumps(value)}"
