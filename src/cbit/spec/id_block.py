"""The ID block of an SNP guest, and the page that authenticates it.

Paper: launch-inputs.md §7.5.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.certificate import EcdsaSignature, EcPublicKey
from cbit.spec.wire import Wire, at

NO_ALGO: Final = 0
ECDSA_P384_SHA384: Final = 1


class IdBlock(Wire, size=0x60):
    """What the owner expects of a launch; the ID key signs it.

    Paper: launch-inputs.md §7.5.
    """

    launch_digest: bytes = at(0x00, 48)
    family_id: bytes = at(0x30, 16, default=bytes(16))
    image_id: bytes = at(0x40, 16, default=bytes(16))
    version: int = at(0x50, 4, default=1)
    guest_svn: int = at(0x54, 4, default=0)
    policy: int = at(0x58, 8)


class IdAuth(Wire, size=0x1000):
    """The keys and signatures over an ID block.

    Paper: launch-inputs.md §7.5.
    """

    id_key_algo: int = at(0x000, 4, default=ECDSA_P384_SHA384)
    author_key_algo: int = at(0x004, 4, default=NO_ALGO)
    id_block_sig: bytes = at(0x040, EcdsaSignature.SIZE)
    id_key: bytes = at(0x240, EcPublicKey.SIZE)
    id_key_sig: bytes = at(0x680, EcdsaSignature.SIZE, default=bytes(EcdsaSignature.SIZE))
    author_key: bytes = at(0x880, EcPublicKey.SIZE, default=bytes(EcPublicKey.SIZE))
