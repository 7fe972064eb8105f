"""SNP chains and reports for the owner's tests: real ones, and made-up ones in which anything can be wrong.

A real report is named after the project that published it (vectors/snp-report).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from cbit.crypto import ec
from cbit.owner.verify.snp_chain import SnpChain, TrustedRoot, assemble_snp, certificates_of
from cbit.owner.verify.x509 import Certificate
from cbit.spec.snp_report import PlatformInfo, Product, SigningKey, SnpReport
from owner.worlds import VECTORS

ARC = "1.3.6.1.4.1.3704.1."
CHIP = bytes(range(64))
BORN, DIES = datetime(2024, 1, 1, tzinfo=UTC), datetime(2034, 1, 1, tzinfo=UTC)

#: Family and model of each product, and the TCB that made-up chips run.
CPUS = {Product.MILAN: (0x19, 0x01), Product.GENOA: (0x19, 0x11), Product.TURIN: (0x1A, 0x02)}
TCBS = {
    Product.MILAN: bytes((4, 0, 0, 0, 0, 0, 24, 219)),
    Product.GENOA: bytes((10, 0, 0, 0, 0, 0, 23, 84)),
    Product.TURIN: bytes((1, 1, 0, 4, 0, 0, 0, 80)),
}

# name: report, certificates, signing key
_REAL = {
    "virtee": ("virtee_milan_v2_report.hex", ("virtee_milan_v2_vcek.der", "ask_ark_milan.pem")),
    "trustee": ("trustee_milan_v3_vlek_report.bin", ("trustee_milan_v3_vlek.der", "ask_ark_milan_vlek.pem")),
    "azure": ("azure_milan_hcl_report.bin", ("azure_milan_vcek_and_chain.pem",)),
}
REAL = tuple(_REAL)

# name: leaf, authorities (vectors/snp-report-later, vectors/snp-chain)
_LATER = {
    "genoa_v3": ("genoa_v3_vcek.pem", "ask_ark_genoa.pem"),
    "genoa_v5": ("genoa_v5_vcek.pem", "ask_ark_genoa.pem"),
    "turin_v5": ("turin_v5_vcek.pem", "ask_ark_turin.pem"),
}
LATER = tuple(_LATER)


def real_file(name: str) -> bytes:
    """The report of a real machine, as its file is."""
    return (VECTORS / "snp-report" / _REAL[name][0]).read_bytes()


def real_report(name: str) -> bytes:
    """The report of a real machine, 0x4A0 bytes."""
    if name in _LATER:
        return (VECTORS / "snp-report-later" / f"{name}_report.bin").read_bytes()
    data = real_file(name)
    return {
        "virtee": lambda: bytes.fromhex(data.decode()),
        "trustee": lambda: data,
        "azure": lambda: data[32 : 32 + 0x4A0],
    }[name]()


def real_paths(name: str) -> list[str]:
    """The files of a real chain, leaf first."""
    folders = [VECTORS / folder for folder in ("snp-report", "snp-report-later", "snp-chain")]
    files = _LATER[name] if name in _LATER else _REAL[name][1]
    return [str(next(f / n for f in folders if (f / n).is_file())) for n in files]


def read_certs(*paths: str) -> list[Certificate]:
    return [c for p in paths for c in certificates_of(Path(p).read_bytes(), source=Path(p).name)]


def real_chain(name: str) -> SnpChain:
    return assemble_snp(read_certs(*real_paths(name)))


@cache
def rsa_key(name: str, bits: int = 4096) -> rsa.RSAPrivateKey:
    """One key for each name, made once a run: they take a second each."""
    return rsa.generate_private_key(65537, bits)


def common_name(cn: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])


def pss(salt: int = 48) -> padding.PSS:
    return padding.PSS(padding.MGF1(hashes.SHA384()), salt)


def integer(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes((2, len(body))) + body


def text(value: str) -> bytes:
    return bytes((0x16, len(value))) + value.encode()


@dataclass
class Issue:
    """What one certificate says; a test changes what it wants to be wrong."""

    subject: str
    issuer: str
    key: Any
    signer: Any
    ca: bool | None = None
    cert_sign: bool | None = None
    extensions: dict[str, bytes] = field(default_factory=dict)
    critical: frozenset[str] = frozenset()
    serial: int = 7
    dates: tuple[datetime, datetime] = (BORN, DIES)
    hash: hashes.SHA256 | hashes.SHA384 = field(default_factory=hashes.SHA384)
    padding: Any = field(default_factory=pss)

    def make(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(self.subject))
            .issuer_name(common_name(self.issuer))
            .public_key(self.key.public_key())
            .serial_number(self.serial)
            .not_valid_before(self.dates[0])
            .not_valid_after(self.dates[1])
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, None), critical=True)
        if self.cert_sign is not None:
            usage = dict.fromkeys(
                (
                    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                    *("key_agreement", "encipher_only", "decipher_only"),
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=self.cert_sign, crl_sign=True, **usage), critical=True
            )
        for oid, value in self.extensions.items():
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=oid in self.critical)
        cert = builder.sign(self.signer, self.hash, rsa_padding=self.padding)
        return cert.public_bytes(serialization.Encoding.DER)


def leaf_extensions(product: Product, kind: SigningKey, *, wrapped: bool = True) -> dict[str, bytes]:
    """The extensions that AMD's key server writes."""
    tcb = TCBS[product]
    turin = product is Product.TURIN
    found = {f"{ARC}1": integer(int(turin)), f"{ARC}2": text(f"{product}-B0")}
    if turin:
        parts = {"3.9": tcb[0], "3.1": tcb[1], "3.2": tcb[2], "3.3": tcb[3], "3.8": tcb[7]}
    else:
        parts = {"3.1": tcb[0], "3.2": tcb[1], "3.4": 0, "3.3": tcb[6], "3.8": tcb[7]}
    parts |= dict.fromkeys(("3.5", "3.6", "3.7"), 0)
    found |= {f"{ARC}{part}": integer(number) for part, number in parts.items()}
    if kind is SigningKey.VLEK:
        return found | {f"{ARC}5": text("CN=provider.example")}
    chip = CHIP[:8] if product is Product.TURIN else CHIP
    return found | {f"{ARC}4": bytes((4, len(chip))) + chip if wrapped else chip}


@dataclass
class World:
    """A made-up product line: root, authority, and one chip."""

    product: Product = Product.MILAN
    kind: SigningKey = SigningKey.VCEK
    ark: Issue = field(init=False)
    ask: Issue = field(init=False)
    leaf: Issue = field(init=False)
    leaf_key: ec.PrivateKey = field(default_factory=lambda: ec.private_key(0xC0FFEE))

    def __post_init__(self) -> None:
        root, middle = f"ARK-{self.product}", f"SEV-{self.product}"
        if self.kind is SigningKey.VLEK:
            middle = f"SEV-VLEK-{self.product}"
        ark, ask = rsa_key("ark"), rsa_key("ask")
        self.ark = Issue(root, root, ark, ark, ca=True, cert_sign=True, serial=1)
        self.ask = Issue(middle, root, ask, ark, ca=True, cert_sign=True, serial=2)
        extensions = leaf_extensions(self.product, self.kind)
        self.leaf = Issue(f"SEV-{self.kind.name}", middle, self.leaf_key, ask, extensions=extensions)

    def certificates(self) -> list[Certificate]:
        made = (("leaf", self.leaf), ("ask", self.ask), ("ark", self.ark))
        return [Certificate.parse(issue.make(), source=f"{name}.der") for name, issue in made]

    def chain(self) -> SnpChain:
        return assemble_snp(self.certificates())

    def root(self) -> TrustedRoot:
        return TrustedRoot(self.ark.key.public_key(), None)

    def report(self, changes: Mapping[str, Any] | None = None, **more: Any) -> bytes:
        """A report of this chip, signed; any field may be given."""
        return signed(self.leaf_key, **(self.fields() | dict(changes or {}) | more))

    def fields(self) -> dict[str, Any]:
        tcb, (family, model) = TCBS[self.product], CPUS[self.product]
        chip = CHIP[:8].ljust(64, b"\x00") if self.product is Product.TURIN else CHIP
        return {
            "version": 3,
            "guest_svn": 2,
            "policy": 0x3001F,
            "family_id": bytes(16),
            "image_id": b"I" * 16,
            "vmpl": 0,
            "current_tcb": tcb,
            "platform_info": PlatformInfo.SMT | PlatformInfo.ECC,
            "key_info": self.kind << 2,
            "report_data": b"D" * 64,
            "measurement": b"M" * 48,
            "host_data": b"H" * 32,
            "id_key_digest": bytes(48),
            "author_key_digest": bytes(48),
            "report_id": b"R" * 32,
            "report_id_ma": b"\xff" * 32,
            "reported_tcb": tcb,
            "cpuid_family": family,
            "cpuid_model": model,
            "cpuid_stepping": 1,
            "chip_id": bytes(64) if self.kind is SigningKey.VLEK else chip,
            "committed_tcb": tcb,
            "current_build": 29,
            "current_minor": 55,
            "current_major": 1,
            "committed_build": 21,
            "committed_minor": 55,
            "committed_major": 1,
            "launch_tcb": tcb,
            "launch_mit_vector": 0,
            "current_mit_vector": 0,
        }


def signed(key: ec.PrivateKey, **fields: Any) -> bytes:
    unsigned = bytes(SnpReport(r=0, s=0, **fields))
    return resigned(key, unsigned)


def resigned(key: ec.PrivateKey, raw: bytes) -> bytes:
    """The same bytes under a fresh signature: for what only the chip's owner could get wrong."""
    return raw[:0x2A0] + bytes(ec.sign(key, raw[:0x2A0], hashes.SHA384()))


def as_pem(raw: bytes, label: str = "CERTIFICATE") -> str:
    body = base64.encodebytes(raw).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n"


def crl(
    world: World, *, revoked: tuple[int, ...] = (), signer: Any = None, issuer: str = "", **options: Any
) -> bytes:
    """A revocation list by the root, unless somebody else is said."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(common_name(issuer or world.ark.subject))
        .last_update(options.get("made", BORN))
        .next_update(options.get("due", DIES))
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(BORN)
        builder = builder.add_revoked_certificate(
            entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False).build()
        )
    if options.get("critical"):
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    made = builder.sign(signer or world.ark.key, hashes.SHA384(), rsa_padding=pss())
    return made.public_bytes(serialization.Encoding.DER)
