"""The emulated vendor: makes a root, a chip with its fuses, signed images and the CEK certificate.

The root is visibly not AMD's: its key ids spell SIMULATED, and no owner tool trusts it unless told to.

Paper: sev-crypto.md §3, §5 (who signs whom); DESIGN.md "Safety of an emulator".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cbit.crypto import amd_cert, ec, sev_cert
from cbit.crypto.entropy import Entropy
from cbit.machine.profiles import Profile
from cbit.machine.state_folder import FORMAT, StateError, write_state
from cbit.secure_processor.dispatch import COMMANDS
from cbit.secure_processor.fuses import Fuses, root_hash
from cbit.secure_processor.image import BiosSettings, sev_firmware, vendor_key_hash, x86_boot_image
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import Algo, Usage
from cbit.spec.policy import ApiVersion

ARK_KEY_ID: Final = b"cbit SIMULATED A"
ASK_KEY_ID: Final = b"cbit SIMULATED S"
CEK_CERT_API: Final = ApiVersion(0, 14)  #: what AMD's key server writes on all three real generations
SVN: Final = 1


@dataclass(frozen=True, slots=True)
class Root:
    """The vendor's signing keys and certificates; RSA keys come from OpenSSL's own generator."""

    ark: AmdCert
    ask: AmdCert
    ark_key: rsa.RSAPrivateKey = field(repr=False)
    ask_key: rsa.RSAPrivateKey = field(repr=False)


def make_root(bits: int) -> Root:
    """Generate ARK and ASK (a second or two for 4096 bits)."""
    ark_key = rsa.generate_private_key(65537, bits)
    ask_key = rsa.generate_private_key(65537, bits)
    ark = amd_cert.issue(
        key=ark_key.public_key(), usage=Usage.ARK, key_id=ARK_KEY_ID, signer=ark_key, signer_key_id=ARK_KEY_ID
    )
    ask = amd_cert.issue(
        key=ask_key.public_key(), usage=Usage.ASK, key_id=ASK_KEY_ID, signer=ark_key, signer_key_id=ARK_KEY_ID
    )
    return Root(ark, ask, ark_key, ask_key)


def manufacture(
    path: Path, profile: Profile, *, entropy: Entropy, root: Root, settings: BiosSettings | None = None
) -> None:
    """Make one machine in a new state folder.

    Raises:
        StateError: the folder is not empty or cannot be written.
    """
    vendor = ec.random_key(entropy)
    fuses = Fuses.burn(
        vendor_key_hash=vendor_key_hash(vendor.public_key()),
        rollback_floor=SVN,
        entropy=entropy,
        ark_hash=root_hash(root.ark.signed_bytes),
    )
    cek = sev_cert.build(
        usage=Usage.CEK, algo=Algo.ECDSA_SHA256, key=fuses.cek().public_key(), api=CEK_CERT_API
    )
    description = {"format": FORMAT, "profile": profile.name, "root": "SIMULATED: made by cbit, not AMD's"}
    write_state(
        path,
        {
            "chip/fuses.bin": bytes(fuses),
            "spi/sev_firmware.bin": sev_firmware(
                vendor, api=profile.api, build=profile.build, svn=SVN, commands=list(COMMANDS)
            ),
            "spi/x86_boot.bin": x86_boot_image(vendor, settings or BiosSettings(), svn=SVN),
            "certs/ark.cert": bytes(root.ark),
            "certs/ask.cert": bytes(root.ask),
            "certs/ask_ark.cert": bytes(root.ask) + bytes(root.ark),
            "certs/cek.cert": bytes(sev_cert.sign_by_ask(cek, signer=root.ask_key)),
            "manufacturer/ark.pem": _pem(root.ark_key),
            "manufacturer/ask.pem": _pem(root.ask_key),
            "manufacturer/vendor.pem": _pem(vendor),
            "cbit.json": json.dumps(description, indent=1).encode() + b"\n",
        },
    )


def load_vendor_key(pem: bytes) -> ec.PrivateKey:
    """Read the vendor's image-signing key, to sign another firmware or boot image.

    Raises:
        StateError: it is damaged, or no P-384 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StateError("the vendor's key is damaged: not an unencrypted PEM key") from None
    if not isinstance(key, ec.PrivateKey) or key.curve.name != "secp384r1":
        raise StateError("the vendor's key is not a P-384 key")
    return key


def _pem(key: rsa.RSAPrivateKey | ec.PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
