"""``cbit kds``: a local key-distribution service for the emulated chip."""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from cbit.cli.addresses import address, shown
from cbit.cli.capabilities import require_machine
from cbit.cli.envelope import Outcome
from cbit.cli.messages import Messages

HELP = "a local key-distribution service: the emulated chip's certificates at the vendor's addresses"
EXAMPLE = """example:
  cbit kds --state ./machine --listen 127.0.0.1:8443 &
  HTTPS_PROXY=http://127.0.0.1:8443 curl --cacert ./machine/kds/ca.crt --output cek.cert \\
      https://kdsintf.amd.com/cek/id/CHIP-ID

  cbit kds --state ./machine --cache ~/.cache     write what clients keep on disk, and serve nothing"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the machine; may be served")
    parser.add_argument(
        "--listen", type=_listen, metavar="HOST:PORT", help="where; port 0 for any that is free"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="write DIR/amd-sev/chain and its parts")
    parser.add_argument(
        "--any-address", action="store_true", help="listen also where other computers can connect"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Write the cache, serve until a signal, or both."""
    require_machine()
    from cbit.redirect.kds_files import Published

    if args.listen is None and args.cache is None:
        raise ValueError("nothing to do: --listen HOST:PORT, --cache DIR, or both")
    if args.listen is not None and not args.any_address and not _is_loopback(args.listen[0]):
        raise ValueError(
            f"--listen {shown(*args.listen)}: other computers could connect; say --any-address if they shall"
        )
    published = Published.read(args.state)
    result: dict[str, object] = {"product": published.product, "chip_id": published.chip_id}
    if args.cache is not None:
        result["cache"] = dict(published.write_cache(args.cache))
    if args.listen is not None:
        result["address"] = _serve(args.state, args.listen)
    return Outcome(
        ok=True, result=result, lines=lambda: [f"{key:<9} {value}" for key, value in result.items()]
    )


def _serve(state: Path, place: tuple[str, int]) -> str:
    from cbit.redirect.kds import KdsServer
    from cbit.redirect.kds_files import HOSTS, Published
    from cbit.redirect.kds_tls import Authority

    log = Messages("cbit kds")
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.of(state, now=now)
    context = authority.context([*HOSTS, "localhost", "127.0.0.1", "::1"], now=now)
    try:
        listening = KdsServer(place, Published.read(state), context, log=log)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--listen {shown(*place)}") from None
    with listening as server:
        host, port = server.server_address[:2]
        where = shown(str(host), port)

        def end(number: int, frame: FrameType | None) -> None:
            threading.Thread(target=server.shutdown, daemon=True).start()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            log(f"listens at {where}; HTTPS_PROXY=http://{where} SSL_CERT_FILE={authority.path}")
            server.serve_forever(poll_interval=0.1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return where


def _listen(text: str) -> tuple[str, int]:
    return address(f"127.0.0.1{text}" if text.startswith(":") else text)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
