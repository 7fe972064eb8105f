"""The launch receipt: what the platform's side sends the guest owner after LAUNCH_MEASURE, as one JSON file.

    {"api": {"major": 1, "minor": 51}, "build": 3, "chain": "<base64>", "format": "cbit launch receipt 1",
     "measure": "<64 hex digits>", "nonce": "<32 hex digits>", "policy": 1}

Nothing in it is trusted for standing in it: the owner recomputes MEASURE with its own key, digest and policy.

Paper: sev-crypto.md §9 (what the measurement covers), §4 (the blob of certificates).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from cbit.spec.certificate import CERT_SIZE
from cbit.spec.errors import WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.session import MeasureBlob

FORMAT: Final = "cbit launch receipt 1"

PLATFORM_CHAIN_SIZE: Final = 4 * CERT_SIZE  #: PDH, PEK, OCA, CEK
_AMD_CERTS: Final = (0, 0x680, 0xC80)  # none, ASK ‖ ARK of 2048 bits, of 4096 bits (sev-crypto.md §4)


def canonical_json(value: Mapping[str, Any]) -> str:
    """Write an object the one way: sorted keys, no spare space, ASCII, a final newline."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False) + "\n"


def read_object(text: str | bytes, *, what: str) -> dict[str, Any]:
    """Read one JSON object, refusing a key that stands twice.

    Raises:
        WireError: the text is no JSON object.
    """
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, what))
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise WireError(f"{what}: not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError(f"{what}: a key stands twice")
    return found


class Fields:
    """Take typed fields out of a JSON object; every key must be taken exactly as declared."""

    def __init__(self, value: object, *keys: str, what: str) -> None:
        if not isinstance(value, dict) or set(value) != set(keys):
            raise WireError(f"{what}: must hold exactly the fields {', '.join(sorted(keys))}")
        self._value, self._what = value, what

    def number(self, key: str, *, below: int) -> int:
        """Return an integer in [0, below)."""
        number = self._value[key]
        if type(number) is not int or not 0 <= number < below:
            raise WireError(f"{self._what}: {key} must be a number in 0..{below - 1:#x}")
        return number

    def flag(self, key: str) -> bool:
        """Return a true or false."""
        value = self._value[key]
        if not isinstance(value, bool):
            raise WireError(f"{self._what}: {key} must be true or false")
        return value

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._value[key]
        if not isinstance(value, str):
            raise WireError(f"{self._what}: {key} must be a string")
        return value

    def items(self, key: str) -> list[Any]:
        """Return a list."""
        value = self._value[key]
        if not isinstance(value, list):
            raise WireError(f"{self._what}: {key} must be a list")
        return value

    def hex(self, key: str, *, size: int) -> bytes:
        """Return exactly ``size`` bytes written in lower-case hex."""
        text = self.text(key)
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) != size or raw.hex() != text:
            raise WireError(f"{self._what}: {key} must be {2 * size} lower-case hex digits")
        return raw

    def object(self, key: str) -> dict[str, Any]:
        """Return an object with any members."""
        value = self._value[key]
        if not isinstance(value, dict):
            raise WireError(f"{self._what}: {key} must be an object")
        return value

    def base64(self, key: str) -> bytes:
        """Return bytes written in base64, without line breaks."""
        text = self.text(key)
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if base64.b64encode(raw).decode() != text:
            raise WireError(f"{self._what}: {key} is not base64")
        return raw

    def api(self, key: str) -> ApiVersion:
        """Return an API version."""
        inner = Fields(self._value[key], "major", "minor", what=f"{self._what}: {key}")
        return ApiVersion(inner.number("major", below=256), inner.number("minor", below=256))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchReceipt:
    """What the platform says about one launch.

    Attributes:
        measure: the measurement, 32 bytes.
        mnonce: the firmware's nonce that it covers, 16 bytes.
        api: API version of the firmware, as PLATFORM_STATUS reports it.
        build: build number of the firmware.
        policy: the policy that the guest was launched with, as the platform says.
        chain: PDH ‖ PEK ‖ OCA ‖ CEK, optionally followed by ASK ‖ ARK.

    Raises:
        WireError: a field has a size or range that its place in the paper does not have.
    """

    measure: bytes
    mnonce: bytes
    api: ApiVersion
    build: int
    policy: int
    chain: bytes

    def __post_init__(self) -> None:
        if len(self.measure) != 32 or len(self.mnonce) != 16:
            raise WireError(
                f"launch receipt: measure and nonce have {len(self.measure)} and {len(self.mnonce)} bytes, "
                "must have 32 and 16"
            )
        if len(self.chain) - PLATFORM_CHAIN_SIZE not in _AMD_CERTS:
            raise WireError(
                f"launch receipt: a chain of {len(self.chain)} bytes is neither PDH, PEK, OCA, CEK "
                "nor these and ASK, ARK"
            )
        if max(*self.api, self.build) > 0xFF or min(*self.api, self.build, self.policy) < 0:
            raise WireError("launch receipt: API version and build have one byte each")
        if self.policy >= 1 << 32:
            raise WireError(f"launch receipt: policy {self.policy:#x} does not fit 32 bits")

    @property
    def blob(self) -> MeasureBlob:
        """MEASURE ‖ MNONCE, as LAUNCH_MEASURE writes it."""
        return MeasureBlob(measure=self.measure, mnonce=self.mnonce)

    def to_json(self) -> str:
        """Write the receipt; the same receipt is always the same text."""
        return canonical_json(
            {
                "format": FORMAT,
                "measure": self.measure.hex(),
                "nonce": self.mnonce.hex(),
                "api": {"major": self.api.major, "minor": self.api.minor},
                "build": self.build,
                "policy": self.policy,
                "chain": base64.b64encode(self.chain).decode(),
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a receipt.

        Raises:
            WireError: not a receipt of this format, or a field that is missing, unknown or out of range.
        """
        value = read_object(text, what="launch receipt")
        if value.get("format") != FORMAT:
            raise WireError(f'launch receipt: the format must be "{FORMAT}"')
        fields = Fields(
            value, "format", "measure", "nonce", "api", "build", "policy", "chain", what="launch receipt"
        )
        return cls(
            measure=fields.hex("measure", size=32),
            mnonce=fields.hex("nonce", size=16),
            api=fields.api("api"),
            build=fields.number("build", below=256),
            policy=fields.number("policy", below=1 << 32),
            chain=fields.base64("chain"),
        )
