"""Modes, outcomes, and what is expected of each cell of the matrix.

Paper: attacks.md §0 (outcome codes), §3 (the matrix; all of its cells are predictions).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cbit.hypervisor.host import Protection


class Mode(StrEnum):
    """How the victim's memory is protected: the columns of the matrix."""

    NONE = "none"
    SME = "sme"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"

    @property
    def modelled(self) -> bool:
        """Whether the machine has it."""
        return self in MODELLED

    @property
    def protection(self) -> Protection:
        """The hypervisor's name for it.

        Raises:
            ValueError: the machine does not have it.
        """
        return Protection(self.value)


MODELLED: Final = (Mode.NONE, Mode.SME, Mode.SEV)


class Verdict(StrEnum):
    """What became of an attempt."""

    SUCCEEDED = "succeeds"  #: every planted secret is in the loot
    PARTLY = "partly"  #: some are
    STOPPED = "stopped"  #: none is
    NOT_APPLICABLE = "does not apply"  #: there is nothing to attack in this mode
    NOT_MODELLED = "not modelled"  #: the machine does not have this mode
    NOT_RUN = "not run"  #: what the victim is made of is not here
    BROKEN = "broken"  #: it could not be run: the note says why, and nothing is known


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the rules say about a cell; the run decides.

    Attributes:
        verdict: what should come out.
        why: the rule, bit or feature behind it.
        shown: what the run's note says if it is this that stopped it; "" if the attack ends as it should and
            what it brings back is noise.
    """

    verdict: Verdict
    why: str
    shown: str = ""

    def agrees(self, verdict: Verdict, note: str) -> bool:
        """Whether a run has come out like this: stopped, and by nothing else than what should stop it."""
        if verdict is not self.verdict:
            return False
        return verdict is not Verdict.STOPPED or (self.shown in note if self.shown else not note)


SUCCEEDS: Final = Expectation(Verdict.SUCCEEDED, "")


def succeeds(why: str) -> Expectation:
    """Expect that every secret is found, for a reason."""
    return Expectation(Verdict.SUCCEEDED, why)


def stopped_by(what: str, *, shown: str = "") -> Expectation:
    """Expect that no secret is found, and say what prevents it, and how the run shows that it is this."""
    return Expectation(Verdict.STOPPED, what, shown)


def does_not_apply(why: str) -> Expectation:
    """Say why there is nothing to attack."""
    return Expectation(Verdict.NOT_APPLICABLE, why)
