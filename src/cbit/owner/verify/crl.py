"""Revocation lists: which serial numbers an authority has taken back.

A list speaks for the authority that signed it: the ARK's about ASK and ASVK, an ASK's about leaves.  AMD's
leaves carry the serial number 0, so that no list can name a single chip.

Paper: launch-inputs.md §9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from cbit.owner.verify import der
from cbit.owner.verify.der import Der
from cbit.owner.verify.x509 import (
    Certificate,
    Extension,
    Signed,
    check_same_algorithm,
    common_name,
    critical_problems,
    extensions_of,
)
from cbit.spec.errors import BadSignature, InvalidCertificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """A revocation list, taken apart: who issued it, for when, and which serial numbers it names."""

    source: str
    outer: Signed
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    revoked: frozenset[int]
    extensions: Mapping[str, Extension]

    @classmethod
    def parse(cls, raw: bytes, *, source: str) -> Self:
        """Read exactly one DER revocation list.

        Raises:
            WireError: it is not one of version 2 in strict DER.
        """
        outer = Signed.parse(raw, what=source)
        reader = Der(outer.body, what=source).inside(der.SEQUENCE)
        if reader.integer() != 1:
            raise reader.wrong("a revocation list of another version than 2")
        check_same_algorithm(reader, outer)
        issuer = reader.whole(der.SEQUENCE)
        this_update = reader.time()
        dated = reader.next_is(der.UTC_TIME, der.GENERALIZED_TIME)
        next_update = reader.time() if dated else None
        revoked = frozenset(_revoked(reader)) if reader.next_is(der.SEQUENCE) else frozenset[int]()
        extensions = extensions_of(reader, 0)
        reader.done()
        return cls(
            source=source,
            outer=outer,
            issuer=issuer,
            this_update=this_update,
            next_update=next_update,
            revoked=revoked,
            extensions=extensions,
        )

    def date_problems(self, at: datetime) -> Iterator[str]:
        """Say whether the list is outside its dates at a moment."""
        if at < self.this_update:
            yield f"made only at {self.this_update.isoformat()}"
        if self.next_update is not None and at > self.next_update:
            yield f"out of date since {self.next_update.isoformat()}"


def crl_problems(crl: Crl, chain: Iterable[Certificate], at: datetime | None) -> Iterator[str]:
    """Judge a revocation list, and with it the certificates of a chain.

    Args:
        crl: the list.
        chain: the certificates; one of them must have issued the list.
        at: the moment to judge its dates by; None leaves them alone.
    """
    chain = tuple(chain)
    name = f"revocation list {crl.source}"
    signer = next((cert for cert in chain if cert.subject == crl.issuer), None)
    if signer is None:
        issuer = common_name(crl.issuer, what=crl.source) or "a name without CN"
        yield f"{name}: issued by {issuer}, who is not in this chain"
        return
    try:
        crl.outer.check(signer)
    except (BadSignature, InvalidCertificate) as error:
        yield f"{name}: {error}"
        return
    yield from (f"{name}: {why}" for why in critical_problems(crl.extensions))
    if at is not None:
        yield from (f"{name}: {why}" for why in crl.date_problems(at))
    for cert in chain:
        if cert.issuer == crl.issuer and cert.serial in crl.revoked:
            yield f"{cert.common_name}: revoked by {signer.common_name} (serial number {cert.serial:#x})"


def _revoked(reader: Der) -> Iterator[int]:
    for entry in reader.inside(der.SEQUENCE).each(der.SEQUENCE):
        yield entry.integer()
        entry.time()
        _entry_extensions(entry)
        entry.done()


def _entry_extensions(entry: Der) -> None:
    """Read an entry's own extensions; whatever they say about the reason, the number counts as revoked."""
    if entry.more:
        entry.take(der.SEQUENCE)
