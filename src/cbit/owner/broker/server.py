"""The broker on the wire: HTTPS, one JSON object in and one out.

    POST /v1/sessions              {"policy", "chain"}              SEV: keys for one launch
    POST /v1/launches/ID/receipt   receipt, or what QEMU answers    SEV: the packet for LAUNCH_SECRET
    POST /v1/challenges            {"policy"}                       SNP: a nonce for REPORT_DATA
    POST /v1/launches/ID/report    {"report", "certificates",       SNP: the packet for the guest's key
                                    "public_key"}

Bytes are base64.  What does not hold is answered with 403 and every reason, a second release with 409.
What is no such request is answered too, as an object like everything else, and ends the connection: a length
is a Content-Length of digits, once, and nothing else (RFC 9112 §6.3).
The server's own log has methods, paths and statuses, and nothing that came or went.
"""

from __future__ import annotations

import base64
import io
import json
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPMethod, HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from cbit.owner.broker.connections import Limits, Places, Timed
from cbit.owner.broker.evidence import Reported
from cbit.owner.broker.rules import Broker, Refused, Unknown
from cbit.owner.broker.store import AlreadyReleased, Occupied, StoreUnavailable
from cbit.spec.errors import CbitError
from cbit.spec.receipt import FORMAT, Fields, LaunchReceipt, read_object

LARGEST_BODY: Final = 1 << 18
MOST_DISCARDED: Final = 1 << 22  #: of a body that is too large
HEAR_OUT_S: Final = 1.0  #: a client whose request was refused before its end

#: What went wrong, to the status of the answer.
STATUSES: Final = (
    (Unknown, 404),
    (AlreadyReleased, 409),
    (Refused, 403),
    (Occupied, 503),
    (StoreUnavailable, 503),
)

#: What is wanted in the place of what the library's HTTP refuses.
_WHAT_TO_DO: Final = {
    HTTPStatus.BAD_REQUEST: "the first line is none of a request: POST PATH HTTP/1.1 is wanted",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "HTTP/1.1 is spoken here, and nothing later",
    HTTPStatus.NOT_IMPLEMENTED: "everything here is asked for with POST",
}

Answer = tuple[int, dict[str, Any]]


class _BadFrame(Exception):
    """Where the request ends is not said, or not in the one way that is understood."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        self.status = status
        super().__init__(why)


class Server(ThreadingHTTPServer):
    """A broker behind a port.

    Args:
        address: host and port; port 0 takes a free one (``server_port``).
        broker: the rules.
        context: how TLS is spoken.
        log: takes one line for each request.
        limits: what clients may take.
        family: the address family, as the operating system numbers it; None for IPv4.

    Raises:
        OSError: the address cannot be listened at.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        broker: Broker,
        *,
        context: ssl.SSLContext,
        log: Callable[[str], None],
        limits: Limits | None = None,
        family: int | None = None,
    ) -> None:
        if family is not None:
            self.address_family = family
        self.broker: Final = broker
        self.log: Final = log
        self.limits: Final = limits or Limits()
        self.places: Final = Places(self.limits)
        self._context: Final = context
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its handshake is made in its own thread: a slow client holds nobody up."""
        connection, address = super().get_request()
        connection.settimeout(self.limits.handshake_s)  # TLS counts it for the handshake as a whole
        return (
            self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False),
            address,
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a place and a thread, or end it: nobody is kept waiting for either."""
        if not self.places.take(request):
            self.log(f"{client_address[0]} no room")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self.places.leave(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a connection broke; what was on it is nobody's business."""
        self.log(f"{client_address[0]} connection broken")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "cbit-owner"
    sys_version = ""
    default_request_version = "HTTP/1.1"  # of a first line that is none: its answer has a status all the same
    disable_nagle_algorithm = True  # else head and body of an answer wait for each other

    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()
        self.rfile.close()
        wire = Timed(self.request, self._left)
        self.rfile = io.BufferedReader(wire)
        self.wfile = wire  # type: ignore[assignment]  # no buffer: what is written has left

    def handle_one_request(self) -> None:
        self._deadline = time.monotonic() + self.server.limits.request_s
        self.command, self.path = "", ""  # a connection's last request is not this one
        super().handle_one_request()

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def do_POST(self) -> None:
        try:
            length = self._length()
        except _BadFrame as error:
            self._refuse(error.status, str(error))
        else:
            self._send(*self._answer(length))

    def _length(self) -> int:
        """Return how long the body is.

        Raises:
            _BadFrame: the head is malformed, or says it otherwise than by one Content-Length.
        """
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.defects:
            raise _BadFrame(HTTPStatus.BAD_REQUEST, "a line of the head is not NAME: VALUE")
        if "Transfer-Encoding" in self.headers:
            status = HTTPStatus.BAD_REQUEST if lengths else HTTPStatus.NOT_IMPLEMENTED
            raise _BadFrame(status, "no Transfer-Encoding is understood: a Content-Length is wanted instead")
        if not lengths:
            raise _BadFrame(HTTPStatus.LENGTH_REQUIRED, "a body with its Content-Length is wanted")
        text = lengths[0].strip(" \t")
        if len(lengths) > 1 or not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _BadFrame(HTTPStatus.BAD_REQUEST, "the Content-Length is not one number in digits")
        return int(text)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the HTTP of the library refuses, as everything else is answered."""
        del message, explain  # they quote the request
        status = HTTPStatus(code)
        why = _WHAT_TO_DO.get(status, status.phrase)
        if status is HTTPStatus.NOT_IMPLEMENTED and self.command in set(HTTPMethod):
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._refuse(status, why)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        """Answer, and end the connection: where its next request would begin is not known."""
        self.close_connection = True
        self._send(status, {"reasons": [why]})
        self._hear_out()

    def _hear_out(self) -> None:
        """Read what still comes, for a moment: to close on unread bytes would take the answer back."""
        self._deadline = min(self._deadline, time.monotonic() + HEAR_OUT_S)
        left = MOST_DISCARDED
        with suppress(OSError):
            while left > 0 and (part := self.rfile.read1(LARGEST_BODY)):
                left -= len(part)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps({"ok": status < 400, **answer}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args  # they quote the request

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        what = self.command or "-", self.path[:100] or "-"
        method, path = ("".join(c if "!" <= c <= "~" else "?" for c in text) for text in what)
        self.server.log(f"{self.client_address[0]} {method} {path} {int(code)}")

    def _answer(self, length: int) -> Answer:
        if length > LARGEST_BODY:
            self.close_connection = True
            left = min(length, MOST_DISCARDED)  # a client that is still sending would not hear the answer
            while left > 0 and (part := self.rfile.read(min(left, LARGEST_BODY))):
                left -= len(part)
            return 413, {
                "reasons": [f"a body of up to {LARGEST_BODY} bytes is wanted, with its Content-Length"]
            }
        body = self.rfile.read(length)
        try:
            with self.server.places.working(self.request):
                return self._route(body)
        except tuple(kind for kind, _ in STATUSES) as error:
            status = next(status for kind, status in STATUSES if isinstance(error, kind))
            reasons = list(error.reasons) if isinstance(error, Refused) else [str(error)]
            if isinstance(error, StoreUnavailable):
                self.server.log(f"database: {error.cause}")
            return status, {"reasons": reasons}
        except (CbitError, ValueError) as error:
            return 400, {"reasons": [str(error)]}
        except Exception as error:
            self.close_connection = True
            self.server.log(f"defect: {type(error).__name__}")  # its text may quote what came
            return 500, {"reasons": ["the broker has a defect; nothing was released"]}

    def _route(self, body: bytes) -> Answer:
        parts = self.path.strip("/").split("/")
        match parts:
            case ["v1", "sessions"]:
                return self._session(body)
            case ["v1", "challenges"]:
                return self._challenge(body)
            case ["v1", "launches", launch, "receipt"]:
                return self._receipt(launch, body)
            case ["v1", "launches", launch, "report"]:
                return self._report(launch, body)
        raise Unknown(f"there is nothing at {self.path[:100]!r}")

    def _session(self, body: bytes) -> Answer:
        fields = Fields(read_object(body, what="request"), "policy", "chain", what="request")
        opened = self.server.broker.open_session(fields.text("policy"), fields.base64("chain"))
        return 201, {
            "launch": opened.launch,
            "godh": _text(opened.godh),
            "session": _text(opened.blob),
            "policy": opened.policy,
            "record": opened.record.number,
            "head": opened.record.hash,
        }

    def _challenge(self, body: bytes) -> Answer:
        fields = Fields(read_object(body, what="request"), "policy", what="request")
        opened = self.server.broker.open_challenge(fields.text("policy"))
        return 201, {
            "launch": opened.launch,
            "nonce": _text(opened.nonce),
            "record": opened.record.number,
            "head": opened.record.hash,
        }

    def _receipt(self, launch: str, body: bytes) -> Answer:
        value = read_object(body, what="receipt")
        if value.get("format") == FORMAT:
            reported = Reported.of_receipt(LaunchReceipt.from_json(body))
        else:
            reported = Reported.of_qemu(value)
        release = self.server.broker.take_receipt(launch, reported)
        return 200, {
            "header": _text(release.header),
            "secret": _text(release.data),
            "measure": release.measure.hex(),
            "record": release.record.number,
            "head": release.record.hash,
        }

    def _report(self, launch: str, body: bytes) -> Answer:
        names = ("report", "certificates", "public_key")
        fields = Fields(read_object(body, what="request"), *names, what="request")
        report, certificates, public_key = (fields.base64(name) for name in names)
        release = self.server.broker.take_report(
            launch, report=report, certificates=certificates, public_key=public_key
        )
        return 200, {
            "public_key": _text(release.packet.public_key),
            "iv": _text(release.packet.iv),
            "secret": _text(release.packet.data),
            "record": release.record.number,
            "head": release.record.hash,
        }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
