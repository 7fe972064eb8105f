"""The owner's own records, sealed with the launch's integrity key: what was opened, what was checked.

A record is a JSON object with a MAC under a key derived from TIK.  Whoever has no TIK can neither edit a
record nor make one, so a receipt that was not checked here never unlocks a secret.

Not AMD's format: nobody but the owner reads these files.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from cbit.crypto.kdf import kdf
from cbit.crypto.key import Key
from cbit.owner.measure import Expectation, Input, Mode
from cbit.spec.errors import BadMeasurement, WireError
from cbit.spec.firmware_table import Area
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import Fields, canonical_json, read_object

SESSION_FORMAT: Final = "cbit owner session 1"
CHECKED_FORMAT: Final = "cbit owner receipt 1"

_LABEL: Final = b"cbit-owner-record"  # unlike any label of sev-crypto.md §6


def _mac(tik: Key, value: Mapping[str, Any]) -> str:
    key = kdf(32, tik.material(), _LABEL)
    return hmac.digest(key, canonical_json(value).encode(), "sha256").hex()


def _sealed(tik: Key, value: dict[str, Any]) -> str:
    return canonical_json(value | {"mac": _mac(tik, value)})


def _opened(text: str | bytes, tik: Key, *, form: str, what: str) -> dict[str, Any]:
    value = read_object(text, what=what)
    mac = value.pop("mac", None)
    if value.get("format") != form or not isinstance(mac, str):
        raise WireError(f'{what}: the format must be "{form}", with a MAC')
    try:
        expected = _mac(tik, value)
    except ValueError as error:  # NaN and its like: no record of ours
        raise WireError(f"{what}: {error}") from None
    if not hmac.compare_digest(expected.encode(), mac.encode(errors="replace")):
        raise BadMeasurement(
            f"{what}: its MAC does not match: it was edited, or belongs to other transport keys"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """For whom a session was made and under which policy.

    Attributes:
        policy: the owner's policy word.
        pdh_sha256: SHA-256 of the platform's PDH certificate.
        root: the root of its chain, in words.
        simulated: whether the root is an emulator's.
        verified: False for ``--dangerously-unverified``.
    """

    policy: int
    pdh_sha256: str
    root: str
    simulated: bool
    verified: bool

    def to_json(self, tik: Key) -> str:
        """Write the record with its MAC."""
        return _sealed(tik, {"format": SESSION_FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes, tik: Key) -> Self:
        """Read a record and check its MAC.

        Raises:
            WireError: not such a record.
            BadMeasurement: edited, or of another session.
        """
        what = "session record"
        fields = Fields(
            _opened(text, tik, form=SESSION_FORMAT, what=what), *("format", *cls.__slots__), what=what
        )
        return cls(
            policy=fields.number("policy", below=1 << 32),
            pdh_sha256=fields.hex("pdh_sha256", size=32).hex(),
            root=fields.text("root"),
            simulated=fields.flag("simulated"),
            verified=fields.flag("verified"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReceipt:
    """A launch whose measurement the owner checked, with everything that is needed to check it again.

    Attributes:
        expectation: digest, inputs and secret area, from the owner's own files.
        measure: the measurement.
        mnonce: the firmware's nonce.
        api: the firmware's API version.
        build: the firmware's build.
        policy: the owner's policy word.
        platform: the root of the platform's chain in words; empty if no record of the session was there.
        simulated: whether that root is an emulator's.
        verified: whether the chain was verified when the session was opened; None if there is no record of
            it.
    """

    expectation: Expectation
    measure: bytes
    mnonce: bytes
    api: ApiVersion
    build: int
    policy: int
    platform: str
    simulated: bool
    verified: bool | None

    def to_json(self, tik: Key) -> str:
        """Write the receipt with its MAC."""
        expectation = self.expectation
        return _sealed(
            tik,
            {
                "format": CHECKED_FORMAT,
                "verdict": "trusted",
                "mode": expectation.mode.value,
                "digest": expectation.digest.hex(),
                "inputs": [asdict(item) for item in expectation.inputs],
                "secret_area": asdict(expectation.secret_area),
                "measure": self.measure.hex(),
                "nonce": self.mnonce.hex(),
                "api": {"major": self.api.major, "minor": self.api.minor},
                "build": self.build,
                "policy": self.policy,
                "platform": self.platform,
                "simulated": self.simulated,
                "verified": _VERIFIED_WORDS[self.verified],
            },
        )

    @classmethod
    def from_json(cls, text: str | bytes, tik: Key) -> Self:
        """Read a receipt and check its MAC; ``Measuring.check_again`` checks its measurement.

        Raises:
            WireError: not such a receipt.
            BadMeasurement: edited, or of another launch.
        """
        what = "checked receipt"
        value = _opened(text, tik, form=CHECKED_FORMAT, what=what)
        fields = Fields(value, *_CHECKED_KEYS, what=what)
        if fields.text("verdict") != "trusted" or fields.text("mode") not in set(Mode):
            raise WireError(f"{what}: verdict or mode is unknown")
        words = {word: verified for verified, word in _VERIFIED_WORDS.items()}
        if fields.text("verified") not in words:
            raise WireError(f"{what}: verified must be one of {', '.join(words)}")
        area = Fields(value["secret_area"], "base", "size", what=f"{what}: secret_area")
        return cls(
            expectation=Expectation(
                Mode(fields.text("mode")),
                fields.hex("digest", size=32),
                tuple(_input(item, what=what) for item in fields.items("inputs")),
                Area(area.number("base", below=1 << 32), area.number("size", below=1 << 32)),
            ),
            measure=fields.hex("measure", size=32),
            mnonce=fields.hex("nonce", size=16),
            api=fields.api("api"),
            build=fields.number("build", below=256),
            policy=fields.number("policy", below=1 << 32),
            platform=fields.text("platform"),
            simulated=fields.flag("simulated"),
            verified=words[fields.text("verified")],
        )


#: Said of keys beside which no record of their session was found.
NOT_RECORDED: Final = "platform not recorded: nobody knows whom these keys were made for"

_VERIFIED_WORDS: Final[Mapping[bool | None, str]] = {
    True: "chain verified",
    False: "dangerously unverified",
    None: "not recorded",
}
_CHECKED_KEYS: Final = (
    *("format", "verdict", "mode", "digest", "inputs", "secret_area", "measure", "nonce", "api", "build"),
    *("policy", "platform", "simulated", "verified"),
)


def _input(value: object, *, what: str) -> Input:
    fields = Fields(value, "what", "name", "size", "sha256", what=f"{what}: inputs")
    return Input(
        fields.text("what"),
        fields.text("name"),
        fields.number("size", below=1 << 63),
        fields.hex("sha256", size=32).hex(),
    )
