"""Signatures that were good once are good again: a walk over every bit asks thousands of times.

What is remembered is a whole question, certificate and signer, to the last byte that a signature looks at; a
question with one bit changed is another, and is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cbit.crypto import amd_cert, sev_cert
from cbit.owner.verify.x509 import Certificate, Signed


def remember_good_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks of certificates' signatures remember, for one test."""
    for module in (amd_cert, sev_cert):
        monkeypatch.setattr(module, "verify", _remembering(module.verify))
    checked, good = Signed.check, set[Any]()

    def check(self: Signed, signer: Certificate) -> None:
        if (question := (self, signer.spki)) not in good:
            checked(self, signer)
            good.add(question)

    monkeypatch.setattr(Signed, "check", check)


def _remembering(verify: Callable[..., None]) -> Callable[..., None]:
    good = set[Any]()

    def wrapped(*question: Any) -> None:
        if question not in good:
            verify(*question)
            good.add(question)

    return wrapped
