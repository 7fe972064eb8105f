"""PEK_CERT_IMPORT: an organisation's certificates, and what can be wrong with them, in the paper's order.

Paper: sev-api.md §5, PEK_CERT_IMPORT; sev-crypto.md §2.5.
"""

from __future__ import annotations

from collections.abc import Callable

from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.spec import buffers
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.command import Command
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status as S
from secure_processor.faults import BUSY, NO_WRITE, UNINIT, Fault, Scene, bad_addresses, fields, spoiled
from secure_processor.worlds import World, flipped

STRANGER = ec.random_key(SeededEntropy("stranger"))


def csr(world: World) -> SevCert:
    """What PEK_CSR gives."""
    at = world.desk.room(0x824)
    world.desk.do(Command.PEK_CSR, buffers.PekCsr(paddr=at, length=0x824))
    return SevCert.parse(world.desk.read(at, 0x824))


class Organisation:
    """Somebody with an OCA of their own."""

    def __init__(self, seed: str = "organisation") -> None:
        self.key = ec.random_key(SeededEntropy(seed))
        unsigned = sev_cert.build(
            usage=Usage.OCA, algo=Algo.ECDSA_SHA256, key=self.key.public_key(), api=ApiVersion(0, 0)
        )
        self.oca = sev_cert.sign(unsigned, slot=1, signer=self.key, usage=Usage.OCA)

    def sign(self, cert: SevCert, *, slot: int = 1) -> SevCert:
        return sev_cert.sign(cert, slot=slot, signer=self.key, usage=Usage.OCA)


class ImportScene(Scene):
    """PEK_CERT_IMPORT with good certificates that can be changed."""

    def __init__(self, world: World) -> None:
        world.init()
        self.org = Organisation()
        self.oca = self.org.oca
        self.pek = self.org.sign(csr(world))
        super().__init__(
            world,
            buffers.PekCertImport(
                pek_paddr=world.desk.put(bytes(self.pek)),
                pek_len=0x824,
                oca_paddr=world.desk.put(bytes(self.oca)),
                oca_len=0x824,
            ),
        )

    def present(self, *, oca: SevCert | None = None, pek: SevCert | None = None) -> None:
        self.oca, self.pek = oca or self.oca, pek or self.pek
        self.world.desk.write(self.get("oca_paddr"), bytes(self.oca))
        self.world.desk.write(self.get("pek_paddr"), bytes(self.pek))


def import_from(world: World, org: Organisation) -> int:
    """Let an organisation take the platform over; return the status."""
    pek, oca = world.desk.put(bytes(org.sign(csr(world)))), world.desk.put(bytes(org.oca))
    request = buffers.PekCertImport(pek_paddr=pek, pek_len=0x824, oca_paddr=oca, oca_len=0x824)
    return world.desk.status_of(Command.PEK_CERT_IMPORT, request)


def own_already(scene: Scene) -> None:
    assert import_from(scene.world, Organisation("an earlier one")) == S.SUCCESS


def oca(name: str, status: S, change: Callable[[ImportScene], SevCert]) -> Fault:
    def spoil(scene: Scene) -> None:
        assert isinstance(scene, ImportScene)
        scene.present(oca=change(scene))

    return spoiled(f"OCA {name}", status, spoil, "oca")


def pek(name: str, status: S, change: Callable[[ImportScene], SevCert]) -> Fault:
    def spoil(scene: Scene) -> None:
        assert isinstance(scene, ImportScene)
        scene.present(pek=change(scene))

    return spoiled(f"PEK {name}", status, spoil, "pek")


def signed_by_stranger(cert: SevCert) -> SevCert:
    return sev_cert.sign(cert, slot=1, signer=STRANGER, usage=Usage.OCA)


def resigned(cert: SevCert, org: Organisation) -> SevCert:
    return org.sign(sev_cert.without_signatures(cert))


FAULTS = (
    UNINIT,
    BUSY,
    spoiled("owned already", S.ALREADY_OWNED, own_already, "nv"),
    fields("PEK short", S.INVALID_LENGTH, pek_len=0x823),
    fields("PEK long", S.INVALID_LENGTH, pek_len=0x825),
    fields("OCA short", S.INVALID_LENGTH, oca_len=0),
    *bad_addresses("pek_paddr"),
    *bad_addresses("oca_paddr"),
    oca("key altered", S.INVALID_CERTIFICATE, lambda s: SevCert.parse(flipped(bytes(s.oca), 0x14 * 8))),
    oca("version altered", S.BAD_SIGNATURE, lambda s: s.oca.replace(api_major=1)),
    oca("signature altered", S.BAD_SIGNATURE, lambda s: s.oca.replace(sig1=flipped(s.oca.sig1, 5))),
    oca("signed by a stranger", S.BAD_SIGNATURE, lambda s: signed_by_stranger(s.oca)),
    oca("slot half used", S.BAD_SIGNATURE, lambda s: s.oca.replace(sig2_usage=Usage.OCA)),
    oca(
        "slot of zeros",
        S.BAD_SIGNATURE,
        lambda s: s.oca.replace(sig2_usage=Usage.ARK, sig2_algo=Algo.INVALID),
    ),
    oca("not signed", S.INVALID_CERTIFICATE, lambda s: sev_cert.without_signatures(s.oca)),
    oca("of version 2", S.INVALID_CERTIFICATE, lambda s: resigned(s.oca.replace(version=2), s.org)),
    oca("of curve 1", S.INVALID_CERTIFICATE, lambda s: s.oca.replace(pubkey=b"\1" + s.oca.pubkey[1:])),
    oca(
        "that is a PEK",
        S.INVALID_CERTIFICATE,
        lambda s: sev_cert.sign(
            s.oca.replace(pubkey_usage=Usage.PEK), slot=1, signer=s.org.key, usage=Usage.PEK
        ),
    ),
    pek("signature altered", S.BAD_SIGNATURE, lambda s: s.pek.replace(sig1=flipped(s.pek.sig1, 5))),
    pek("signed by a stranger", S.BAD_SIGNATURE, lambda s: signed_by_stranger(s.pek)),
    pek("slot half used", S.BAD_SIGNATURE, lambda s: s.pek.replace(sig2_algo=Algo.ECDSA_SHA256)),
    pek("not signed", S.INVALID_CERTIFICATE, lambda s: sev_cert.without_signatures(s.pek)),
    pek(
        "of another key",
        S.INVALID_CERTIFICATE,
        lambda s: resigned(s.pek.replace(pubkey=bytes(ec.encode_public(STRANGER.public_key()))), s.org),
    ),
    pek("of another version", S.INVALID_CERTIFICATE, lambda s: resigned(s.pek.replace(api_minor=99), s.org)),
    pek("without a free slot", S.INVALID_CERTIFICATE, lambda s: s.org.sign(s.pek, slot=2)),
    NO_WRITE,
)
