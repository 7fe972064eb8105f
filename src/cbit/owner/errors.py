"""What the owner refuses.

A file that cannot be used at all is a ``WireError`` or ``Missing``; evidence that could be read and does not
hold is ``Untrusted``, or ``BadMeasurement`` when it is the measurement that does not match.
"""

from __future__ import annotations

from collections.abc import Iterable

from cbit.spec.errors import CbitError


class Untrusted(CbitError):
    """The evidence was read and checked, and it does not hold.

    Attributes:
        reasons: every reason found, not the first one only.
    """

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


class Missing(CbitError):
    """Something that the owner must have before it can judge is not there.

    Says nothing about what is there: that is ``Untrusted``.
    """


class Unmeasurable(CbitError, ValueError):
    """No number that is computed from these inputs can ever match a launch."""
