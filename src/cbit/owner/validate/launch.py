"""What an owner asks of a launch besides the right measurement.

API version and build are the platform's own words: the measurement binds them to the firmware that signed,
and the owner decides which of them are good enough.  The policy is the owner's; what the platform says about
it is only compared.

Paper: launch-inputs.md §5, sev-crypto.md §1 (version test), §9 (legacy form below 0.17).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.spec.errors import NotModelled
from cbit.spec.policy import ApiVersion, required_api

#: Firmware below this version measures without its own version and build (§9).
OLDEST_API: Final = ApiVersion(0, 17)


@dataclass(frozen=True, slots=True)
class Minimum:
    """The oldest firmware that the owner accepts: versions compare first, builds only within one version."""

    api: ApiVersion = OLDEST_API
    build: int = 0

    def __str__(self) -> str:
        return f"API {self.api} build {self.build}"


def validate_launch(
    *, api: ApiVersion, build: int, policy: int, reported_policy: int | None, minimum: Minimum
) -> list[str]:
    """Compare what the platform reports with what the owner wants.

    Args:
        api: the platform's API version.
        build: its build.
        policy: the owner's policy word, from the owner's own record.
        reported_policy: the policy that the platform reports, if it reports one.
        minimum: the oldest firmware that is good enough.

    Returns:
        Every violation, as a sentence; empty when all is well.

    Raises:
        NotModelled: the firmware is older than the measurement that is modelled.
    """
    if api < OLDEST_API:
        raise NotModelled(
            f"firmware API {api} measures in the legacy form; versions from {OLDEST_API} on are modelled"
        )
    violations = []
    if reported_policy is not None and reported_policy != policy:
        violations.append(
            f"the guest was launched with policy {reported_policy:#x}, the owner's record says {policy:#x}"
        )
    if api < required_api(policy):
        violations.append(
            f"firmware API {api} is older than {required_api(policy)}, which the policy demands"
        )
    if (api, build) < (minimum.api, minimum.build):
        violations.append(f"firmware API {api} build {build} is older than the owner's minimum, {minimum}")
    return violations
