"""Which key the memory controller uses: the index that travels with a request.

Paper: memory-encryption.md §1 (model consequence): the Genoa fabric view. Key id 0 is "not encrypted",
1 … N are the guests' ASIDs, and the host (SME or TSME) key has an id of its own.
"""

from __future__ import annotations

from typing import Final, NewType

KeyId = NewType("KeyId", int)

UNENCRYPTED: Final = KeyId(0)
HOST: Final = KeyId(1023)  # MODEL CHOICE for all profiles; documented for Genoa only (§1 rule 4)


def guest(asid: int) -> KeyId:
    """The key id of a guest is its ASID (1 … 1022).

    Raises:
        ValueError: ``asid`` is 0 or would collide with the host's id.
    """
    if not 0 < asid < HOST:
        raise ValueError(f"ASID {asid} selects no guest key: 1 … {HOST - 1}")
    return KeyId(asid)
