"""What the platform reported, and how it may have been misread.

A measurement is a keyed hash over version, build, policy, digest and nonce; each of these can be wrong.

Paper: sev-crypto.md §9.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Final, Protocol

from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.spec.policy import ApiVersion, Policy, policy_bytes
from cbit.spec.session import CONTEXT_MEASURE, MeasureBlob

#: Versions that firmware has had or may have; the whole 65536 are tried as well, each alone.
_LIKELY_APIS: Final = tuple(ApiVersion(major, minor) for major in (0, 1, 2) for minor in range(64))


@dataclass(frozen=True, slots=True)
class Claim:
    """One way to read the report: whether a digest fits it.

    Attributes:
        axis: what was read otherwise ("build"); empty for the report as it was given.
        words: how.
        fits: the test.
    """

    axis: str
    words: str
    fits: Callable[[bytes], bool]


class Reported(Protocol):
    """A reported value."""

    def exact(self) -> Claim:
        """Read it as given."""

    def usual(self) -> Iterator[Claim]:
        """Read it with one usual mistake."""

    def thorough(self) -> Iterator[Claim]:
        """Read it with every other mistake that can be enumerated."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A launch digest: of an SNP report, or of another tool."""

    value: bytes

    def exact(self) -> Claim:
        """Compare."""
        return Claim("", "", self.value.__eq__)

    def usual(self) -> Iterator[Claim]:
        """Compare with the bytes the other way round."""
        yield Claim("digest", "it was written with its bytes in reverse order", self.value[::-1].__eq__)

    def thorough(self) -> Iterator[Claim]:
        """Nothing more."""
        return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What the firmware puts under its key, besides the digest."""

    api: ApiVersion
    build: int
    policy: bytes
    mnonce: bytes
    measure: bytes
    key: Key
    legacy: bool = False

    def fits(self, digest: bytes) -> bool:
        """Say whether the measurement is that of a digest."""
        head = b"" if self.legacy else bytes((CONTEXT_MEASURE, self.api.major, self.api.minor, self.build))
        message = head + self.policy + digest + self.mnonce
        return hmac.compare_digest(hmac.digest(self.key.material(), message, "sha256"), self.measure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measurement with its nonce, and what the owner holds against it."""

    keys: TransportKeys = field(repr=False)
    blob: MeasureBlob
    api: ApiVersion
    build: int
    policy: int
    reported_policy: int | None = None

    def _message(self) -> Message:
        return Message(
            api=self.api,
            build=self.build,
            policy=policy_bytes(self.policy),
            mnonce=self.blob.mnonce,
            measure=self.blob.measure,
            key=self.keys.tik,
        )

    def exact(self) -> Claim:
        """Check it as given."""
        return Claim("", "", self._message().fits)

    def usual(self) -> Iterator[Claim]:
        """Check it with one thing changed."""
        message = self._message()
        for build in range(256):
            if build != self.build:
                yield Claim(
                    "build",
                    f"the firmware's build is {build}, not {self.build}",
                    replace(message, build=build).fits,
                )
        for api in (ApiVersion(self.api.minor, self.api.major), *_LIKELY_APIS):
            if api != self.api:
                yield Claim("API version", self._api_words(api), replace(message, api=api).fits)
        for order in sorted(set(permutations((*self.api, self.build))) - {(*self.api, self.build)}):
            changed = replace(message, api=ApiVersion(*order[:2]), build=order[2])
            yield Claim("API version", f"{self._api_words(changed.api)}, build {order[2]}", changed.fits)
        for words, policy in self._policies():
            yield Claim("policy", words, replace(message, policy=policy).fits)
        yield from self._mixed_up(message)

    def _mixed_up(self, message: Message) -> Iterator[Claim]:
        whole = bytes(self.blob)
        nonce_first = replace(message, mnonce=whole[:16], measure=whole[16:])
        yield Claim("nonce", "it stands before the measurement", nonce_first.fits)
        yield Claim("nonce", "it is zero", replace(message, mnonce=bytes(16)).fits)
        yield Claim("nonce", "its bytes are reversed", replace(message, mnonce=self.blob.mnonce[::-1]).fits)
        yield Claim(
            "keys", "TIK and TEK are exchanged: the file is TEK then TIK", self._exchanged(message).fits
        )
        for words, policy in (("", message.policy), *self._policies()):
            legacy = replace(message, legacy=True, policy=policy)
            also = f"; policy: {words}" if words else ""
            yield Claim(
                "API version", f"the firmware is older than 0.17 and measures no version{also}", legacy.fits
            )

    def _exchanged(self, message: Message) -> Message:
        return replace(message, key=self.keys.tek)

    def _policies(self) -> Iterator[tuple[str, bytes]]:
        """Give every policy that is worth a try, but not the owner's."""
        own = policy_bytes(self.policy)
        seen = {own}
        if self.reported_policy is not None and policy_bytes(self.reported_policy) not in seen:
            seen.add(policy_bytes(self.reported_policy))
            words = f"the guest was launched with the {self.reported_policy:#x} that the platform reports"
            yield f"{words}, not with {self.policy:#x}", policy_bytes(self.reported_policy)
        if (swapped := self.policy.to_bytes(4, "big")) not in seen:
            seen.add(swapped)
            yield "its bytes are in reverse order", swapped
        high = self.policy & 0xFFFF_0000
        versions = dict.fromkeys((high, 0, self.api.major << 16 | self.api.minor << 24))
        for version, flags in product(versions, range(64)):
            policy = version | flags
            if policy_bytes(policy) not in seen:
                seen.add(policy_bytes(policy))
                es = " (the ES bit differs)" if (policy ^ self.policy) & Policy.ES else ""
                yield (
                    f"the guest was launched with {policy:#x}, not with {self.policy:#x}{es}",
                    policy_bytes(policy),
                )

    def thorough(self) -> Iterator[Claim]:
        """Check it with every version there can be, and with two things changed at once."""
        message = self._message()
        policies = tuple(self._policies())
        for major, minor in product(range(256), range(256)):
            api = ApiVersion(major, minor)
            yield Claim("API version", self._api_words(api), replace(message, api=api).fits)
        for api, build in product(_LIKELY_APIS, range(256)):
            words = f"{self._api_words(api)}; build: {build}, not {self.build}"
            yield Claim("API version", words, replace(message, api=api, build=build).fits)
        for words, policy in policies:
            for build in range(256):
                both = f"{words}; build: {build}, not {self.build}"
                yield Claim("policy", both, replace(message, policy=policy, build=build).fits)
            for api in _LIKELY_APIS:
                both = f"{words}; API version: {self._api_words(api)}"
                yield Claim("policy", both, replace(message, policy=policy, api=api).fits)

    def _api_words(self, api: ApiVersion) -> str:
        return f"the firmware's API version is {api}, not {self.api}"
