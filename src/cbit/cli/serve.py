"""``cbit serve``: the machine as a daemon, for many programs and as long as it is wanted."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cbit.cli.capabilities import require_machine
from cbit.cli.envelope import Outcome
from cbit.cli.messages import Messages

if TYPE_CHECKING:
    from cbit.redirect.daemon import Daemon
    from cbit.trace import Event

HELP = "the machine as a daemon, for many programs at once"
EXAMPLE = """example:
  cbit setup --state ./machine
  cbit serve --state ./machine --socket ./cbit.sock &
  cbit control --socket ./cbit.sock --wait 10 status
  cbit exec --socket ./cbit.sock -- sevctl export --full chain.cert
  cbit control --socket ./cbit.sock shutdown

  sudo cbit serve --state ./machine --socket ./cbit.sock --device /dev/sev &

Socket and device are their owner's alone.  The log, with the reason of every refusal, goes to standard
error."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the machine")
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH", help="where to listen")
    parser.add_argument(
        "--device",
        type=Path,
        metavar="PATH",
        help="put the machine's device there (/dev/sev), for every program here that may open it; takes root "
        "and /dev/fuse",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Serve until SIGTERM, SIGINT or a shutdown request."""
    require_machine()
    from cbit.machine.state_folder import StateFolder
    from cbit.redirect.backend import Backend
    from cbit.redirect.daemon import Daemon, listening
    from cbit.redirect.descriptor_limit import raise_limit
    from cbit.trace import Trace

    reasons: list[tuple[str, str]] = []
    log = Messages("cbit serve")

    def hear(event: Event) -> None:
        if event.why:
            reasons.append((event.what, event.why))

    trace = Trace()
    raise_limit()  # every launcher takes one
    with ExitStack() as stack:
        state = stack.enter_context(StateFolder(args.state))
        sock = stack.enter_context(listening(args.socket))
        stack.enter_context(trace.watched_by(hear, only="driver"))
        backend = Backend(state, trace)
        daemon = Daemon(backend, sock, reasons, log=log, clock=time.monotonic)
        stack.callback(daemon.close)
        stack.enter_context(_signals(daemon))
        if args.device is not None:
            _serve_device(daemon, args.device, reasons, stack, log)
        log(f"{state.profile.name} is on and listens at {args.socket}")
        daemon.run()
        result = {key: value for key, value in daemon.status().items() if key != "descriptors"}
    log("the machine is off")
    return Outcome(ok=True, result=result)


def _serve_device(
    daemon: Daemon, path: Path, reasons: list[tuple[str, str]], stack: ExitStack, log: Messages
) -> None:
    from cbit.driver.client_pages import MemoryRule
    from cbit.redirect.files import SEV
    from cbit.redirect.machine_file import on_the_machine

    device = daemon.backend.devices(MemoryRule.ENCRYPTED)[SEV]
    file = stack.enter_context(on_the_machine(path, device, reasons, log))
    daemon.serve_file(file)
    log(f"{file.path} is the machine's: every program that may open it talks to it")


@contextmanager
def _signals(daemon: Daemon) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the daemon between two commands."""
    ending = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda _number, _frame: daemon.stop()) for number in ending}
    wake_up = signal.set_wakeup_fd(daemon.wake_up, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wake_up)
        for number, handler in before.items():
            signal.signal(number, handler)
