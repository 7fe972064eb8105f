"""HOST:PORT as people write it: a name, an IPv4 address, or an IPv6 address in brackets."""

from __future__ import annotations

import argparse
import socket
from typing import Final

_PORTS: Final = 0x10000


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, for an argument's ``type``; whether there is such a host is not looked up.

    Raises:
        ArgumentTypeError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    if len(port) > len(str(_PORTS)) or int(port) >= _PORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT; a port is at most {_PORTS - 1}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT; an IPv6 address stands in brackets")
    try:
        host.encode("idna")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT; no host has such a name") from None
    return host, int(port)


def family(host: str) -> socket.AddressFamily:
    """Return the family of the sockets that reach a host; a name is looked up in IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def shown(host: str, port: int) -> str:
    """Write an address as ``address`` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
