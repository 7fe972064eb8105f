"""What the key-distribution service hands out: one chip's CEK certificate, its root's files, by address.

    /cek/id/CHIP-ID                                             the CEK certificate
    /wp-content/resources/ask_ark_PRODUCT.cert                  ASK ‖ ARK, in AMD's format
    /developer/eula/sev/ask_ark_PRODUCT.cert                    the same, where it is today
    /vcek/v1/PRODUCT/CHIP-ID?…SPL=…  …/cert_chain  …/crl        of SEV-SNP: reserved, 501
    /vlek/v1/PRODUCT/cert_chain      …/crl                      likewise

Paper: launch-inputs.md §9 (the addresses of SNP); those of SEV are in the published clients.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cbit.machine.published import NAMES
from cbit.machine.state_folder import StateError
from cbit.secure_processor.nv_store import read_file, replace_file
from cbit.spec.certificate import CERT_SIZE

#: The host names that programs have built in.
HOSTS: Final = ("kdsintf.amd.com", "developer.amd.com", "download.amd.com")
PRODUCTS: Final = ("naples", "rome", "milan", "genoa")
#: Products of SNP, as its addresses spell them.
SNP_PRODUCTS: Final = ("Milan", "Genoa", "Turin")
BINARY: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"

_CEK: Final = re.compile(r"/cek/id/([^/]*)")
_ASK_ARK: Final = re.compile(r"(?:/wp-content/resources|/developer/eula/sev)/ask_ark_([a-z]+)\.cert")
_SNP: Final = re.compile(r"/(vcek|vlek)/v1/([^/]+)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of HTTP: its status, what kind of thing it is, the thing."""

    status: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What the vendor of one machine publishes; read from its state folder, also while it is served.

    Attributes:
        product: the machine's profile.
        chip_id: 128 digits.
        cek: the chip's certificate.
        ask_ark: its root's.
        chain: PDH, PEK, OCA, CEK, ASK, ARK: what clients keep in their cache; empty while the platform has no
            identity: after a factory reset, until its next INIT.
    """

    product: str
    chip_id: str
    cek: bytes
    ask_ark: bytes
    chain: bytes

    @classmethod
    def read(cls, state: Path) -> Published:
        """Read the public files of a state folder; nothing secret is touched, nothing is locked.

        Raises:
            StateError: a file is missing or damaged.
        """
        try:
            description = json.loads(read_file(state / "cbit.json"))
            certs = {name: read_file(state / "certs" / f"{name}.cert") for name in ("cek", "ask_ark")}
            product, chip_id = description["profile"], description["chip_id"]
        except OSError as error:
            hint = f"make a machine with 'cbit setup --state {shlex.quote(str(state))}'"
            raise StateError(f"{error.filename}: {error.strerror}; {hint}") from None
        except (ValueError, KeyError, TypeError):
            raise StateError(
                f"{state / 'cbit.json'}: damaged, or of an older cbit: make a new machine"
            ) from None
        identity = _identity(state / "certs")
        if len(certs["cek"]) != CERT_SIZE or len(identity) not in (0, 3 * CERT_SIZE):
            raise StateError(f"{state / 'certs'}: a certificate has not {CERT_SIZE:#x} bytes")
        chain = identity + certs["cek"] + certs["ask_ark"] if identity else b""
        return cls(product, chip_id, certs["cek"], certs["ask_ark"], chain)

    def answer(self, target: str) -> Reply:
        """Answer the target of a request: a path, with a query or without."""
        try:
            path = urlsplit(target).path
        except ValueError:
            return _says(400, "that is no address")
        if match := _CEK.fullmatch(path):
            return self._cek(match[1])
        if match := _ASK_ARK.fullmatch(path):
            return self._ask_ark(match[1])
        if match := _SNP.fullmatch(path):
            return _snp(*match.groups())
        return _says(404, f"{path}: this service has /cek/id/CHIP-ID and …/ask_ark_PRODUCT.cert")

    def write_cache(self, folder: Path) -> Mapping[str, str]:
        """Write what clients keep on disk: ``amd-sev/chain``, and each file under its name.

        A client finds the chain in ``$HOME/.cache`` or ``/var/cache``, or where ``SEV_CHAIN`` points.

        Returns:
            Name of each file: its path.

        Raises:
            StateError: the platform has no identity now, so there is no chain.
            OSError: the folder cannot be written.
        """
        if not self.chain:
            raise StateError(
                "the platform has no keys since its factory reset: its next INIT makes them, and the chain"
            )
        cache = folder / "amd-sev"
        cache.mkdir(parents=True, exist_ok=True)
        files = {"chain": self.chain, "cek.cert": self.cek, f"ask_ark_{self.product}.cert": self.ask_ark}
        for name, content in files.items():
            replace_file(cache / name, content)
            (cache / name).chmod(0o644)
        return {name: str(cache / name) for name in files}

    def _cek(self, chip_id: str) -> Reply:
        if not re.fullmatch(r"[0-9a-fA-F]{128}", chip_id):
            return _says(400, f"a chip's id has 128 hexadecimal digits, this has {len(chip_id)} characters")
        if chip_id.lower() != self.chip_id:
            return _says(
                404, f"no certificate of chip {chip_id[:16]}…: this service knows {self.chip_id[:16]}…"
            )
        return Reply(200, BINARY, self.cek)

    def _ask_ark(self, product: str) -> Reply:
        if product not in PRODUCTS:
            return _says(404, f"no product {product}: {', '.join(PRODUCTS)}")
        if product != self.product:
            return _says(404, f"no root of {product}: this machine is a {self.product}")
        return Reply(200, BINARY, self.ask_ark)


def _identity(certs: Path) -> bytes:
    """Read PDH, PEK and OCA; nothing if the platform has none."""
    try:
        return b"".join(read_file(certs / f"{name}.cert") for name in NAMES)
    except FileNotFoundError:
        return b""


def _snp(kind: str, product: str, what: str) -> Reply:
    if product not in SNP_PRODUCTS:
        return _says(404, f"no product {product}: {', '.join(SNP_PRODUCTS)}")
    if kind == "vlek" and what not in {"cert_chain", "crl"}:
        return _says(404, "a VLEK comes from its host, not from this service")
    return _says(501, f"{kind.upper()} of {product}, {what[:16]}: SEV-SNP is not modelled yet")


def _says(status: int, text: str) -> Reply:
    return Reply(status, TEXT, f"cbit kds: {text}\n".encode())
