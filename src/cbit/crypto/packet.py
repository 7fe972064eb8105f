"""Packets that carry guest data to and from the secure processor.

Paper: sev-crypto.md §10.
"""

from __future__ import annotations

import hmac

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.session import TransportKeys
from cbit.spec.errors import BadMeasurement
from cbit.spec.session import PacketHeader


def packet_mac(
    keys: TransportKeys,
    *,
    context: int,
    header: PacketHeader,
    data: bytes,
    guest_len: int,
    measure: bytes = b"",
) -> bytes:
    """HMAC-SHA256(TIK; CTX ‖ FLAGS ‖ IV ‖ GUEST_LENGTH ‖ TRANS_LENGTH ‖ DATA [‖ MEASURE])."""
    lengths = guest_len.to_bytes(4, "little") + len(data).to_bytes(4, "little")
    message = bytes([context]) + header.flags.to_bytes(4, "little") + header.iv + lengths + data + measure
    return hmac.digest(keys.tik.material(), message, "sha256")


def seal(
    keys: TransportKeys, plaintext: bytes, *, context: int, iv: bytes, measure: bytes = b""
) -> tuple[PacketHeader, bytes]:
    """Encrypt and authenticate: (header, ciphertext of the same length)."""
    data = aes_ctr(keys.tek, iv, plaintext)
    unsigned = PacketHeader(iv=iv, mac=bytes(32))
    mac = packet_mac(
        keys, context=context, header=unsigned, data=data, guest_len=len(plaintext), measure=measure
    )
    return unsigned.replace(mac=mac), data


def open_packet(
    keys: TransportKeys,
    header: PacketHeader,
    data: bytes,
    *,
    context: int,
    guest_len: int,
    measure: bytes = b"",
) -> bytes:
    """Check the MAC and decrypt.

    Raises:
        BadMeasurement: the MAC does not match.
    """
    mac = packet_mac(keys, context=context, header=header, data=data, guest_len=guest_len, measure=measure)
    if not hmac.compare_digest(mac, header.mac):
        raise BadMeasurement("the packet's MAC does not match: altered, or sealed for another launch")
    return aes_ctr(keys.tek, header.iv, data)
