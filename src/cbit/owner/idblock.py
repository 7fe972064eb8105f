"""The ID block of an SNP guest: made, signed, checked.

    ID key ──signs──> ID block (launch digest, policy, names)        author key ──signs──> ID key

The secure processor refuses to finish a launch that is not the block's, and a report carries the digests of
both keys: whoever verifies reports needs to know one key, and no list of measurements.

Paper: launch-inputs.md §7.5; sev-crypto.md §2.3 (keys), §2.4 (signatures).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from cbit.crypto import ec
from cbit.owner.errors import Untrusted
from cbit.spec.certificate import EcdsaSignature, EcPublicKey
from cbit.spec.errors import BadSignature, InvalidCertificate, WireError
from cbit.spec.id_block import ECDSA_P384_SHA384, NO_ALGO, IdAuth, IdBlock
from cbit.spec.snp_report import SnpPolicy

_SHA384: Final = hashes.SHA384()
_NO_KEY, _NO_SIGNATURE = bytes(EcPublicKey.SIZE), bytes(EcdsaSignature.SIZE)


@dataclass(frozen=True, slots=True)
class KeyDigests:
    """What a report of the guest will carry; no author digest if there is no author key."""

    id_key: bytes
    author_key: bytes | None


def create(
    digest: bytes,
    *,
    policy: int,
    family_id: bytes = bytes(16),
    image_id: bytes = bytes(16),
    guest_svn: int = 0,
) -> IdBlock:
    """Make an ID block.

    Args:
        digest: the launch digest that the guest must have, 48 bytes.
        policy: the SNP policy that it must be launched with.
        family_id: the owner's name for a family of guests, 16 bytes.
        image_id: the owner's name for this one, 16 bytes.
        guest_svn: the owner's security version of it.

    Raises:
        WireError: a value of another size, or a policy that no guest can have.
    """
    if problems := list(SnpPolicy.of(policy).problems()):
        raise WireError("ID block: " + "; ".join(problems))
    return IdBlock(
        launch_digest=digest, family_id=family_id, image_id=image_id, guest_svn=guest_svn, policy=policy
    )


def sign(block: IdBlock, *, id_key: ec.PrivateKey, author_key: ec.PrivateKey | None = None) -> IdAuth:
    """Sign a block, and the key that signs it if there is an author key.

    The author key is optional: without one its algorithm, key and signature stay zero.

    Raises:
        ValueError: a key that is not on P-384.
    """
    public = _public_bytes(id_key, "ID key")
    signed = bytes(ec.sign(id_key, bytes(block), _SHA384))
    if author_key is None:
        return IdAuth(id_block_sig=signed, id_key=public)
    return IdAuth(
        author_key_algo=ECDSA_P384_SHA384,
        id_block_sig=signed,
        id_key=public,
        id_key_sig=bytes(ec.sign(author_key, public, _SHA384)),
        author_key=_public_bytes(author_key, "author key"),
    )


def verify(
    block: IdBlock, auth: IdAuth, *, digest: bytes | None = None, policy: int | None = None
) -> KeyDigests:
    """Check what the secure processor checks when it finishes the launch.

    Args:
        block: the ID block.
        auth: its authentication page.
        digest: the launch digest, if that is known.
        policy: the guest's policy, if that is known.

    Returns:
        The key digests that a report will carry.

    Raises:
        Untrusted: with every reason, each with the status that the firmware would give.
    """
    reasons = list(_problems(block, auth, digest=digest, policy=policy))
    if reasons:
        raise Untrusted(reasons)
    return key_digests(auth)


def key_digests(auth: IdAuth) -> KeyDigests:
    """Hash the public keys of a page as reports do; says nothing about its signatures."""
    author = hashlib.sha384(auth.author_key).digest() if has_author(auth) else None
    return KeyDigests(hashlib.sha384(auth.id_key).digest(), author)


def has_author(auth: IdAuth) -> bool:
    """Say whether a page carries an author key."""
    return auth.author_key_algo != NO_ALGO or auth.author_key != _NO_KEY or auth.id_key_sig != _NO_SIGNATURE


def _problems(block: IdBlock, auth: IdAuth, *, digest: bytes | None, policy: int | None) -> Iterator[str]:
    if block.version != 1:
        yield f"the ID block has version {block.version}, must be 1 (INVALID_PARAM)"
    for problem in SnpPolicy.of(block.policy).problems():
        yield f"{problem} (POLICY_FAILURE)"
    if digest is not None and digest != block.launch_digest:
        yield (
            f"the launch digest is {digest.hex()}, the ID block wants {block.launch_digest.hex()} "
            "(BAD_MEASUREMENT)"
        )
    if policy is not None and policy != block.policy:
        yield f"the guest's policy is {policy:#x}, the ID block wants {block.policy:#x} (POLICY_FAILURE)"
    signed = [("ID key", auth.id_key_algo, auth.id_key, auth.id_block_sig, bytes(block), "the ID block")]
    if has_author(auth):
        signed.append(
            ("author key", auth.author_key_algo, auth.author_key, auth.id_key_sig, auth.id_key, "the ID key")
        )
    for name, algo, key, signature, message, what in signed:
        if algo != ECDSA_P384_SHA384:
            yield f"the {name} has algorithm {algo}, must be {ECDSA_P384_SHA384} (INVALID_PARAM)"
            continue
        if (why := _not_signed(key, signature, message)) is not None:
            yield f"the {name} did not sign {what}: {why} (BAD_SIGNATURE)"


def _not_signed(key: bytes, signature: bytes, message: bytes) -> str | None:
    try:
        public = ec.decode_public(EcPublicKey.parse(key))
        ec.verify(public, EcdsaSignature.parse(signature), message, _SHA384)
    except (WireError, InvalidCertificate, BadSignature) as error:
        return str(error)
    return None


def _public_bytes(key: ec.PrivateKey, name: str) -> bytes:
    if key.curve.name != "secp384r1":
        raise ValueError(f"the {name} is on {key.curve.name}: the firmware takes P-384 (secp384r1) alone")
    return bytes(ec.encode_public(key.public_key()))


def read_private_key(data: bytes, *, source: str) -> ec.PrivateKey:
    """Read an unencrypted private key, PEM or DER; its bytes appear in no message.

    Raises:
        WireError: no such key, an encrypted one, or not on P-384.
    """
    load = serialization.load_pem_private_key if b"-----BEGIN" in data else serialization.load_der_private_key
    try:
        key = load(data, password=None)
    except TypeError:
        raise WireError(f"{source}: the key is encrypted; decrypt it (openssl pkey) first") from None
    except (ValueError, UnsupportedAlgorithm):
        raise WireError(
            f"{source}: no private key; one is made with `openssl ecparam -name secp384r1 -genkey -noout`"
        ) from None
    if not isinstance(key, ec.PrivateKey) or key.curve.name != "secp384r1":
        raise WireError(f"{source}: not an elliptic-curve key on P-384 (secp384r1)")
    return key
