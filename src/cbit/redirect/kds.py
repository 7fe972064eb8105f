"""The key-distribution service: one port that is a web server, the same with TLS, and a proxy to itself.

    GET /cek/id/…                          plain HTTP
    16 03 …                                a TLS handshake: HTTPS
    CONNECT kdsintf.amd.com:443            a client with HTTPS_PROXY: 200, then a TLS handshake

As a proxy it connects nobody to anybody: whatever host of AMD's is asked for, it is the service itself that
answers, and every other host is refused.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from cbit.redirect.kds_files import HOSTS, TEXT, Published, Reply

_HANDSHAKE: Final = 0x16  #: first byte of every TLS connection
#: Seconds that a client may be silent.
PATIENCE_S: Final = 30.0


class KdsServer(socketserver.ThreadingTCPServer):
    """Serves one machine's files; ``server_address`` says where."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        published: Published,
        context: ssl.SSLContext,
        *,
        log: Callable[[str], None],
    ) -> None:
        """Listen; raises ``OSError`` if the address cannot be had."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.published, self.context, self.log = published, context, log

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Go on: a client that breaks off is no event, and a fault of ours is that client's alone."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.log(f"fault of the emulator: {error!r}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cbit-kds"
    sys_version = ""
    timeout = PATIENCE_S
    rbufsize = 0  # what follows a CONNECT is a handshake, and is not ours to read ahead
    server: KdsServer

    def setup(self) -> None:
        self.request.settimeout(PATIENCE_S)
        if self.request.recv(1, socket.MSG_PEEK) == bytes([_HANDSHAKE]):
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.close()

    def do_CONNECT(self) -> None:
        """Be the proxy, and then whoever was asked for."""
        host = self.path.rpartition(":")[0].strip("[]").lower()
        if host not in HOSTS:
            self._send(Reply(403, TEXT, f"cbit kds: connects nobody to {host}\n".encode()))
            return
        self.send_response_only(200, "Connection established")
        self.end_headers()
        self.wfile.flush()
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()
        self.close_connection = False

    def do_GET(self) -> None:
        """Hand a file out."""
        self._send(self.server.published.answer(self.path))

    def do_HEAD(self) -> None:
        """The same without the file."""
        self._send(self.server.published.answer(self.path), body=False)

    def _send(self, reply: Reply, *, body: bool = True) -> None:
        if reply.status >= 400:
            self.server.log(f"{self.command} {self.path[:80]}: {reply.status}: {reply.body.decode().strip()}")
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if body:
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Only refusals are logged."""
