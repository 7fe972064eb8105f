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

from cbit.cli.capabilities import require_machine
from cbit.cli.envelope import Outcome
from cbit.cli.messages import Messages

HELP = "a local key-distribution service: the emulated chip's certificates at the vendor's addresses"
EXAMPLE = """example:
  cbit kds --state ./machine --listen 127.0.0.1:8443 &
  HTTPS_PROXY=http://127.0.0.1:8443 SSL_CERT_FILE=./machine/kds/ca.crt curl --output cek.cert \\
      https://kdsintf.amd.com/cek/id/CHIP-ID

  cbit kds --state ./machine --cache ~/.cache     write what clients keep on disk, and serve nothing"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the machine; may be served")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where; port 0 for any that is free")
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
    address = None if args.listen is None else _address(args.listen, anywhere=args.any_address)
    published = Published.read(args.state)
    result: dict[str, object] = {"product": published.product, "chip_id": published.chip_id}
    if args.cache is not None:
        result["cache"] = dict(published.write_cache(args.cache))
    if address is not None:
        result["address"] = _serve(args.state, address)
    return Outcome(
        ok=True, result=result, lines=lambda: [f"{key:<9} {value}" for key, value in result.items()]
    )


def _serve(state: Path, address: tuple[str, int]) -> str:
    from cbit.redirect.kds import KdsServer
    from cbit.redirect.kds_files import HOSTS, Published
    from cbit.redirect.kds_tls import Authority

    log = Messages("cbit kds")
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.of(state, now=now)
    context = authority.context([*HOSTS, "localhost", "127.0.0.1", "::1"], now=now)
    with KdsServer(address, Published.read(state), context, log=log) as server:
        host, port = server.server_address[:2]
        where = f"{host if isinstance(host, str) else host.decode()}:{port}"

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


def _address(text: str, *, anywhere: bool) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"--listen {text}: HOST:PORT, as in 127.0.0.1:8443")
    if not anywhere and not _is_loopback(host):
        raise ValueError(f"--listen {text}: other computers could connect; say --any-address if they shall")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
