"""What can go wrong, one class a fact."""

from __future__ import annotations


class CbitError(Exception):
    """Anything cbit itself raises on purpose."""


class NotModelled(CbitError):
    """The dossier is silent here, or the machine does not have this part (yet).

    Raised loudly in place of a guess.  A thing that *is* modelled and refuses raises its own class.
    """


class WireError(CbitError, ValueError):
    """Bytes do not have the shape that a wire structure prescribes.

    Says nothing about trust: a well-formed structure with a wrong signature is a ``BadSignature``.
    """


class InvalidCertificate(CbitError):
    """A certificate is malformed, of the wrong usage, or its parent may not sign it.

    The mathematics of a signature that does not hold is ``BadSignature``.
    """


class BadSignature(CbitError):
    """A signature does not verify, or its slot is malformed."""


class BadMeasurement(CbitError):
    """A MAC does not match: session wrap, policy, launch measurement or packet.

    Never used for a malformed argument: that is ``WireError`` or ``ValueError``.
    """
