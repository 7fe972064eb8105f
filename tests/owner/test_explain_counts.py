"""What a search counts: values that differ, each once; and what it does not wait for."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from typing import Any

import pytest

from cbit.owner.explain import Digest, Explanation, explain
from cbit.owner.explain.reported import Claim
from cbit.owner.measure import Image, Launch, Mode
from cbit.owner.vmsa import Variant, Vcpus
from owner.images import KERNEL, an_image

MILAN = Vcpus(count=2, signature=0x00A00F11)


class Enough(Exception):
    """The test has seen what it wanted to see."""


def given(mode: Mode, **changes: Any) -> Launch:
    return replace(Launch(mode=mode, image=Image(an_image()), kernel=KERNEL, vcpus=MILAN), **changes)


def found(launch: Launch, value: Digest) -> Explanation:
    return explain(launch, value, clock=lambda: 0.0)  # it stands still


def test_unpacking_ends_in_time_too() -> None:
    launch = given(Mode.SEV, kernel=replace(KERNEL, initrd=gzip.compress(bytes(1 << 28), 1)))
    looks = itertools.count()
    answer = explain(launch, Digest(bytes(32)), limit_s=100.0, clock=lambda: float(next(looks)))
    assert "one input alone" in answer.unfinished
    assert next(looks) <= 110, "it looked at the clock while it unpacked, and ended"


@pytest.mark.parametrize("mode", Mode)
def test_only_what_gives_another_value_is_counted_and_listed(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[bytes] = []

    def fits(digest: bytes) -> bool:
        values.append(digest)
        if mode is not Mode.SEV and len(values) >= 20_000:
            raise Enough  # the rest takes minutes
        return False

    monkeypatch.setattr(Digest, "exact", lambda _: Claim("", "", fits))
    monkeypatch.setattr(Digest, "usual", lambda _: iter(()))
    try:
        answer = found(given(mode), Digest(bytes(32)))
    except Enough:
        assert mode is not Mode.SEV
    else:
        assert len(values) == answer.tried
        axes = {words.partition(":")[0] for words in answer.excluded}
        assert not axes & {"vCPU type", "SEV features", "hypervisor", "VMSA variant", "number of vCPUs"}
        assert "any CPU or SEV features with another input" not in answer.excluded
        assert "one input and one word of the report" not in answer.excluded, "no word was tried"
    assert len(set(values)) == len(values), "no value is computed twice"


def test_a_cause_that_tells_only_beside_another_is_found() -> None:
    own = given(Mode.SEV)
    theirs = given(Mode.SEV_ES, vcpus=replace(MILAN, signature=0x00A10F10, variant=Variant.INIT))
    answer = found(own, Digest(theirs.digest()))
    assert {"mode", "vCPU type"} == {cause.partition(":")[0] for cause in answer.causes}
