"""A broker that serves, and a client of it: for tests of what goes over the wire."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbit.owner.broker.connections import Limits
from cbit.owner.broker.packet import public_bytes
from cbit.owner.broker.rules import Challenge, OpenedSession
from cbit.owner.broker.server import Server
from cbit.owner.broker.tls import client_context, server_context
from owner.broker_worlds import Office, exported, guest_key, leaf_pem


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Site:
    """A broker that serves in a thread, and a client that knows its certificate."""

    office: Office
    server: Server
    context: ssl.SSLContext
    lines: list[str] = field(default_factory=list)

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.server.server_port, context=self.context, timeout=30
        )

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        connection = self.connect()
        try:
            return self.post_on(connection, path, body)
        finally:
            connection.close()

    def post_on(
        self, connection: http.client.HTTPSConnection, path: str, body: object
    ) -> tuple[int, dict[str, Any]]:
        connection.request("POST", path, body if isinstance(body, str | bytes) else json.dumps(body))
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        assert (answer.status < 400) is found["ok"]
        assert found["ok"] is ("reasons" not in found)
        return answer.status, found

    def session(self, policy: str = "web") -> OpenedSession:
        status, found = self.post("/v1/sessions", {"policy": policy, "chain": b64(exported())})
        assert 201 == status
        return OpenedSession(
            launch=found["launch"],
            godh=base64.b64decode(found["godh"]),
            blob=base64.b64decode(found["session"]),
            policy=found["policy"],
            record=record_of(self, found),
        )

    def challenge(self) -> Challenge:
        status, found = self.post("/v1/challenges", {"policy": "db"})
        assert 201 == status
        nonce = base64.b64decode(found["nonce"])
        return Challenge(launch=found["launch"], nonce=nonce, record=record_of(self, found))


def record_of(site: Site, found: dict[str, Any]) -> Any:
    record = next(r for r in site.office.store.records() if r.number == found["record"])
    assert record.hash == found["head"]
    return record


@contextmanager
def serving(path: Path, folder: Path, limits: Limits | None = None) -> Iterator[Site]:
    office = Office(path).with_policies()
    lines: list[str] = []
    context = server_context(folder)
    server = Server(("localhost", 0), office.broker, context=context, log=lines.append, limits=limits)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Site(office, server, client_context(folder / "owner.crt"), lines)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        office.store.close()


def request_of(challenge: Challenge, report: bytes) -> dict[str, str]:
    key = public_bytes(guest_key().public_key())
    return {"report": b64(report), "certificates": b64(leaf_pem()), "public_key": b64(key)}
