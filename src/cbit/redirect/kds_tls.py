"""The key-distribution service's own authority: who believes it, believes it for the emulated chip's files.

    STATE/kds/ca.crt     what a client is told to trust (SSL_CERT_FILE)
    STATE/kds/ca.key     its key, 0600

The server's certificate is made at each start, for the host names that programs have built in.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cbit.machine.state_folder import StateError
from cbit.secure_processor.nv_store import read_file, replace_file

_FOREVER: Final = datetime.timedelta(days=3650)
_SERVER: Final = datetime.timedelta(days=90)
_BEFORE: Final = datetime.timedelta(days=1)  #: clocks differ


@dataclass(frozen=True)
class Authority:
    """A certificate authority of one state folder."""

    path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, state: Path, *, now: datetime.datetime) -> Authority:
        """Open the folder's authority, or make it.

        Raises:
            StateError: its files are damaged.
            OSError: they cannot be written.
        """
        folder = state / "kds"
        files = folder / "ca.crt", folder / "ca.key"
        if not all(file.exists() for file in files):
            folder.mkdir(mode=0o700, exist_ok=True)
            certificate, key = _make(now)
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            replace_file(files[1], pem)
            replace_file(files[0], certificate.public_bytes(serialization.Encoding.PEM))
            return cls(files[0], certificate, key)
        try:
            certificate = x509.load_pem_x509_certificate(read_file(files[0]))
            loaded = serialization.load_pem_private_key(read_file(files[1]), password=None)
        except (ValueError, TypeError) as error:
            raise StateError(f"{folder}: damaged ({error}): remove it, and a new authority is made") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise StateError(f"{folder}: the authority's key is of another kind: remove the folder")
        return cls(files[0], certificate, loaded)

    def context(self, names: Sequence[str], *, now: datetime.datetime) -> ssl.SSLContext:
        """Make a server's certificate for these names and addresses, and the context that shows it."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"SIMULATED {names[0]}")])
        leaf = (
            _builder(subject, self.certificate.subject, key.public_key(), now, _SERVER)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with tempfile.NamedTemporaryFile(prefix="cbit-kds-") as file:  # its mode is 0600
            file.write(leaf.public_bytes(serialization.Encoding.PEM))
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            file.flush()
            context.load_cert_chain(file.name)
        return context


def _make(now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cbit SIMULATED key distribution")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now, _FOREVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + lifetime)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
