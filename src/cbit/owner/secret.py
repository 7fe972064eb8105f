"""The plaintext of a LAUNCH_SECRET packet: a table of secrets by GUID, or raw bytes.

Paper: launch-inputs.md §4 (table), sev-api.md LAUNCH_SECRET (lengths).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from cbit.spec import secret_table
from cbit.spec.address import BLOCK
from cbit.spec.firmware_table import Area

LARGEST: Final = 16384  #: bytes of plaintext that every firmware takes


def table_of(entries: Sequence[tuple[UUID, bytes]]) -> bytes:
    """Lay out secrets by GUID, padded to a multiple of 16.

    Raises:
        ValueError: no entry, an empty secret, the zero GUID (which ends a table), a GUID that stands twice,
            or more than the firmware takes.
    """
    if not entries:
        raise ValueError("no secret given")
    for guid, data in entries:
        if guid.int == 0:
            raise ValueError("the zero GUID ends a secret table and cannot name an entry")
        if not data:
            raise ValueError(f"the secret for {guid} is empty")
    if len({guid for guid, _ in entries}) != len(entries):
        raise ValueError("a GUID stands twice: the guest could not tell the entries apart")
    plaintext = secret_table.build(entries)
    check_plaintext(plaintext)
    return plaintext


def raw(data: bytes) -> bytes:
    """Pad bytes with zeros to a multiple of 16, as the firmware demands.

    Raises:
        ValueError: nothing, or more than the firmware takes.
    """
    if not data:
        raise ValueError("the secret is empty")
    plaintext = data + bytes(-len(data) % BLOCK)
    check_plaintext(plaintext)
    return plaintext


def check_plaintext(plaintext: bytes, area: Area | None = None) -> None:
    """Refuse what LAUNCH_SECRET would refuse, and what the area that the image announces cannot hold.

    Raises:
        ValueError: empty, not a multiple of 16 bytes, or too large.
    """
    if not plaintext or len(plaintext) % BLOCK:
        raise ValueError(
            f"the secret has {len(plaintext)} bytes: a multiple of {BLOCK} is wanted, and not nothing"
        )
    if len(plaintext) > LARGEST:
        raise ValueError(
            f"the secret has {len(plaintext)} bytes with its table and padding, {LARGEST} at most"
        )
    if area and len(plaintext) > area.size:
        raise ValueError(f"the secret has {len(plaintext)} bytes, its area at {area.base:#x} has {area.size}")
