"""The emulated vendor: makes a root, a chip with its fuses, signed images and the CEK certificate.

The root is visibly not AMD's: its key ids spell SIMULATED, and no owner tool trusts it unless told to.  On
request its ARK carries the key *id* of AMD's; the key is ours all the same, and its mark in cbit.json stays.

Paper: sev-crypto.md §3, §5 (who signs whom); DESIGN.md "Safety of an emulator".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
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
from cbit.spec.command import SINCE_API_1, Command
from cbit.spec.policy import ApiVersion

ARK_KEY_ID: Final = b"cbit SIMULATED A"
ASK_KEY_ID: Final = b"cbit SIMULATED S"
CEK_CERT_API: Final = ApiVersion(0, 14)  #: what AMD's key server writes on all three real generations
SVN: Final = 1

#: What some clients insist on: the key ids of AMD's own roots.  A key id proves nothing, and these are put on
#: keys of ours only when they are asked for (``Root.borrowed_id``).
AMD_KEY_IDS: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        "naples": bytes.fromhex("1bb987c359494606b174945601c9ea5b"),
        "rome": bytes.fromhex("e6002122fb58419399d15fee7b131351"),
        "milan": bytes.fromhex("94c38e4177d0479292a7ae671d083fb6"),
        "genoa": bytes.fromhex("9f9d4a8fe761456599f6946c4c010f3a"),
    }
)
_MARK: Final = "SIMULATED: made by cbit, not AMD's"


@dataclass(frozen=True, slots=True)
class Root:
    """The vendor's signing keys and certificates; RSA keys come from OpenSSL's own generator."""

    ark: AmdCert
    ask: AmdCert
    ark_key: rsa.RSAPrivateKey = field(repr=False)
    ask_key: rsa.RSAPrivateKey = field(repr=False)

    @property
    def borrowed_id(self) -> bool:
        """Whether the ARK carries a key id that is not ours."""
        return self.ark.header.key_id != ARK_KEY_ID


def make_root(bits: int, *, ark_key_id: bytes = ARK_KEY_ID) -> Root:
    """Generate ARK and ASK (a second or two for 4096 bits).

    Args:
        bits: of the RSA keys.
        ark_key_id: another key id than the one that spells SIMULATED, for clients that insist on one.
    """
    ark_key = rsa.generate_private_key(65537, bits)
    ask_key = rsa.generate_private_key(65537, bits)
    ark = amd_cert.issue(
        key=ark_key.public_key(), usage=Usage.ARK, key_id=ark_key_id, signer=ark_key, signer_key_id=ark_key_id
    )
    ask = amd_cert.issue(
        key=ask_key.public_key(), usage=Usage.ASK, key_id=ASK_KEY_ID, signer=ark_key, signer_key_id=ark_key_id
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
    mark = f"{_MARK}; its key id is that of AMD's root" if root.borrowed_id else _MARK
    description = {
        "format": FORMAT,
        "profile": profile.name,
        "root": mark,
        "chip_id": fuses.chip_id().hex(),  # public: what its certificate is filed under at the vendor
    }
    write_state(
        path,
        {
            "chip/fuses.bin": bytes(fuses),
            "spi/sev_firmware.bin": sev_firmware(
                vendor, api=profile.api, build=profile.build, svn=SVN, commands=_commands(profile)
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


def _commands(profile: Profile) -> list[Command]:
    """What the profile's firmware implements: the first two generations lack the later commands."""
    late: frozenset[Command] = frozenset() if profile.api.major else SINCE_API_1
    return [command for command in COMMANDS if command not in late]


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
