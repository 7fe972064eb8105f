"""``cbit owner serve``: a broker is made, fed, run, asked, killed and audited."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cbit.owner.broker.packet import public_bytes
from cbit.owner.broker.rules import Challenge, OpenedSession
from cbit.owner.broker.tls import client_context
from cli.owner.day import Cli
from owner.broker_worlds import (
    SECRET,
    SEV_WISHES,
    SNP_WISHES,
    a_report,
    ca_pem,
    exported,
    guest_key,
    launched,
    leaf_pem,
    pem_of,
    root_pem,
)
from owner.worlds import emulated

GUID = "736869e5-84f0-4973-92ec-06879ce3da0b"


@pytest.fixture
def store(cli: Cli, tmp_path: Path) -> Path:
    """A broker with a policy of each kind."""
    folder = tmp_path / "broker"
    files = {
        "sev.toml": SEV_WISHES.encode(),
        "snp.toml": SNP_WISHES.encode(),
        "secret": SECRET,
        "ask.cert": emulated().chain.ask.raw,
        "ark.cert": emulated().chain.ark.raw,
        "cek.cert": emulated().chain.cek.raw,
        "ca.pem": ca_pem(),
        "root.pem": root_pem(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    serve = ("owner", "serve")
    assert 0 == cli(*serve, "init", "--store", folder, "--name", "localhost")[0]
    sev = ("--kind", "sev", "--want", tmp_path / "sev.toml", "--entry", f"{GUID}:{tmp_path / 'secret'}")
    chain = ("--ca", tmp_path / "ask.cert", "--ca", tmp_path / "cek.cert", "--trust", tmp_path / "ark.cert")
    assert 0 == cli(*serve, "add", "web", "--store", folder, *sev, *chain)[0]
    snp = ("--kind", "snp", "--want", tmp_path / "snp.toml", "--raw", tmp_path / "secret")
    roots = ("--ca", tmp_path / "ca.pem", "--trust", tmp_path / "root.pem")
    assert 0 == cli(*serve, "add", "db", "--store", folder, *snp, *roots)[0]
    return folder


@contextmanager
def running(store: Path, host: str = "localhost") -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = ("owner", "serve", "run", "--store", str(store), "--listen", f"{host}:0")
    server = subprocess.Popen(
        [sys.executable, "-m", "cbit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"https://{host}:"), line
        yield server, int(line.split()[0].rpartition(":")[2])
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def post(store: Path, port: int, path: str, body: object) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPSConnection(
        "localhost", port, context=client_context(store / "owner.crt"), timeout=30
    )
    try:
        connection.request("POST", path, body if isinstance(body, str) else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_day_of_a_broker(cli: Cli, store: Path, tmp_path: Path) -> None:
    with running(store) as (server, port):
        _, found = post(store, port, "/v1/sessions", {"policy": "web", "chain": b64(exported())})
        session = OpenedSession(
            launch=found["launch"],
            godh=base64.b64decode(found["godh"]),
            blob=base64.b64decode(found["session"]),
            policy=found["policy"],
            record=None,  # type: ignore[arg-type]  # nobody looks at it here
        )
        receipt = launched(session).to_json()
        path = f"/v1/launches/{session.launch}/receipt"
        status, kept = post(store, port, path, receipt)
        assert 200 == status
        server.kill()  # and whoever starts it again finds the release
    with running(store) as (server, port):
        assert 409 == post(store, port, path, receipt)[0]
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        assert (0, "stopped\n") == (server.returncode, out)
        assert f"POST {path} 409" in err
        assert b64(SECRET) not in err
    code, found = cli("owner", "serve", "audit", "--store", store, "--head", kept["head"])
    assert 0 == code
    events = {"created": 1, "policy added": 2, "session": 1, "release": 1, "refusal": 1}
    assert events == found["result"]["events"]


def test_the_guests_end(cli: Cli, store: Path, tmp_path: Path) -> None:
    key, challenge_file = tmp_path / "guest.pem", tmp_path / "challenge.json"
    key.write_bytes(pem_of(guest_key()))
    with running(store) as (_, port):
        _, found = post(store, port, "/v1/challenges", {"policy": "db"})
        challenge_file.write_text(json.dumps(found))
        bound = ("--challenge", challenge_file, "--key", key, "--out", tmp_path / "report_data")
        assert 0 == cli("owner", "serve", "bind", *bound)[0]
        nonce = base64.b64decode(found["nonce"])
        challenge = Challenge(launch=found["launch"], nonce=nonce, record=None)  # type: ignore[arg-type]  # as above
        report = a_report(challenge, guest_key())
        assert report[0x50:0x90] == (tmp_path / "report_data").read_bytes()
        (tmp_path / "report.bin").write_bytes(report)
        request = {
            "report": b64(report),
            "certificates": b64(leaf_pem()),
            "public_key": b64(public_bytes(guest_key().public_key())),
        }
        status, found = post(store, port, f"/v1/launches/{challenge.launch}/report", request)
        assert 200 == status
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(found))
    words = ("owner", "serve", "open", "--answer", answer, "--key", key, "--report", tmp_path / "report.bin")
    code, opened = cli(*words, "--out", tmp_path / "opened")
    assert (0, len(SECRET)) == (code, opened["result"]["size"])
    assert SECRET == (tmp_path / "opened").read_bytes()
    assert 0o600 == (tmp_path / "opened").stat().st_mode & 0o777
    (tmp_path / "report.bin").write_bytes(report[:-1] + b"\x01")
    assert 1 == cli(*words, "--out", tmp_path / "again")[0]
    answer.write_text(json.dumps({"ok": False, "reasons": ["no"]}))
    code, found = cli(*words, "--out", tmp_path / "again")
    assert 2 == code
    assert "no good answer" in found["reasons"][0]
    answer.write_text(json.dumps({"ok": True, "nonce": ""}))
    assert "something else" in cli(*words, "--out", tmp_path / "again")[1]["reasons"][0]


def test_policies_are_listed_without_their_secrets(cli: Cli, store: Path) -> None:
    _, found = cli("owner", "serve", "list", "--store", store)
    assert [("db", "snp"), ("web", "sev")] == [(p["name"], p["kind"]) for p in found["result"]["policies"]]
    code, out, _ = cli.read("owner", "serve", "list", "--store", store)
    assert 0 == code
    assert "web  sev, a secret of" in out
    assert SECRET.decode() not in out + json.dumps(found)
    assert 0 == cli("owner", "serve", "remove", "web", "--store", store)[0]
    assert 2 == cli("owner", "serve", "remove", "web", "--store", store)[0]


def test_a_log_is_exported_and_verified_elsewhere(cli: Cli, store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code, found = cli("owner", "serve", "audit", "--store", store, "--export", log)
    head = found["result"]["head"]
    assert 0 == code
    assert 3 == len(log.read_text().splitlines())
    assert 0 == cli("owner", "serve", "audit", "--log", log, "--head", head)[0]
    whole = log.read_bytes()
    for twin in (whole.replace(b'"web"', b'"wob"'), whole[: whole.rindex(b"\n", 0, -1) + 1], whole + whole):
        log.write_bytes(twin)
        code, found = cli("owner", "serve", "audit", "--log", log, "--head", head)
        assert 1 == code
        assert found["reasons"]
    log.write_bytes(whole[:-10])
    assert 2 == cli("owner", "serve", "audit", "--log", log)[0]
    code, out, _ = cli.read("owner", "serve", "audit", "--store", store)
    assert "verdict: the log is whole; keep the head" in out


def test_an_emptied_log_is_not_whole(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    for path in (tmp_path / "log", Path(os.devnull)):
        code, found = cli("owner", "serve", "audit", "--log", path)
        assert (1, True) == (code, "the log is empty" in found["reasons"][0])


def test_a_release_that_the_log_does_not_have_is_found_out(cli: Cli, store: Path) -> None:
    assert 0 == cli("owner", "serve", "audit", "--store", store)[0]
    with closing(sqlite3.connect(store / "broker.db")) as db:
        db.execute("INSERT INTO releases VALUES ('a', 'snp 1', 1)")
        db.commit()
    code, found = cli("owner", "serve", "audit", "--store", store)
    assert (1, "the database has launch a as released, and the log does not") == (code, found["reasons"][0])


def test_a_database_that_was_edited_is_found_out(cli: Cli, store: Path) -> None:

    head = cli("owner", "serve", "audit", "--store", store)[1]["result"]["head"]
    db = sqlite3.connect(store / "broker.db")
    db.execute("DROP TRIGGER audit_UPDATE")
    db.execute("UPDATE audit SET line = replace(line, 'web', 'wob') WHERE number = 1")
    db.commit()
    db.close()
    code, found = cli("owner", "serve", "audit", "--store", store, "--head", head)
    assert 1 == code
    assert any("changed" in reason for reason in found["reasons"])


def test_it_listens_on_ipv6(cli: Cli, store: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this computer has no IPv6 loopback")
    with running(store, "[::1]") as (_, port):
        context = client_context(store / "owner.crt")
        with (
            socket.create_connection(("::1", port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(
                b"POST /v1/challenges HTTP/1.0\r\nContent-Length: 16\r\n\r\n" + b'{"policy": "db"}'
            )
            assert client.recv(20).startswith(b"HTTP/1.1 201")
    assert 2 == cli("owner", "serve", "run", "--store", store, "--listen", "::1:0")[0]


def test_where_it_cannot_listen_is_said(cli: Cli, store: Path, tmp_path: Path) -> None:
    run = ("owner", "serve", "run", "--store")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, found = cli(*run, store, "--listen", f"127.0.0.1:{port}")
    assert (2, True) == (code, found["reasons"][0].startswith(f"--listen 127.0.0.1:{port}: "))
    assert "take another port" in found["reasons"][0]
    code, found = cli(*run, store, "--listen", "no.such.host.invalid:0")
    assert (2, True) == (code, found["reasons"][0].startswith("--listen no.such.host.invalid:0: "))
    code, found = cli(*run, tmp_path / "nothing")
    assert (2, True) == (code, "nothing/broker.db: there is no broker here" in found["reasons"][0])
    (store / "owner.key").unlink()
    code, found = cli(*run, store, "--listen", "127.0.0.1:0")
    assert (2, True) == (code, f"{store / 'owner.key'}: the broker's own" in found["reasons"][0])


@pytest.mark.parametrize("name", ["", " ", "a b", "ü.example", "a\nb"])
def test_a_certificate_is_for_names_that_are_some(cli: Cli, tmp_path: Path, name: str) -> None:
    code, found = cli("owner", "serve", "init", "--store", tmp_path / "new", "--name", "ok", "--name", name)
    assert (2, True) == (code, "is no host name or address" in found["reasons"][0])
    assert [] == list((tmp_path / "new").iterdir())


def test_what_cannot_be_meant_is_said(cli: Cli, store: Path, tmp_path: Path) -> None:
    serve = ("owner", "serve")
    assert 2 == cli(*serve, "init", "--store", store, "--name", "localhost")[0], "there is one already"
    assert 2 == cli(*serve, "list", "--store", tmp_path / "nothing")[0]
    add = (*serve, "add", "web", "--store", store, "--kind", "sev", "--want", tmp_path / "sev.toml")
    assert 2 == cli(*add, "--raw", tmp_path / "secret")[0], "the name is taken"
    for listen in ("8443", "localhost:", "localhost:99999", ":1"):
        assert 2 == cli(*serve, "run", "--store", store, "--listen", listen)[0]
    assert 2 == cli(*serve, "run", "--store", tmp_path / "nothing")[0]
