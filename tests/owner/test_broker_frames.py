"""What is no request, and a database that cannot be written: answered, and nothing is released."""

from __future__ import annotations

import json
import resource
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.owner.broker import AlreadyReleased, verify_records
from cbit.owner.broker.packet import unseal
from cbit.owner.broker.sqlite import SqliteStore
from cbit.owner.broker.store import StoreUnavailable
from cbit.owner.broker.tls import make_certificate
from owner.broker_sites import Site, request_of, serving
from owner.broker_worlds import CREATED, NOW, SECRET, Office, a_report, ask, guest_key

GOOD = json.dumps({"policy": "db"}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    make_certificate(path, ["localhost"], now=NOW.replace(year=2020), entropy=SeededEntropy(1))
    return path


@pytest.fixture
def site(tmp_path: Path, folder: Path) -> Iterator[Site]:
    with serving(tmp_path, folder) as found:
        yield found


def sent(site: Site, data: bytes) -> bytes:
    """What comes back for some bytes until the broker ends the connection."""
    plain = socket.create_connection(("localhost", site.server.server_port), timeout=30)
    with site.context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    return answer


def request(
    head: bytes = LENGTH, body: bytes = GOOD, *, first: bytes = b"POST /v1/challenges HTTP/1.1"
) -> bytes:
    return first + b"\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n" + body


def status_of(answer: bytes) -> tuple[int, bytes]:
    """Status and head of an answer; its body must be an object of ours."""
    head, _, body = answer.partition(b"\r\n\r\n")
    version, status, *_ = head.split()
    assert b"HTTP/1.1" == version
    assert b"Content-Type: application/json" in head
    if body or b"Content-Length: 0" not in head:
        found = json.loads(body)
        assert found["ok"] is (int(status) < 400)
        assert found["ok"] is not bool(found.get("reasons"))
    return int(status), head


def test_the_good_twin_of_all_these_requests(site: Site) -> None:
    assert 201 == status_of(sent(site, request()))[0]
    for head in (b"Content-Length:%d\r\n" % len(GOOD), b"CONTENT-LENGTH: \t0%d \r\n" % len(GOOD)):
        assert 201 == status_of(sent(site, request(head)))[0]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GARBAGE\r\n" + GOOD, 400),
        (bytes(range(1, 10)) + b"\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (request(first=b"POST /v1/challenges HTTP/9.x"), 400),
        (request(first=b"POST /v1/challenges FTP/1.1"), 400),
        (request(first=b"POST /v1/challenges and more HTTP/1.1"), 400),
        (request(first=b"POST /v1/challenges HTTP/2.0"), 505),
        (b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (request(b"X: " + b"y" * 70_000 + b"\r\n" + LENGTH), 431),
        (request(b"".join(b"X%d: y\r\n" % n for n in range(200)) + LENGTH), 431),
        *((request(first=verb + b" /v1/challenges HTTP/1.1"), 405) for verb in (b"GET", b"PUT", b"DELETE")),
        (
            request(
                first=b"PUT /v1/challenges HTTP/1.1", body=bytes(200_000), head=b"Content-Length: 200000\r\n"
            ),
            405,
        ),
        (request(first=b"BREW /v1/challenges HTTP/1.1"), 501),
        (request(first=b"post /v1/challenges HTTP/1.1"), 501),
    ],
    ids=lambda value: str(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_what_is_no_request_is_answered_as_everything_else(site: Site, data: bytes, status: int) -> None:
    found, head = status_of(sent(site, data))
    assert status == found
    assert b"Connection: close" in head
    assert (b"Allow: POST" in head) is (status == 405)
    assert site.lines[-1].endswith(f" {status}")
    assert 201 == status_of(sent(site, request()))[0]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 411),
        *(
            (b"Content-Length: " + text + b"\r\n", 400)
            for text in (
                *(b"", b"1_6", b"+16", b"-16", b"0x10", b"16,16", b"16 16", b"1" * 30, b"16;", b"\xd9\xa1"),
                *(b"1e1", b"16.0", b"\x0b16"),
            )
        ),
        (LENGTH + LENGTH, 400),
        (LENGTH + b"Content-Length: 3\r\n", 400),
        (b"Content-Length: 3\r\n" + LENGTH, 400),
        (LENGTH + b"Transfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n" + LENGTH, 400),
        (b"Transfer-Encoding: identity\r\n" + LENGTH, 400),
        (b"Transfer-Encoding: chunked\r\n", 501),
        (b"Content-Length : 16\r\n", 400),
        (LENGTH + b"no colon\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: 300000\r\n", 413),
    ],
    ids=str,
)
def test_a_length_is_said_once_in_digits(site: Site, head: bytes, status: int) -> None:
    """RFC 9112 §6.3: what two readers could take for different lengths ends the connection."""
    body = b"x" * 300_000 if status == 413 else GOOD
    smuggled = request(first=b"POST /v1/sessions HTTP/1.1")
    kept = request(head, body).replace(b"Connection: close\r\n", b"")
    found, answer = status_of(sent(site, kept + smuggled))
    assert status == found
    assert b"Connection: close" in answer
    assert 1 == len(site.lines), "what came behind it was not taken for a request"
    assert {} == site.office.store.releases()


def test_a_head_is_asked_for_without_a_body(site: Site) -> None:
    head, _, body = sent(site, request(first=b"HEAD /v1/challenges HTTP/1.1")).partition(b"\r\n\r\n")
    assert (b"405", b"") == (head.split()[1], body)


def test_a_refusal_does_not_log_the_request_before_it(site: Site) -> None:
    keep = request().replace(b"Connection: close\r\n", b"")
    assert b"400" in sent(site, keep + b"garbage\r\n\r\n").split(b"HTTP/1.1 ")[2][:3]
    assert ["POST /v1/challenges 201", "- - 400"] == [line.partition(" ")[2] for line in site.lines]


# ---- a database that cannot be written ---------------------------------------------------------------------


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file of the broker's grows any more: the kernel says so, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path).with_policies()
    yield found
    found.store.close()


def test_on_a_full_disk_nothing_is_released_and_nothing_is_lost(office: Office) -> None:
    challenge = office.broker.open_challenge("db")
    before = list(office.store.records())
    with full_disk(office.folder):
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="nothing was released"):
                ask(office, challenge)
            with pytest.raises(StoreUnavailable) as caught:
                office.broker.open_challenge("db")
            assert "disk" in caught.value.cause
        assert {} == office.store.releases()
        assert before == list(office.store.records())
    report = a_report(challenge, guest_key())
    release = ask(office, challenge, report)
    assert SECRET == unseal(release.packet, own=guest_key(), report=report).material()
    with pytest.raises(AlreadyReleased):
        ask(office, challenge)
    verify_records(office.store.records())
    assert [challenge.launch] == [*office.store.releases()]
    # Another process reads the same.
    again = SqliteStore(office.folder / "broker.db")
    assert list(office.store.records()) == list(again.records())
    again.close()


def test_the_wire_says_that_the_database_cannot_be_written(site: Site) -> None:
    challenge = site.challenge()
    path = f"/v1/launches/{challenge.launch}/report"
    body = request_of(challenge, a_report(challenge, guest_key()))
    with full_disk(site.office.folder):
        for where, what in ((path, body), ("/v1/challenges", {"policy": "db"})):
            status, found = site.post(where, what)
            assert (503, True) == (status, "the database cannot be" in found["reasons"][0])
    assert 2 == sum(line.startswith("database: ") and "disk" in line for line in site.lines)
    assert not any("defect" in line for line in site.lines)
    assert (200, 409) == (site.post(path, body)[0], site.post(path, body)[0])


def test_a_database_that_another_process_holds_is_named(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbit.owner.broker.sqlite._WAIT_S", 0)
    second = SqliteStore(office.folder / "broker.db")
    with office.store._change("test"), pytest.raises(StoreUnavailable) as caught:
        second.note(CREATED)
    assert "database is locked" == caught.value.cause
    assert second.note(CREATED).number
    second.close()
    office.store.close()
    with closing(sqlite3.connect(office.folder / "broker.db")) as alone:
        alone.execute("PRAGMA locking_mode = EXCLUSIVE")
        alone.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable) as caught:
            SqliteStore(office.folder / "broker.db")
    assert "broker.db: database is locked" == caught.value.cause
