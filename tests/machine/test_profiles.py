"""The numbers of the four processors, and what else a profile decides."""

from __future__ import annotations

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode, Tweak
from cbit.machine.profiles import DEFAULT, PROFILES, UnknownProfile, profile


@pytest.mark.parametrize(
    ("name", "numbers", "firmware", "modes"),
    [
        ("naples", (47, 5, 15, 5), (0, 17, 48), ("xe", "xex")),
        ("rome", (51, 5, 509, 100), (0, 24, 15), ("xex",)),
        ("milan", (51, 5, 509, 100), (1, 51, 3), ("xex",)),
        ("genoa", (51, 6, 1006, 100), (1, 55, 25), ("xts",)),
    ],
)
def test_a_profile_has_its_processors_numbers(
    name: str, numbers: tuple[int, ...], firmware: tuple[int, int, int], modes: tuple[str, ...]
) -> None:
    found = profile(name)
    part = found.features
    assert numbers == (part.c_bit, part.address_reduction, part.guests, part.min_sev_no_es_asid)
    assert firmware == (found.api.major, found.api.minor, found.build)
    assert modes == found.modes


def test_milan_is_what_nobody_has_to_ask_for() -> None:
    assert DEFAULT == "milan"
    assert list(PROFILES) == ["naples", "rome", "milan", "genoa"]


def test_an_unknown_profile_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownProfile, match=r"no profile 'zen9': choose from naples, rome, milan, genoa"):
        profile("zen9")


def test_only_naples_has_the_published_constants() -> None:
    entropy = SeededEntropy("boots")
    naples = profile("naples")
    assert naples.tweak(Mode.XE, entropy) == naples.tweak(Mode.XE, entropy)
    zen1 = Tweak.zen1()
    for name in ("rome", "milan"):
        first, second = (profile(name).tweak(Mode.XEX, entropy) for _ in range(2))
        assert first is not None
        assert second is not None
        assert len({bytes(t.constants[4]) for t in (zen1, first, second)}) == 3


def test_xts_needs_no_constants() -> None:
    assert profile("genoa").tweak(Mode.XTS, SeededEntropy(1)) is None
