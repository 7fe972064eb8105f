"""The platform's keys and certificates: who it is and who owns it.

    ARK → ASK → CEK → PEK ← OCA, PEK → PDH

Paper: sev-crypto.md §5; sev-api.md §5 (INIT, PEK_GEN, PEK_CERT_IMPORT, PDH_GEN).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import Entropy
from cbit.secure_processor.nv_store import NvState
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.policy import ApiVersion


@dataclass(frozen=True, slots=True)
class Issuer:
    """What new keys are made with: this firmware's version, this chip's CEK, its randomness."""

    api: ApiVersion
    cek: ec.PrivateKey = field(repr=False)
    entropy: Entropy = field(repr=False)

    def certificate(self, usage: Usage, key: ec.PrivateKey) -> SevCert:
        """Make an unsigned certificate; the PDH key agrees, all others sign (§2.2)."""
        algo = Algo.ECDH_SHA256 if usage is Usage.PDH else Algo.ECDSA_SHA256
        return sev_cert.build(usage=usage, algo=algo, key=key.public_key(), api=self.api)

    def sign_by_cek(self, cert: SevCert, *, slot: int) -> SevCert:
        """Let the chip endorse a PEK."""
        return sev_cert.sign(cert, slot=slot, signer=self.cek, usage=Usage.CEK)


@dataclass(frozen=True, slots=True)
class Identity:
    """OCA, PEK and PDH.  ``oca_key`` is None when an organisation owns the platform."""

    oca_cert: SevCert
    oca_key: ec.PrivateKey | None = field(repr=False)
    pek_cert: SevCert
    pek_key: ec.PrivateKey = field(repr=False)
    pdh_cert: SevCert
    pdh_key: ec.PrivateKey = field(repr=False)

    @property
    def externally_owned(self) -> bool:
        """Whether PEK_CERT_IMPORT replaced the platform's own OCA."""
        return self.oca_key is None

    @classmethod
    def self_owned(cls, issuer: Issuer) -> Self:
        """Make a new OCA, a PEK signed by OCA then CEK, and a PDH: first INIT, and PEK_GEN."""
        oca_key, pek_key = ec.random_key(issuer.entropy), ec.random_key(issuer.entropy)
        oca_cert = sev_cert.sign(
            issuer.certificate(Usage.OCA, oca_key), slot=1, signer=oca_key, usage=Usage.OCA
        )
        pek_cert = sev_cert.sign(
            issuer.certificate(Usage.PEK, pek_key), slot=1, signer=oca_key, usage=Usage.OCA
        )
        pek_cert = issuer.sign_by_cek(pek_cert, slot=2)
        pdh_cert, pdh_key = _new_pdh(issuer, pek_key)
        return cls(oca_cert, oca_key, pek_cert, pek_key, pdh_cert, pdh_key)

    def with_new_pdh(self, issuer: Issuer) -> Self:
        """PDH_GEN."""
        pdh_cert, pdh_key = _new_pdh(issuer, self.pek_key)
        return replace(self, pdh_cert=pdh_cert, pdh_key=pdh_key)

    def owned_by(self, oca_cert: SevCert, pek_cert: SevCert, issuer: Issuer) -> Self:
        """PEK_CERT_IMPORT: an organisation's OCA and its PEK certificate; the PDH is new."""
        return replace(self, oca_cert=oca_cert, oca_key=None, pek_cert=pek_cert).with_new_pdh(issuer)

    @classmethod
    def from_nv(cls, state: NvState) -> Self:
        """Restore from the NV store."""
        return cls(
            oca_cert=SevCert.parse(state.oca_cert, canonical=False),
            oca_key=None if state.externally_owned else ec.private_key(state.oca_scalar),
            pek_cert=SevCert.parse(state.pek_cert, canonical=False),
            pek_key=ec.private_key(state.pek_scalar),
            pdh_cert=SevCert.parse(state.pdh_cert, canonical=False),
            pdh_key=ec.private_key(state.pdh_scalar),
        )

    def to_nv(self) -> NvState:
        """What the NV store keeps."""
        return NvState(
            externally_owned=int(self.externally_owned),
            pdh_scalar=ec.scalar_of(self.pdh_key),
            pek_scalar=ec.scalar_of(self.pek_key),
            oca_scalar=0 if self.oca_key is None else ec.scalar_of(self.oca_key),
            pdh_cert=bytes(self.pdh_cert),
            pek_cert=bytes(self.pek_cert),
            oca_cert=bytes(self.oca_cert),
        )


def _new_pdh(issuer: Issuer, pek_key: ec.PrivateKey) -> tuple[SevCert, ec.PrivateKey]:
    key = ec.random_key(issuer.entropy)
    cert = sev_cert.sign(issuer.certificate(Usage.PDH, key), slot=1, signer=pek_key, usage=Usage.PEK)
    return cert, key
