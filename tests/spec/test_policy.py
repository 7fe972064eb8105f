from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import WireError
from cbit.spec.policy import ApiVersion, GuestPolicy, Policy, policy_bytes, required_api

words = st.integers(0, (1 << 32) - 1)
canonical_words = words.map(lambda word: word & ~0xFFC0)


def test_fields_of_a_policy_word() -> None:
    # origin = vectors/synthetic-e2e, case 2: policy 0x37010005 asks for ES and API 1.55
    policy = GuestPolicy.parse(0x37010005)
    assert policy == GuestPolicy(Policy.NODBG | Policy.ES, ApiVersion(1, 55))
    assert int(policy) == 0x37010005
    assert str(policy) == "0x37010005 (NODBG|ES, API >= 1.55)"
    assert policy_bytes(0x37010005) == bytes([0x05, 0x00, 1, 55])


def test_the_empty_policy_asks_for_nothing() -> None:
    assert int(GuestPolicy()) == 0
    assert str(GuestPolicy()) == "0x0 (none, API >= 0.0)"


@given(canonical_words)
def test_a_policy_word_comes_back(word: int) -> None:
    assert int(GuestPolicy.parse(word)) == word
    assert GuestPolicy.parse(word).min_api == required_api(word)
    assert int.from_bytes(policy_bytes(word), "little") == word


@pytest.mark.parametrize("bit", range(6, 16))
@given(word=canonical_words)
def test_each_reserved_bit_is_refused(bit: int, word: int) -> None:
    with pytest.raises(WireError, match=f"reserved bits {1 << bit:#x}"):
        GuestPolicy.parse(word | 1 << bit)
    assert required_api(word | 1 << bit) == required_api(word)  # the version check does not look at them


@given(st.integers(max_value=-1) | st.integers(min_value=1 << 32))
def test_what_is_no_32_bit_word_is_refused(value: int) -> None:
    with pytest.raises(WireError, match="does not fit 32 bits"):
        GuestPolicy.parse(value)


def test_an_undefined_flag_raises_by_itself() -> None:
    with pytest.raises(ValueError, match="invalid value"):
        Policy(1 << 6)


@pytest.mark.parametrize(
    ("platform", "wanted", "enough"),
    [
        # origin = sev-crypto.md §1, version test
        ((0, 24), (0, 24), True),
        ((0, 24), (0, 25), False),
        ((0, 24), (0, 17), True),
        ((1, 0), (0, 255), True),
        ((0, 255), (1, 0), False),
    ],
)
def test_versions_compare_major_first(
    platform: tuple[int, int], wanted: tuple[int, int], *, enough: bool
) -> None:
    assert (ApiVersion(*platform) >= ApiVersion(*wanted)) is enough
