"""AMD's root keys, pinned.

A pin is the SHA-256 over the big-endian RSA modulus: it is the same for the AMD format and for X.509, and the
exponent is 65537 in every root.  A key id proves nothing (anybody can write one), a pin does.

Paper: sev-crypto.md §3; the pins are those of the published roots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cbit.crypto import amd_cert
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import Usage
from cbit.spec.errors import WireError


@dataclass(frozen=True, slots=True)
class Root:
    """One of AMD's roots: the product it stands over, its key id as stored, and its pin."""

    product: str
    key_id: str
    pin: str


# fmt: off
AMD_ROOTS: Final = (
    Root("Naples", "1bb987c359494606b174945601c9ea5b", "5f452a21949dbb87cf60a8d02278b74a63ba40d4420a47ac34463c43de6a8379"),  # noqa: E501, a pin is not broken
    Root("Rome",   "e6002122fb58419399d15fee7b131351", "f16657b74dd870045b040ea20583f098018e5b2f98ecff99c9f6fefdc5ecb2ca"),  # noqa: E501, as above
    Root("Milan",  "94c38e4177d0479292a7ae671d083fb6", "857596e66a0dc486d69f4459554c56f96c3f83f3365984650d1aab5f7b215b2a"),  # noqa: E501, as above
    Root("Genoa",  "9f9d4a8fe761456599f6946c4c010f3a", "33f0787614fd429b048d621d962950df6147063ce5c21410c6b7fa1431a6cea2"),  # noqa: E501, as above
    Root("Turin",  "d05c3a8bde484904b49552422ceb3942", "10d484faa35104292e927402d98ea13b3244b3a8fa4ccbe41fcf5573dd9efa19"),  # noqa: E501, as above
)
# fmt: on


def amd_root(ark: AmdCert) -> Root | None:
    """Return the AMD root whose *key* this certificate holds, or None."""
    pin = amd_cert.pin(ark)
    return next((root for root in AMD_ROOTS if root.pin == pin), None)


def claimed_root(ark: AmdCert) -> Root | None:
    """Return the AMD root whose key *id* this certificate carries: a claim, not a proof."""
    key_id = ark.header.key_id.hex()
    return next((root for root in AMD_ROOTS if root.key_id == key_id), None)


def is_trusted(ark: AmdCert, trust: Iterable[AmdCert]) -> bool:
    """Say whether the owner named this very root key."""
    pin = amd_cert.pin(ark)
    return any(pin == amd_cert.pin(root) and ark.pubexp == root.pubexp for root in trust)


def read_root(data: bytes, *, source: str) -> AmdCert:
    """Read the file of a root that the owner trusts by name.

    Raises:
        WireError: it is not exactly one ARK.
    """
    try:
        root = AmdCert.parse(data)
    except WireError as error:
        raise WireError(
            f"{source}: a trusted root is one ARK certificate in AMD's format ({error})"
        ) from None
    if root.header.key_usage is not Usage.ARK:
        raise WireError(f"{source}: a trusted root is an ARK, this is an {root.header.key_usage.name}")
    return root
