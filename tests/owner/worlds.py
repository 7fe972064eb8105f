"""Platforms, launches and files for the owner's tests, from real and from made-up vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from cbit.crypto import amd_cert, ec, measurement, sev_cert
from cbit.crypto.session import TransportKeys
from cbit.owner.verify.chain import Chain
from cbit.owner.verify.files import Piece
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import CERT_SIZE, SevCert, Usage
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob

VECTORS = Path(__file__).parents[1] / "vectors"
CASE = VECTORS / "synthetic-e2e" / "case1-sev"
API = ApiVersion(1, 51)
ROLES = ("pdh", "pek", "oca", "cek", "ask", "ark")


def vector(folder: Path = CASE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "vector.json").read_text())
    return found


def real(product: str) -> Chain:
    """The chain of a real EPYC machine."""
    files = {role: VECTORS / f"sev-chain-{product}" / f"{role}.cert" for role in ROLES[:4]}
    files |= {role: VECTORS / "amd-root" / f"{role}_{product}.cert" for role in ROLES[4:]}
    return Chain(*(Piece(Usage[role.upper()], files[role].read_bytes(), f"{role}.cert") for role in ROLES))


def changed(chain: Chain, role: str, raw: bytes) -> Chain:
    """The chain with one certificate replaced."""
    pieces = {name: getattr(chain, name) for name in ROLES}
    pieces[role] = Piece(Usage[role.upper()], raw, f"{role}.cert")
    return Chain(**pieces)


def flipped(raw: bytes, bit: int) -> bytes:
    out = bytearray(raw)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@dataclass(frozen=True)
class Emulated:
    """A platform under a root that is nobody's: the machine of synthetic case 1 with a CA of its own."""

    chain: Chain
    ark: AmdCert
    ask_key: rsa.RSAPrivateKey
    ark_key: rsa.RSAPrivateKey

    def exported(self) -> bytes:
        """PDH, PEK, OCA and the unsigned CEK, as the machine gives them."""
        unsigned = bytes(sev_cert.without_signatures(self.chain.cek.sev()))
        return self.chain.pdh.raw + self.chain.pek.raw + self.chain.oca.raw + unsigned

    def write(self, folder: Path) -> Path:
        """Write the usual files."""
        folder.mkdir()
        for role in ROLES:
            (folder / f"{role}.cert").write_bytes(getattr(self.chain, role).raw)
        return folder


@cache
def emulated() -> Emulated:
    ark_key, ask_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    ark = amd_cert.issue(
        key=ark_key.public_key(), usage=Usage.ARK, key_id=b"R" * 16, signer=ark_key, signer_key_id=b"R" * 16
    )
    ask = amd_cert.issue(
        key=ask_key.public_key(), usage=Usage.ASK, key_id=b"K" * 16, signer=ark_key, signer_key_id=b"R" * 16
    )
    blob = (CASE / "cert_chain_pek_oca_cek.bin").read_bytes()
    pek, oca, cek = (blob[i * CERT_SIZE : (i + 1) * CERT_SIZE] for i in range(3))
    signed = bytes(sev_cert.sign_by_ask(SevCert.parse(cek), signer=ask_key))
    raws = ((CASE / "pdh.cert").read_bytes(), pek, oca, signed, bytes(ask), bytes(ark))
    pieces = (Piece(Usage[role.upper()], raw, f"{role}.cert") for role, raw in zip(ROLES, raws, strict=True))
    return Emulated(Chain(*pieces), ark, ask_key, ark_key)


def keys_of(values: dict[str, Any]) -> TransportKeys:
    return TransportKeys.parse(bytes.fromhex(values["tek"] + values["tik"]))


def scalar(name: str, folder: Path = CASE) -> ec.PrivateKey:
    return ec.private_key(int(vector(folder)["private_scalars_hex_be"][name], 16))


def a_launch(
    keys: TransportKeys,
    *,
    digest: bytes,
    policy: int = 1,
    api: ApiVersion = API,
    build: int = 3,
) -> LaunchReceipt:
    """What an honest platform reports after a launch."""
    nonce = bytes(range(16))
    mac = measurement.measurement(keys.tik, api=api, build=build, policy=policy, digest=digest, mnonce=nonce)
    return LaunchReceipt(
        measure=mac, mnonce=nonce, api=api, build=build, policy=policy, chain=emulated().exported()
    )


def blob_of(receipt: LaunchReceipt) -> MeasureBlob:
    return receipt.blob
