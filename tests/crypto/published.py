"""Certificates and cases from the folder of vectors, as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbit.crypto import ec
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import CERT_SIZE, SevCert

VECTORS = Path(__file__).parents[1] / "vectors"


def amd(name: str) -> AmdCert:
    """A root certificate, such as ``ark_milan``."""
    return AmdCert.parse((VECTORS / f"amd-root/{name}.cert").read_bytes())


def platform(product: str, name: str) -> SevCert:
    """A certificate of a real platform, such as ``("milan", "pek")``."""
    return SevCert.parse((VECTORS / f"sev-chain-{product}/{name}.cert").read_bytes())


@dataclass(frozen=True)
class Flow:
    """One synthetic end-to-end case: its files and the intermediate values behind them."""

    name: str

    def file(self, name: str) -> bytes:
        return (VECTORS / "synthetic-e2e" / self.name / name).read_bytes()

    @property
    def values(self) -> Mapping[str, Any]:
        values: Mapping[str, Any] = json.loads(self.file("vector.json"))
        return values

    @property
    def policy(self) -> int:
        return int(self.values["policy"], 16)

    def key(self, name: str) -> ec.PrivateKey:
        return ec.private_key(int(self.values["private_scalars_hex_be"][name], 16))

    def chain(self) -> tuple[SevCert, SevCert, SevCert]:
        """PEK, OCA and CEK, as PDH_CERT_EXPORT gives them."""
        data = self.file("cert_chain_pek_oca_cek.bin")
        pek, oca, cek = (SevCert.parse(data[i : i + CERT_SIZE]) for i in range(0, len(data), CERT_SIZE))
        return pek, oca, cek


FLOWS = [Flow("case1-sev"), Flow("case2-sev-es")]
