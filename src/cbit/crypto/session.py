"""The launch session: derive, wrap and unwrap the transport keys.

Paper: sev-crypto.md §6 (derivation), §7.1 (buffer), §7.2 (owner), §7.4 (firmware).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Self

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.entropy import Entropy
from cbit.crypto.kdf import KEK, KIK, MASTER_SECRET, kdf
from cbit.crypto.key import Key
from cbit.spec.errors import BadMeasurement
from cbit.spec.policy import policy_bytes
from cbit.spec.session import Session


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """TEK (encryption) and TIK (integrity), 16 bytes each."""

    tek: Key
    tik: Key

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read TEK ‖ TIK, the content of a ``tmp_tk.bin``.

        Raises:
            ValueError: not exactly 32 bytes.
        """
        if len(data) != 32:
            raise ValueError(f"transport keys: {len(data)} bytes, must be 32 (TEK then TIK)")
        return cls(Key(data[:16]), Key(data[16:]))

    @classmethod
    def random(cls, entropy: Entropy) -> Self:
        """Draw fresh keys."""
        return cls(Key(entropy.draw(16)), Key(entropy.draw(16)))

    def material(self) -> bytes:
        """TEK ‖ TIK."""
        return self.tek.material() + self.tik.material()


@dataclass(frozen=True, slots=True)
class WrappingKeys:
    """KEK and KIK, which both ends derive from the shared secret and the session's nonce."""

    kek: Key
    kik: Key

    @classmethod
    def derive(cls, z: bytes, nonce: bytes) -> Self:
        """Derive master secret, then KEK and KIK (§6)."""
        master = kdf(16, z, MASTER_SECRET, nonce)
        return cls(Key(kdf(16, master, KEK)), Key(kdf(16, master, KIK)))


def policy_mac(tik: Key, policy: int) -> bytes:
    """HMAC-SHA256(TIK; POLICY)."""
    return hmac.digest(tik.material(), policy_bytes(policy), "sha256")


def wrap(keys: TransportKeys, *, z: bytes, policy: int, nonce: bytes, wrap_iv: bytes) -> Session:
    """Fill the session buffer (owner, or the sender of a migration)."""
    wrapping = WrappingKeys.derive(z, nonce)
    wrapped = aes_ctr(wrapping.kek, wrap_iv, keys.material())
    return Session(
        nonce=nonce,
        wrap_tk=wrapped,
        wrap_iv=wrap_iv,
        wrap_mac=hmac.digest(wrapping.kik.material(), wrapped, "sha256"),
        policy_mac=policy_mac(keys.tik, policy),
    )


def unwrap(session: Session, *, z: bytes, policy: int) -> TransportKeys:
    """Check both MACs and unwrap, in the firmware's order (§7.4 steps 2–5).

    Raises:
        BadMeasurement: WRAP_MAC or POLICY_MAC does not match.
    """
    wrapping = WrappingKeys.derive(z, session.nonce)
    if not hmac.compare_digest(
        session.wrap_mac, hmac.digest(wrapping.kik.material(), session.wrap_tk, "sha256")
    ):
        raise BadMeasurement(
            "the session's wrap MAC does not match: made for another platform key, or altered"
        )
    keys = TransportKeys.parse(aes_ctr(wrapping.kek, session.wrap_iv, session.wrap_tk))
    if not hmac.compare_digest(session.policy_mac, policy_mac(keys.tik, policy)):
        raise BadMeasurement(f"the session's policy MAC does not match policy {policy:#x}")
    return keys
