"""The broker's own certificate, and TLS 1.3 under it.

Nobody signs the certificate but the owner: clients are given the file and trust this one key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from cbit.crypto import ec
from cbit.crypto.entropy import Entropy
from cbit.owner import files

CERTIFICATE: Final = "owner.crt"
PRIVATE_KEY: Final = "owner.key"
_YEARS: Final = 10


def make_certificate(
    folder: Path, names: Sequence[str], *, now: datetime, entropy: Entropy
) -> tuple[Path, Path]:
    """Make a key on P-384 and a certificate that signs itself.

    Args:
        folder: where both files go; the key is for its owner's eyes alone.
        names: host names and addresses under which clients will ask.
        now: the first moment of its validity.
        entropy: where the key comes from.

    Raises:
        ValueError: no name, or one that is none.
        FileExistsError: there is a key already.
    """
    if not names:
        raise ValueError("a certificate is for at least one name or address")
    for name in names:
        if not name or not name.isascii() or not name.isprintable() or " " in name:
            raise ValueError(f"{name!r} is no host name or address; write others than ASCII as xn--…")
    key = ec.random_key(entropy)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cbit owner's broker")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(entropy.draw(16), "big") | 1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA384())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.write_private(folder / PRIVATE_KEY, private)
    files.write_public(folder / CERTIFICATE, certificate.public_bytes(pem))
    return folder / CERTIFICATE, folder / PRIVATE_KEY


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server_context(folder: Path) -> ssl.SSLContext:
    """Return how the broker speaks: TLS 1.3 and nothing older, with the owner's certificate.

    Raises:
        OSError: a file is missing, or key and certificate do not belong together.
    """
    for path in (folder / CERTIFICATE, folder / PRIVATE_KEY):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the broker's own certificate and key are wanted; put it back")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / CERTIFICATE, folder / PRIVATE_KEY)
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    """Return how a client speaks: TLS 1.3, trusting the one certificate that the owner gave it.

    Raises:
        OSError: the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(certificate)
    return context


def fingerprint(certificate: Path) -> str:
    """Return the SHA-256 of a certificate (over its DER), as `openssl x509 -fingerprint` shows it, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))).hexdigest()
