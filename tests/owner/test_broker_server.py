"""The broker over HTTPS: TLS 1.3 under one certificate, every answer an object, once whatever the load."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.owner.broker import verify_records
from cbit.owner.broker.connections import Limits
from cbit.owner.broker.packet import GuestPacket, unseal
from cbit.owner.broker.rules import OpenedSession, SevRelease
from cbit.owner.broker.server import LARGEST_BODY
from cbit.owner.broker.tls import client_context, fingerprint, make_certificate
from owner.broker_sites import Site, b64, record_of, request_of, serving
from owner.broker_worlds import (
    NOW,
    SECRET,
    a_report,
    exported,
    guest_key,
    launched,
    opened,
)
from owner.worlds import flipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    names = ["localhost", "127.0.0.1"]
    make_certificate(path, names, now=NOW.replace(year=2020), entropy=SeededEntropy(1))
    return path


@pytest.fixture
def site(tmp_path: Path, folder: Path) -> Iterator[Site]:
    with serving(tmp_path, folder) as found:
        yield found


# ---- the two ways to a secret


def test_a_host_gets_a_session_and_then_the_secret(site: Site) -> None:
    session = site.session()
    path = f"/v1/launches/{session.launch}/receipt"
    receipt = launched(session).to_json()
    status, found = site.post(path, receipt)
    assert 200 == status
    release = SevRelease(
        header=base64.b64decode(found["header"]),
        data=base64.b64decode(found["secret"]),
        measure=bytes.fromhex(found["measure"]),
        record=record_of(site, found),
    )
    assert SECRET == opened(session, release)
    status, found = site.post(path, receipt)
    assert 409 == status
    assert "has had its secret" in found["reasons"][0]


def test_a_guest_gets_the_secret_for_its_report(site: Site) -> None:
    challenge = site.challenge()
    report = a_report(challenge, guest_key())
    status, found = site.post(f"/v1/launches/{challenge.launch}/report", request_of(challenge, report))
    assert 200 == status
    parts = {name: base64.b64decode(found[name]) for name in ("public_key", "iv", "secret")}
    packet = GuestPacket(public_key=parts["public_key"], iv=parts["iv"], data=parts["secret"])
    assert SECRET == unseal(packet, own=guest_key(), report=report).material()


def test_what_does_not_hold_is_answered_with_the_reason_and_recorded(site: Site) -> None:
    session = site.session()
    good = launched(session)
    twin = replace(good, measure=flipped(good.measure, 1)).to_json()
    status, found = site.post(f"/v1/launches/{session.launch}/receipt", twin)
    assert 403 == status
    assert "does not match" in found["reasons"][0]
    last = verify_records(site.office.store.records())
    assert last is not None
    assert "refusal" == last.event.what
    challenge = site.challenge()
    bad = flipped(a_report(challenge, guest_key()), 8 * 0x90)
    status, found = site.post(f"/v1/launches/{challenge.launch}/report", request_of(challenge, bad))
    assert 403 == status
    assert any("signature" in reason for reason in found["reasons"])
    assert {} == site.office.store.releases()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/sessions", {"policy": "nothing", "chain": ""}, 404),
        ("/v1/sessions", {"policy": "web", "chain": ""}, 400),
        ("/v1/sessions", {"policy": "web"}, 400),
        ("/v1/sessions", {"policy": "web", "chain": "?"}, 400),
        ("/v1/sessions", {"policy": 5, "chain": ""}, 400),
        ("/v1/sessions", "not JSON", 400),
        ("/v1/sessions", b"\xff\xfe", 400),
        ("/v1/sessions", "[" * 1000, 400),
        ("/v1/challenges", {"policy": "web"}, 404),
        ("/v1/launches/0/receipt", {"format": "cbit launch receipt 1"}, 400),
        ("/v1/launches/0/receipt", {}, 400),
        ("/v1/launches/0/report", {"report": "", "certificates": "", "public_key": ""}, 404),
        ("/v1/audit", {}, 404),
        ("/", {}, 404),
        ("/v1/sessions", "x" * (LARGEST_BODY + 1), 413),
    ],
)
def test_what_cannot_be_used_is_said(site: Site, path: str, body: object, status: int) -> None:
    found, answer = site.post(path, body)
    assert status == found
    assert answer["reasons"]
    assert {} == site.office.store.releases()


def test_a_get_has_nothing_here(site: Site) -> None:
    connection = site.connect()
    connection.request("GET", "/v1/sessions")
    assert 405 == connection.getresponse().status
    connection.close()


def test_a_defect_releases_nothing_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(site.office.broker, "open_session", broken)
    status, found = site.post("/v1/sessions", {"policy": "web", "chain": b64(exported())})
    assert 500 == status
    assert "defect" in found["reasons"][0]
    assert "defect: RuntimeError" in site.lines


def test_nothing_secret_is_in_the_servers_log(site: Site) -> None:
    session = site.session()
    waiting = site.office.store.launch(session.launch)
    assert waiting is not None
    assert waiting.keys is not None
    site.post(f"/v1/launches/{session.launch}/receipt", launched(session).to_json())
    connection = site.connect()
    connection.connect()
    connection.sock.sendall(b"POST /\x1b[31m\xe9 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    assert connection.sock.recv(20).startswith(b"HTTP/1.1 404")
    connection.close()
    text = "\n".join(site.lines)
    assert f"POST /v1/launches/{session.launch}/receipt 200" in text
    for part in (SECRET, waiting.keys.material()):
        for form in (part.hex(), b64(part), repr(part)):
            assert form not in text
    assert text.isascii()
    assert "\x1b" not in text


# ---- TLS


def test_tls_1_3_and_nothing_older(site: Site, folder: Path) -> None:
    connection = site.connect()
    connection.connect()
    assert "TLSv1.3" == connection.sock.version()
    connection.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(folder / "owner.crt")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    site.context = old
    with pytest.raises(ssl.SSLError):
        site.challenge()


def test_another_certificate_is_not_trusted(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    certificate, _ = make_certificate(other, ["localhost"], now=NOW, entropy=SeededEntropy(2))
    site.context = client_context(certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        site.challenge()


def test_a_certificate_is_for_its_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one name"):
        make_certificate(tmp_path, [], now=NOW, entropy=SeededEntropy(1))
    certificate, key = make_certificate(tmp_path, ["a.example"], now=NOW, entropy=SeededEntropy(1))
    assert 0o600 == key.stat().st_mode & 0o777
    assert 64 == len(fingerprint(certificate))
    with pytest.raises(FileExistsError):
        make_certificate(tmp_path, ["a.example"], now=NOW, entropy=SeededEntropy(1))


@pytest.mark.oracle
def test_openssl_reads_the_certificate(
    folder: Path, require_program: Callable[[str, str], list[str]]
) -> None:
    openssl = require_program("openssl", "apt install openssl")
    words = ["x509", "-in", str(folder / "owner.crt"), "-noout", "-text", "-fingerprint", "-sha256"]
    text = subprocess.run([*openssl, *words], capture_output=True, text=True, check=True).stdout
    assert "DNS:localhost, IP Address:127.0.0.1" in text
    assert "ecdsa-with-SHA384" in text
    shown = text.partition("Fingerprint=")[2].strip()
    assert fingerprint(folder / "owner.crt").upper() == shown.replace(":", "")


def test_a_client_that_speaks_no_tls_holds_nobody_up(site: Site) -> None:
    silent = http.client.HTTPConnection("localhost", site.server.server_port, timeout=30)
    silent.connect()
    loud = http.client.HTTPConnection("localhost", site.server.server_port, timeout=30)
    loud.connect()
    loud.sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert site.challenge()
    silent.close()
    loud.close()


# ---- load


def test_the_same_evidence_from_everywhere_at_once_is_released_once(site: Site) -> None:
    session, challenge = site.session(), site.challenge()
    receipt = launched(session).to_json()
    request = request_of(challenge, a_report(challenge, guest_key()))
    calls = [
        *[(f"/v1/launches/{session.launch}/receipt", receipt)] * 16,
        *[(f"/v1/launches/{challenge.launch}/report", request)] * 16,
    ]
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(status for status, _ in pool.map(lambda call: site.post(*call), calls))
    assert Counter({200: 2, 409: 30}) == statuses
    assert {session.launch, challenge.launch} == set(site.office.store.releases())


def test_one_launch_under_many_challenges_is_released_once(site: Site) -> None:
    challenges = [site.challenge() for _ in range(12)]
    calls = [(f"/v1/launches/{c.launch}/report", request_of(c, a_report(c, guest_key()))) for c in challenges]
    with ThreadPoolExecutor(12) as pool:
        statuses = Counter(status for status, _ in pool.map(lambda call: site.post(*call), calls))
    assert Counter({200: 1, 409: 11}) == statuses


def test_many_launches_at_once_each_get_their_secret(site: Site) -> None:
    def one(_: int) -> bool:
        session = site.session()
        status, found = site.post(f"/v1/launches/{session.launch}/receipt", launched(session).to_json())
        release = SevRelease(
            header=base64.b64decode(found["header"]),
            data=base64.b64decode(found["secret"]),
            measure=bytes.fromhex(found["measure"]),
            record=record_of(site, found),
        )
        return status == 200 and opened(session, release) == SECRET

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(60)))
    assert 60 == len(site.office.store.releases())
    assert verify_records(site.office.store.records())


def test_more_clients_than_there_is_room_for_wait_their_turn(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder, Limits(clients=2, grace_s=30)) as site, ThreadPoolExecutor(10) as pool:
        assert 30 == len({c.launch for c in pool.map(lambda _: site.challenge(), range(30))})


# ---- clients that are slow on purpose

BODY = "Content-Length: 200000\r\n\r\n"


def dripper(site: Site, text: str) -> ssl.SSLSocket:
    """A client that has begun a request and does not come to its end."""
    connection = site.connect()
    connection.connect()
    found: ssl.SSLSocket = connection.sock
    found.sendall(text.encode())
    return found


def drip_until_ended(client: socket.socket, what: bytes) -> int:
    """Send a byte whenever nothing happens for a moment; how many it took until the broker had enough."""
    client.setblocking(False)  # what TLS says for itself is readable, and no byte of an answer
    for count in range(2000):
        try:
            with suppress(ssl.SSLWantReadError):
                if select.select([client], [], [], 0.01)[0] and not client.recv(1):
                    return count
            client.send(what[count : count + 1] or b"x")
        except OSError:
            return count
    raise AssertionError("the broker listened to the end")


def test_slow_clients_in_every_place_keep_nobody_out(tmp_path: Path, folder: Path) -> None:
    limits = Limits(grace_s=0.05)
    with serving(tmp_path, folder, limits) as site, ExitStack() as stack:
        clients = [
            stack.enter_context(dripper(site, "POST /v1/challenges HTTP/1.1\r\n" + BODY + "{"))
            for _ in range(limits.clients)
        ]
        assert len({site.challenge().launch for _ in range(3)}) == 3
        assert drip_until_ended(clients[0], b"") < 2000, "the one that was slow for longest"


def test_clients_that_come_at_once_keep_nobody_out_for_longer_than_their_grace(
    tmp_path: Path, folder: Path
) -> None:
    with serving(tmp_path, folder, Limits(clients=2, grace_s=0.5)) as site, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(dripper(site, ""))
        assert site.challenge()


def test_a_client_that_the_broker_works_for_keeps_its_place(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, folder, Limits(clients=2, grace_s=0.02)) as site, ExitStack() as stack:
        at_work, go_on = threading.Event(), threading.Event()
        judge = site.office.broker.open_session

        def slow(*args: Any) -> OpenedSession:
            at_work.set()
            assert go_on.wait(30)
            return judge(*args)

        monkeypatch.setattr(site.office.broker, "open_session", slow)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        session = pool.submit(site.session)
        assert at_work.wait(30)
        stack.enter_context(dripper(site, ""))
        for _ in range(3):
            assert site.challenge(), "the slow one leaves, not the one that is worked for"
        go_on.set()
        assert session.result(30).launch


def test_when_the_broker_works_for_everybody_a_new_client_is_sent_away(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, folder, Limits(clients=1, grace_s=0.02)) as site, ExitStack() as stack:
        at_work, go_on = threading.Event(), threading.Event()

        def slow(*_: Any) -> None:
            at_work.set()
            assert go_on.wait(30)
            raise ValueError("enough")

        monkeypatch.setattr(site.office.broker, "open_challenge", slow)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        first = pool.submit(site.post, "/v1/challenges", {"policy": "db"})
        assert at_work.wait(30)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            site.challenge()
        go_on.set()
        assert 400 == first.result(30)[0]
        assert any(line.endswith("no room") for line in site.lines)


@pytest.mark.parametrize(
    "begun", ["", "POST /v1/chall", "POST /v1/challenges HTTP/1.1\r\nX-", "POST / HTTP/1.1\r\n" + BODY]
)
def test_a_request_has_so_long_however_its_bytes_drip_in(begun: str, tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder, Limits(request_s=0.3)) as site, dripper(site, begun) as client:
        drip_until_ended(client, b"")
        assert site.challenge()


def test_a_handshake_has_so_long_however_its_bytes_drip_in(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder, Limits(handshake_s=0.3)) as site:
        hello = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            site.context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        whole = hello.read()
        with socket.create_connection(("localhost", site.server.server_port)) as client:
            assert drip_until_ended(client, whole) < len(whole)
        assert site.challenge()


def test_a_connection_serves_more_than_one_request(site: Site) -> None:
    connection = site.connect()
    for _ in range(3):
        assert 201 == site.post_on(connection, "/v1/challenges", {"policy": "db"})[0]
    assert 413 == site.post_on(connection, "/v1/challenges", "x" * (LARGEST_BODY + 1))[0]
    connection.close()
