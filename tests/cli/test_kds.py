"""``cbit kds``: programs with the vendor's addresses built in get the emulated chip's files."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cli.test_exec import cbit
from conftest import RequireProgram
from redirect.conftest import ON_LINUX, environment

if not ON_LINUX:
    pytest.skip("the machine's half is for Linux", allow_module_level=True)

CERT, CEK = 0x824, "https://kdsintf.amd.com/cek/id/"


class Service:
    """A running service, seen from a client."""

    def __init__(self, address: str, ca: Path, process: subprocess.Popen[str]) -> None:
        self.address, self.ca, self.process = address, ca, process

    def get(self, url: str, *, proxy: bool = True, ca: Path | None = None) -> bytes:
        context = ssl.create_default_context(cafile=str(ca or self.ca))
        proxies = {"https": f"http://{self.address}"} if proxy else {}
        handlers = [urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)]
        with urllib.request.build_opener(*handlers).open(url, timeout=100) as answer:
            body: bytes = answer.read()
            return body

    def refusal(self, url: str) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.get(url)
        with refused.value as error:
            return error.code, error.read().decode()

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=100)


@contextmanager
def serving(machine: Path, *words: str) -> Iterator[Service]:
    command = [
        sys.executable,
        "-m",
        "cbit",
        "kds",
        "--state",
        str(machine),
        "--listen",
        "127.0.0.1:0",
        *words,
    ]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert "listens at" in line, line + process.stderr.read()
        try:
            address = line.partition("listens at ")[2].partition(";")[0]
            yield Service(address, machine / "kds/ca.crt", process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def service(made: Path) -> Iterator[Service]:
    with serving(made) as running:
        yield running


def chip_id(machine: Path) -> str:
    found: str = json.loads((machine / "cbit.json").read_text())["chip_id"]
    return found


def test_a_client_with_a_proxy_gets_the_chips_certificate(made: Path, service: Service) -> None:
    expected = (made / "certs/cek.cert").read_bytes()
    assert expected == service.get(CEK + chip_id(made)) == service.get(CEK + chip_id(made).upper())


@pytest.mark.parametrize(
    "where", ["developer.amd.com/wp-content/resources", "download.amd.com/developer/eula/sev"]
)
def test_the_roots_file_is_at_both_addresses(made: Path, service: Service, where: str) -> None:
    assert (made / "certs/ask_ark.cert").read_bytes() == service.get(f"https://{where}/ask_ark_naples.cert")


def test_what_is_handed_out_verifies(made: Path, service: Service, tmp_path: Path) -> None:
    (tmp_path / "cek.cert").write_bytes(service.get(CEK + chip_id(made)))
    ask_ark = service.get("https://developer.amd.com/wp-content/resources/ask_ark_naples.cert")
    (tmp_path / "ask_ark.cert").write_bytes(ask_ark)
    platform = [made / f"certs/{name}.cert" for name in ("pdh", "pek", "oca")]
    words = ["owner", "verify", *platform, tmp_path / "cek.cert", "--ca", tmp_path / "ask_ark.cert"]
    assert 0 == cbit(*words, "--trust", made / "certs/ark.cert").returncode
    assert 1 == cbit(*words).returncode, "nobody trusts it unasked"


def test_it_is_an_ordinary_server_too(made: Path, service: Service) -> None:
    expected = (made / "certs/cek.cert").read_bytes()
    for scheme in ("https", "http"):
        assert expected == service.get(f"{scheme}://{service.address}/cek/id/{chip_id(made)}", proxy=False)


def test_one_connection_serves_many_requests(made: Path, service: Service) -> None:
    context = ssl.create_default_context(cafile=str(service.ca))
    host, _, port = service.address.rpartition(":")
    client = http.client.HTTPSConnection(host, int(port), context=context, timeout=100)
    client.set_tunnel("kdsintf.amd.com", 443)
    for method, length in (("GET", CERT), ("HEAD", 0), ("GET", CERT)):
        client.request(method, f"/cek/id/{chip_id(made)}")
        answer = client.getresponse()
        assert (200, str(CERT)) == (answer.status, answer.headers["Content-Length"])
        assert length == len(answer.read())
    client.close()


@pytest.mark.parametrize(
    ("path", "code", "why"),
    [
        ("kdsintf.amd.com/cek/id/" + "0" * 128, 404, "no certificate of chip 0000000000000000"),
        ("kdsintf.amd.com/cek/id/" + "0" * 127, 400, "has 127 characters"),
        ("kdsintf.amd.com/cek/id/" + "g" * 128, 400, "128 hexadecimal digits"),
        ("kdsintf.amd.com/cek/id/", 400, "has 0 characters"),
        ("developer.amd.com/wp-content/resources/ask_ark_rome.cert", 404, "this machine is a naples"),
        ("developer.amd.com/wp-content/resources/ask_ark_zen.cert", 404, "no product zen"),
        (
            "kdsintf.amd.com/vcek/v1/Milan/cert_chain",
            501,
            "VCEK of Milan, cert_chain: SEV-SNP is not modelled",
        ),
        ("kdsintf.amd.com/vcek/v1/Genoa/crl", 501, "not modelled yet"),
        ("kdsintf.amd.com/vcek/v1/Milan/" + "0" * 128 + "?blSPL=02&teeSPL=00", 501, "not modelled yet"),
        ("kdsintf.amd.com/vlek/v1/Milan/cert_chain", 501, "VLEK of Milan"),
        ("kdsintf.amd.com/vlek/v1/Milan/" + "0" * 128, 404, "comes from its host"),
        ("kdsintf.amd.com/vcek/v1/Zen/cert_chain", 404, "no product Zen"),
        ("kdsintf.amd.com/", 404, "this service has"),
        ("kdsintf.amd.com/../../chip/fuses.bin", 404, "this service has"),
    ],
)
def test_what_is_not_there_is_said(service: Service, path: str, code: int, why: str) -> None:
    found, text = service.refusal(f"https://{path}")
    assert code == found
    assert why in text


def test_it_connects_nobody_to_anybody_else(service: Service) -> None:
    with pytest.raises(OSError, match="403"):
        service.get("https://example.com/")


def test_who_does_not_trust_us_does_not(made: Path, service: Service, tmp_path: Path) -> None:
    with serving(shutil.copytree(made, tmp_path / "other", ignore=shutil.ignore_patterns("kds"))) as other:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            service.get(CEK + chip_id(made), ca=other.ca)
        assert service.get(CEK + chip_id(made)), "and it serves on"


def test_nonsense_and_silence_are_one_clients_own(made: Path, service: Service) -> None:
    with service.connect() as silent:
        for nonsense in (
            b"\x16\x03\x01\xff\xffnonsense",
            b"\x00" * 300,
            b"GET\r\n\r\n",
            b"A" * 70000 + b"\r\n",
        ):
            with service.connect() as client, suppress(OSError):  # it may be gone before all is said
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
        assert service.get(CEK + chip_id(made))
        silent.close()


def test_the_authoritys_key_is_its_owners_alone(made: Path, service: Service) -> None:
    assert 0o600 == stat.S_IMODE((made / "kds/ca.key").stat().st_mode)
    assert b"PRIVATE" not in service.ca.read_bytes()


def test_the_authority_stays_and_a_damaged_one_is_said(made: Path, tmp_path: Path) -> None:
    machine = shutil.copytree(made, tmp_path / "machine")
    with serving(machine) as first:
        before = first.ca.read_bytes()
    with serving(machine) as second:
        assert before == second.ca.read_bytes()
        assert second.get(CEK + chip_id(made))
    (machine / "kds/ca.crt").write_bytes(b"nonsense")
    ended = cbit("kds", "--state", machine, "--listen", "127.0.0.1:0")
    assert 2 == ended.returncode
    assert "remove it, and a new authority is made" in ended.stderr


def test_a_signal_ends_it(made: Path) -> None:
    with serving(made) as running:
        running.process.send_signal(signal.SIGTERM)
        assert 0 == running.process.wait(100)


def test_a_served_machine_can_be_looked_up(made: Path, tmp_path: Path) -> None:
    inner = [sys.executable, "-m", "cbit", "kds", "--state", str(made), "--cache", str(tmp_path), "--json"]
    ended = cbit("exec", "--state", made, "--", *inner)
    assert 0 == ended.returncode, ended.stderr


def test_the_cache_is_the_layout_that_clients_read(made: Path, tmp_path: Path) -> None:
    """PDH, PEK, OCA, CEK, ASK, ARK in one file, where clients look for it."""
    ended = cbit("kds", "--state", made, "--cache", tmp_path, "--json")
    assert 0 == ended.returncode, ended.stderr
    names = ("pdh", "pek", "oca", "cek", "ask", "ark")
    chain = b"".join((made / f"certs/{name}.cert").read_bytes() for name in names)
    assert chain == (tmp_path / "amd-sev/chain").read_bytes()
    found = json.loads(ended.stdout)["result"]
    assert {"chain", "cek.cert", "ask_ark_naples.cert"} == set(found["cache"])
    assert (
        0
        == cbit("owner", "verify", tmp_path / "amd-sev/chain", "--trust", made / "certs/ark.cert").returncode
    )


#: Issue commands, and write what PDH_CERT_EXPORT gives to a file if one is named: PDH, then PEK, OCA and CEK.
COMMANDS = """
import ctypes, fcntl, os, struct, sys
fd = os.open("/dev/sev", os.O_RDWR)
for command in map(int, sys.argv[2:]):
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", command, 0, 0))
if sys.argv[1]:
    pdh, chain = ctypes.create_string_buffer(0x824), ctypes.create_string_buffer(0x186c)
    asked = struct.pack("<QIQI", ctypes.addressof(pdh), 0x824, ctypes.addressof(chain), 0x186c)
    want = ctypes.create_string_buffer(asked)
    fcntl.ioctl(fd, 0xC0105300, struct.pack("<IQI", 5, ctypes.addressof(want), 0))
    open(sys.argv[1], "wb").write(pdh.raw + chain.raw)
"""
RESET, PEK_GEN, PDH_GEN = 0, 2, 4


@pytest.mark.parametrize("commands", [[PEK_GEN], [PDH_GEN], [RESET], [PEK_GEN, PDH_GEN]])
def test_the_cache_is_the_chain_that_the_machine_has_now(
    any_way: None, made: Path, tmp_path: Path, commands: list[int]
) -> None:
    machine, out = shutil.copytree(made, tmp_path / "machine"), tmp_path / "exported"
    before = (machine / "certs/pdh.cert").read_bytes()
    program = [sys.executable, "-c", COMMANDS]
    ended = cbit("exec", "--state", machine, "--", *program, out, *commands)
    assert 0 == ended.returncode, ended.stderr
    assert 0 == cbit("kds", "--state", machine, "--cache", tmp_path).returncode
    chain = (tmp_path / "amd-sev/chain").read_bytes()
    assert before != chain[:CERT]
    assert out.read_bytes()[: 3 * CERT] == chain[: 3 * CERT]
    trust = ["--trust", machine / "certs/ark.cert"]
    for what in (tmp_path / "amd-sev/chain", machine / "certs"):
        assert 0 == cbit("owner", "verify", what, *trust).returncode


def test_after_a_factory_reset_there_is_no_chain(any_way: None, made: Path, tmp_path: Path) -> None:
    machine = shutil.copytree(made, tmp_path / "machine")
    assert 0 == cbit("exec", "--state", machine, "--", sys.executable, "-c", COMMANDS, "", RESET).returncode
    ended = cbit("kds", "--state", machine, "--cache", tmp_path)
    reason = "the platform has no keys since its factory reset: its next INIT makes them, and the chain"
    assert (2, f"cbit kds: {reason}\n") == (ended.returncode, ended.stderr)
    assert not (tmp_path / "amd-sev").exists()
    with serving(machine) as running:
        assert (machine / "certs/cek.cert").read_bytes() == running.get(CEK + chip_id(machine))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nothing to do"),
        (["--listen", "0.0.0.0:0"], "other computers could connect; say --any-address"),
        (["--listen", "[::]:0"], "other computers could connect"),
        (["--listen", "kds.example:0"], "other computers could connect"),
        (["--listen", "127.0.0.1"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--listen", "127.0.0.1:x"], "HOST:PORT"),
        (["--listen", "::1:0"], "an IPv6 address stands in brackets"),
        (["--listen", "no-such-host.invalid:80", "--any-address"], "--listen no-such-host.invalid:80: "),
    ],
)
def test_a_bad_command_line_serves_nothing(made: Path, words: list[str], why: str) -> None:
    ended = cbit("kds", "--state", made, *words)
    assert (2, "") == (ended.returncode, ended.stdout)
    assert why in ended.stderr


def test_a_folder_that_is_no_machine_is_said(tmp_path: Path) -> None:
    ended = cbit("kds", "--state", tmp_path, "--cache", tmp_path)
    assert 2 == ended.returncode
    assert "cbit setup" in ended.stderr


@pytest.mark.oracle
def test_curl_believes_it(
    made: Path, service: Service, tmp_path: Path, require_program: RequireProgram
) -> None:
    curl = require_program("curl", "apt install curl")
    out = tmp_path / "cek.cert"
    proxied = environment() | {"HTTPS_PROXY": f"http://{service.address}"}
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", "NO_PROXY", "no_proxy", "https_proxy"):
        proxied.pop(name, None)
    words = [*curl, "--silent", "--show-error", "--fail", "--output", str(out), CEK + chip_id(made)]
    told = proxied | {"SSL_CERT_FILE": str(service.ca)}
    ended = subprocess.run(words, env=told, capture_output=True, text=True, check=False)
    assert 0 == ended.returncode, ended.stderr
    assert (made / "certs/cek.cert").read_bytes() == out.read_bytes()
    out.unlink()
    bundled = told | {"CURL_CA_BUNDLE": os.devnull}
    ended = subprocess.run(words, env=bundled, capture_output=True, text=True, check=False)
    assert 0 != ended.returncode, "SSL_CERT_FILE is not asked then"
    shown = [*words, "--cacert", str(service.ca)]
    ended = subprocess.run(shown, env=bundled, capture_output=True, text=True, check=False)
    assert 0 == ended.returncode, ended.stderr
    assert (made / "certs/cek.cert").read_bytes() == out.read_bytes()
    ended = subprocess.run(words, env=proxied, capture_output=True, text=True, check=False)
    assert 60 == ended.returncode, "who is not told to trust it does not"
