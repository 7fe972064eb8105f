"""The search: one cause alone, then two together, then three; until the value comes out or time is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from cbit.owner.explain import files
from cbit.owner.explain.alternatives import Alternative, File, all_of_one_field, alternatives
from cbit.owner.explain.reported import Claim, Reported
from cbit.owner.explain.trial import Digester, Trial
from cbit.owner.measure import Launch, Mode

MOST_VCPUS: Final = 512  #: tried where nothing else differs
LIKELY_VCPUS: Final = 64  #: tried together with another cause
FEW_VCPUS: Final = 8  #: tried together with thousands of values
#: What decides whether another change tells: other changes give other values whatever stands beside them.
_SWITCHES: Final = frozenset({"mode", "kernel hashes", "hypervisor"})
_TOLD_IN_DETAIL: Final = ("as given", "one input alone", "one word of the report alone")
_FIELDS: Final = frozenset({"vCPU type", "SEV features"})

Clock = Callable[[], float]


class _OutOfTime(Exception):
    """The time is over; what was tried until then stays tried."""


def _may_be_another(group: Sequence[Alternative]) -> bool:
    """Say whether a guess may have been made before in other words."""
    return len(group) < 2 or any(found.axis in _SWITCHES for found in group)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the search found.

    Attributes:
        matches: whether the value is that of the inputs as they were given.
        causes: what makes the value come out; empty if nothing did.
        excluded: what was tried in full and is not the cause, in words.
        unfinished: what the time did not suffice for, in words; empty after a hit.
        tried: number of combinations; what cannot give another value is not among them.
        not_tried: what could not be tried at all, and why.
    """

    matches: bool
    causes: tuple[str, ...]
    excluded: tuple[str, ...]
    unfinished: tuple[str, ...]
    tried: int
    not_tried: tuple[str, ...]


def explain(
    launch: Launch,
    reported: Reported,
    *,
    others: Sequence[File] = (),
    limit_s: float = 30.0,
    clock: Clock = time.monotonic,
) -> Explanation:
    """Search for what makes a reported value come out.

    Args:
        launch: what the owner says was launched; it need not be launchable.
        reported: the value.
        others: files that may have been used in place of those that were named.
        limit_s: seconds after which the search ends.
        clock: gives the time in seconds.

    Raises:
        WireError: the image's table or metadata is malformed, and the mode looks into it.
    """
    return _Search(launch, reported, others, deadline=clock() + limit_s, clock=clock).run()


class _Search:
    """One search; it counts what it tries."""

    def __init__(
        self, launch: Launch, reported: Reported, others: Sequence[File], *, deadline: float, clock: Clock
    ) -> None:
        self._start = Trial.of(launch)
        self._launch, self._reported, self._others = launch, reported, others
        self._digester = Digester()
        self._exact = reported.exact()
        self._deadline, self._clock, self._tried = deadline, clock, 0
        self._alternatives: list[Alternative] = []
        self._telling: list[Alternative] = []  # those that alone give a value which none before them gave
        self._silent: set[Alternative] = set()  # those that tell only beside another, if at all
        self._usual: tuple[Claim, ...] = ()
        self._seen: dict[int, int] = {}  # trials by their key, and for up to how many vCPUs
        self._claimed: set[int] = set()

    def run(self) -> Explanation:
        """Try one phase after the other."""
        phases: list[tuple[str, Callable[[], Iterator[tuple[str, ...]]]]] = [
            ("as given", self._as_given),
            ("one input alone", self._one_input),
            ("one word of the report alone", self._one_claim),
            ("one input and one word of the report", self._input_and_claim),
            ("two inputs together", self._two_inputs),
            ("two words of the report together", self._two_claims),
            ("two inputs and one word of the report", self._two_inputs_and_claim),
            ("three inputs together", self._three_inputs),
            ("any CPU or SEV features with another input", lambda: self._one_field(together=True)),
        ]
        if not self._measures_vcpus:
            del phases[-1]
        done: list[str] = []
        for at, (name, phase) in enumerate(phases):
            before = self._tried
            try:
                causes = next(phase(), None)
            except _OutOfTime:
                return self._result(None, done, unfinished=tuple(name for name, _ in phases[at:]))
            if causes is not None:
                return self._result(causes, done)
            if self._tried > before:
                done.append(name)
        return self._result(None, done)

    def _result(
        self, causes: tuple[str, ...] | None, done: Sequence[str], *, unfinished: tuple[str, ...] = ()
    ) -> Explanation:
        return Explanation(
            matches=causes == (),
            causes=causes or (),
            excluded=tuple(self._excluded(done)),
            unfinished=unfinished,
            tried=self._tried,
            not_tried=tuple(self._not_tried()),
        )

    def _excluded(self, done: Sequence[str]) -> Iterator[str]:
        """Say what was tried and gave another value, input by input."""
        if "one input alone" in done:
            for axis, count in Counter(found.axis for found in self._telling).items():
                yield f"{axis}: {count} alternative{'s' * (count > 1)}"
            if self._measures_vcpus:
                yield f"number of vCPUs: 1..{MOST_VCPUS}"
                yield "vCPU type: every model and stepping of families 17h, 19h and 1Ah"
                yield "SEV features: every four of the known bits"
        if "one word of the report alone" in done:
            for axis, count in Counter(claim.axis for claim in self._usual).items():
                yield f"{axis}: {count} alternative{'s' * (count > 1)}"
        yield from (name for name in done if name not in _TOLD_IN_DETAIL)

    def _not_tried(self) -> Iterator[str]:
        kernel = self._launch.kernel
        named = [("initrd", kernel.initrd), ("kernel", kernel.kernel)] if kernel else []
        for name, data in (*named, *((other.name, other.data) for other in self._others)):
            if kind := files.not_decompressed(data):
                yield f"{name} decompressed: this Python cannot unpack {kind}; name the unpacked file too"

    # -- the phases; each gives the causes of the first hit, () for no cause at all

    def _as_given(self) -> Iterator[tuple[str, ...]]:
        if self._fits(self._exact, self._digester.digest(self._start)):
            yield ()
        if not self._measures_vcpus:
            self._seen[self._digester.key(self._start)] = 1
        self._usual = tuple(self._reported.usual())

    def _one_input(self) -> Iterator[tuple[str, ...]]:
        start = self._digester.key(self._start)
        yield from self._counted((), self._start, most=MOST_VCPUS)
        for found in alternatives(self._launch, self._others, watch=self._look_at_the_clock):
            self._look_at_the_clock()  # the next one may be a large file, unpacked
            trial = found.applied(self._start)
            key = self._digester.key(trial)
            if key == start:
                self._silent.add(found)
            elif key in self._seen:
                continue  # the same file under another name, the same line by another way
            else:
                self._telling.append(found)
            self._alternatives.append(found)
            yield from self._counted((found,), trial, most=LIKELY_VCPUS)
        yield from self._one_field(together=False)

    def _one_field(self, *, together: bool) -> Iterator[tuple[str, ...]]:
        """Try thousands of values of one field of the VMSA, alone or with another change."""
        if not self._measures_vcpus:
            return
        others = [found for found in self._telling if found.axis not in _FIELDS] if together else ()
        most = FEW_VCPUS if together else self._start.count
        for field in all_of_one_field(self._start):
            trial = field.applied(self._start)
            if together and self._seen.get(self._digester.key(trial), 0) >= LIKELY_VCPUS:
                continue  # one of the alternatives, which were tried beside others already
            yield from self._counted((field,), trial, most=most)
            for other in others:
                yield from self._counted((field, other), other.applied(trial), most=self._start.count)

    def _one_claim(self) -> Iterator[tuple[str, ...]]:
        self._claimed.add(self._digester.key(self._start))
        digest = self._digester.digest(self._start)
        yield from self._claims((), digest, self._usual)

    def _input_and_claim(self) -> Iterator[tuple[str, ...]]:
        for found in self._alternatives:
            yield from self._usual_claims((found,))
        if self._measures_vcpus:
            for number, digest in self._digester.digests(self._start, most=LIKELY_VCPUS):
                if number != self._start.count:
                    yield from self._claims(self._vcpu_words(number), digest, self._usual)

    def _two_inputs(self) -> Iterator[tuple[str, ...]]:
        for pair in self._together(2):
            yield from self._counted(pair, self._applied(pair), most=LIKELY_VCPUS)

    def _two_claims(self) -> Iterator[tuple[str, ...]]:
        digest = self._digester.digest(self._start)
        yield from self._claims((), digest, self._reported.thorough())

    def _two_inputs_and_claim(self) -> Iterator[tuple[str, ...]]:
        for pair in self._together(2):
            yield from self._usual_claims(pair)

    def _three_inputs(self) -> Iterator[tuple[str, ...]]:
        for triple in self._together(3):
            yield from self._counted(triple, self._applied(triple), most=self._start.count)

    # -- their parts

    @property
    def _measures_vcpus(self) -> bool:
        return self._start.mode is not Mode.SEV

    def _together(self, size: int) -> Iterator[tuple[Alternative, ...]]:
        """Give every combination of alternatives to different inputs."""
        for group in combinations(self._alternatives, size):
            if len({found.axis for found in group}) != size:
                continue
            silent = self._silent.intersection(group)
            if silent and not any(found.axis in _SWITCHES for found in group if found not in silent):
                continue  # a smaller group in more words
            yield group

    def _applied(self, group: Iterable[Alternative]) -> Trial:
        trial = self._start
        for found in group:
            trial = found.applied(trial)
        return trial

    def _counted(
        self, group: tuple[Alternative, ...], trial: Trial, *, most: int
    ) -> Iterator[tuple[str, ...]]:
        """Try a guess with every number of vCPUs that it was not tried with; the owner's needs no words."""
        most = max(most, trial.count)
        tried = 0
        if _may_be_another(group):
            key = self._digester.key(trial)
            tried = self._seen.get(key, 0)
            if tried and (trial.mode is Mode.SEV or tried >= most):
                return
            self._seen[key] = most
        for number, digest in self._digester.digests(trial, most=most):
            if number <= tried or (not group and number == trial.count):
                continue
            if self._fits(self._exact, digest):
                yield (*map(str, group), *self._vcpu_words(number))

    def _usual_claims(self, group: tuple[Alternative, ...]) -> Iterator[tuple[str, ...]]:
        """Read the report with one usual mistake, for a guess whose value is a new one."""
        if not self._usual:
            return
        trial = self._applied(group)
        key = self._digester.key(trial) if _may_be_another(group) else None
        if key not in self._claimed:
            if key is not None:
                self._claimed.add(key)
            yield from self._claims(tuple(map(str, group)), self._digester.digest(trial), self._usual)

    def _claims(
        self, words: tuple[str, ...], digest: bytes, claims: Iterable[Claim]
    ) -> Iterator[tuple[str, ...]]:
        for claim in claims:
            if self._fits(claim, digest):
                yield (*words, f"{claim.axis}: {claim.words}")

    def _vcpu_words(self, number: int) -> tuple[str, ...]:
        if number == self._start.count:
            return ()
        return (f"number of vCPUs: {number}, not {self._start.count}",)

    def _fits(self, claim: Claim, digest: bytes) -> bool:
        self._tried += 1
        if self._tried % 256 == 0:
            self._look_at_the_clock()
        return claim.fits(digest)

    def _look_at_the_clock(self) -> None:
        if self._clock() > self._deadline:
            raise _OutOfTime
