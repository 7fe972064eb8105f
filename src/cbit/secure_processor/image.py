"""Signed images: the secure processor's own firmware and the x86 boot image.

    header (0x100) ‖ body ‖ public key (0x404) ‖ ECDSA P-384 signature over header ‖ body (0x200)

MODEL CHOICE: the container is cbit's.  Version and security patch level stand where a SEV firmware image has
them (sev-api.md §5, DOWNLOAD_FIRMWARE); the rest of AMD's format is not in the dossier.
"""

from __future__ import annotations

import hashlib
from enum import Enum, IntEnum
from typing import Final

from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec
from cbit.secure_processor.fuses import Fuses
from cbit.spec.certificate import EcdsaSignature, EcPublicKey
from cbit.spec.command import Command
from cbit.spec.errors import BadSignature, CbitError, InvalidCertificate, WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.wire import Wire, at

MAGIC: Final = b"CBFW"
_TAIL: Final = EcPublicKey.SIZE + EcdsaSignature.SIZE


class ImageKind(IntEnum):
    """What an image is for; the signature covers it, so one cannot stand in for the other."""

    SEV_FIRMWARE = 1
    X86_BOOT = 2


class ImageFault(Enum):
    """What can be wrong with an image."""

    FORM = "no image, or not all of one"
    SIGNER = "signed by somebody else"
    SIGNATURE = "altered"
    KIND = "for another purpose"
    OLD = "older than the floor"


class ImageRefused(CbitError):
    """The boot check does not accept an image; the message is the reason.

    Attributes:
        fault: which of its checks.
    """

    def __init__(self, why: str, fault: ImageFault = ImageFault.FORM) -> None:
        super().__init__(why)
        self.fault = fault


class ImageHeader(Wire, size=0x100):
    """Header of a signed image."""

    magic: bytes = at(0x00, 4, default=MAGIC)
    kind: ImageKind = at(0x04, 4)
    body_size: int = at(0x14, 4)
    svn: int = at(0x4C, 4)  # security patch level
    build: int = at(0x60, 1)
    api_minor: int = at(0x61, 1)
    api_major: int = at(0x62, 1)


class BiosSettings(Wire, size=0x10):
    """Body of the x86 boot image: what the BIOS programs before the operating system runs."""

    memory_encryption: int = at(0x00, 1, default=1)  # SYSCFG.MemEncryptionModEn
    tsme: int = at(0x01, 1, default=0)
    smm_lock: int = at(0x02, 1, default=1)  # HWCR.SmmLock, which SEV's VMRUN wants


def vendor_key_hash(key: ec.PublicKey) -> bytes:
    """SHA-384 of the 0x404-byte key: what the fuses hold."""
    return hashlib.sha384(bytes(ec.encode_public(key))).digest()


def sign_image(header: ImageHeader, body: bytes, signer: ec.PrivateKey) -> bytes:
    """Make the image that a chip with the signer's hash in its fuses runs."""
    signed = bytes(header.replace(body_size=len(body))) + body
    signature = ec.sign(signer, signed, hashes.SHA384())
    return signed + bytes(ec.encode_public(signer.public_key())) + bytes(signature)


def sev_firmware(
    signer: ec.PrivateKey, *, api: ApiVersion, build: int, svn: int, commands: list[Command]
) -> bytes:
    """Make a SEV firmware image; its body lists the commands it implements."""
    header = ImageHeader(
        kind=ImageKind.SEV_FIRMWARE,
        body_size=0,
        svn=svn,
        build=build,
        api_minor=api.minor,
        api_major=api.major,
    )
    return sign_image(header, b"".join(int(c).to_bytes(2, "little") for c in commands), signer)


def x86_boot_image(signer: ec.PrivateKey, settings: BiosSettings, *, svn: int) -> bytes:
    """Make an x86 boot image."""
    header = ImageHeader(kind=ImageKind.X86_BOOT, body_size=0, svn=svn, build=0, api_minor=0, api_major=0)
    return sign_image(header, bytes(settings), signer)


def commands_in(body: bytes) -> frozenset[int]:
    """Read the command numbers of a SEV firmware body."""
    return frozenset(int.from_bytes(body[i : i + 2], "little") for i in range(0, len(body), 2))


def check_image(
    image: bytes, *, kind: ImageKind, fuses: Fuses, committed: int = 0
) -> tuple[ImageHeader, bytes]:
    """Verify an image as the boot ROM does, and return its header and body.

    Args:
        image: the image.
        kind: what it has to be for.
        fuses: of the chip; they have the vendor's key and the version floor.
        committed: a floor above that of the fuses, if there is one.

    Raises:
        ImageRefused: truncated, signed by another key than the fused one, altered, of another kind, or older
            than the floor.
    """
    header = _header(image)
    signed_end = ImageHeader.SIZE + header.body_size
    key_end = signed_end + EcPublicKey.SIZE
    if len(image) != key_end + EcdsaSignature.SIZE:
        raise ImageRefused(
            f"{len(image)} bytes, the header announces {key_end + EcdsaSignature.SIZE}: truncated or padded"
        )
    raw_key = image[signed_end:key_end]
    # The key before its signature: a stranger's perfectly valid signature is worth nothing.
    if (found := hashlib.sha384(raw_key).digest()) != fuses.vendor_key_hash:
        raise ImageRefused(
            f"signed by key {found.hex()[:16]}…, not by the vendor's, {fuses.vendor_key_hash.hex()[:16]}…",
            ImageFault.SIGNER,
        )
    try:
        key = ec.decode_public(EcPublicKey.parse(raw_key))
        ec.verify(key, EcdsaSignature.parse(image[key_end:]), image[:signed_end], hashes.SHA384())
    except (BadSignature, InvalidCertificate, WireError) as error:
        raise ImageRefused(f"altered or unsigned: {error}", ImageFault.SIGNATURE) from None
    if header.kind != kind:
        raise ImageRefused(f"the image is a {header.kind.name}, wanted {kind.name}", ImageFault.KIND)
    if header.svn < fuses.rollback_floor:
        raise ImageRefused(
            f"security version {header.svn} is older than the fused floor {fuses.rollback_floor}",
            ImageFault.OLD,
        )
    if header.svn < committed:
        raise ImageRefused(
            f"security version {header.svn} is older than {committed}, which was committed", ImageFault.OLD
        )
    return header, image[ImageHeader.SIZE : signed_end]


def _header(image: bytes) -> ImageHeader:
    if len(image) < ImageHeader.SIZE + _TAIL:
        raise ImageRefused(f"truncated: {len(image)} bytes, an image has at least {ImageHeader.SIZE + _TAIL}")
    if image[:4] != MAGIC:
        raise ImageRefused("no image magic at its start")
    try:
        return ImageHeader.parse(image[: ImageHeader.SIZE])
    except WireError as error:
        raise ImageRefused(f"altered: {error}") from None
