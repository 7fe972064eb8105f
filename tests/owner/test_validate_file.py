"""A file of wishes that cannot be meant is refused, with everything that is wrong with it."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.owner.validate.wishes import (
    WISHES,
    BadWishes,
    Wishes,
    at_least,
    nearest,
    one_of,
    read_wishes,
)


def wishes(text: str) -> Wishes:
    return read_wishes(text.encode(), source="wishes.toml")


def bad(text: str) -> tuple[str, ...]:
    with pytest.raises(BadWishes) as caught:
        wishes(text)
    return caught.value.reasons


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("mesurement = 'x'", "measurement"),
        ("hostdata = 'x'", "host_data"),
        ("[policy]\ndebgu = true", "policy.debug"),
        ("debug = true", "policy.debug"),
        ("[polcy]\nsmt = true", "policy.smt"),
        ("[minimum.reported_tcb]\nbootloader = 1", "minimum.reported_tcb.boot_loader"),
        ("[minimum.report_tcb]\nsnp = 1", "minimum.reported_tcb.snp"),
        ("[minimum]\napis = '1.0'", "minimum.api"),
        ("[mimimum]", "minimum.api"),
        ("'policy.debug' = true", "policy.debug"),
        ("measurement.value = 'x'", "measurement"),
        ("chip-id = 'x'", "chip_id"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(text: str, known: str) -> None:
    (reason,) = bad(text)
    assert reason.startswith("wishes.toml: unknown key ")
    if text == "[mimimum]":  # of a table without content no key can be nearest: any of the right one will do
        assert "the nearest known one is minimum." in reason
    else:
        assert reason.endswith(f"the nearest known one is {known}")


@given(st.text(max_size=30))
def test_some_known_key_is_nearest_to_anything(name: str) -> None:
    assert nearest(name) in WISHES


def test_each_known_key_is_nearest_to_itself_with_one_letter_wrong() -> None:
    for name in WISHES:
        table, _, last = name.rpartition(".")
        wrong = f"{table}.{last[:-1]}x".lstrip(".")
        alike = difflib.SequenceMatcher(None, nearest(wrong), wrong).ratio()
        assert alike >= difflib.SequenceMatcher(None, name, wrong).ratio(), (wrong, nearest(wrong))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("measurement = 'abc'", "measurement must be 96 or 64 hex digits in quotes"),
        ("measurement = 5", "measurement must be"),
        ("measurement = []", "measurement must not be an empty list"),
        (f"measurement = ['{'00' * 48}', 'x']", "measurement must be"),
        ("chip_id = ''", "chip_id must be 16 or 128 hex digits"),
        ("vmpl = 4", 'vmpl must be 0 to 3, or "host"'),
        ("vmpl = true", "vmpl must be 0 to 3"),
        ("vmpl = 'Host'", "vmpl must be 0 to 3"),
        ("policy.debug = 0", "policy.debug must be true or false"),
        ("policy.debug = 'no'", "policy.debug must be true or false"),
        ("policy.debug = [false]", "policy.debug must be true or false"),
        ("minimum.api = 1.51", 'minimum.api must be a version in quotes, such as "1.51"'),
        ("minimum.api = '1'", "minimum.api must be a version"),
        ("minimum.api = '1.2.3'", "minimum.api must be a version"),
        ("minimum.api = '1.256'", "minimum.api must be a version of two numbers below 256"),
        ("minimum.api = '1.-1'", "minimum.api must be a version"),
        ("minimum.build = 256", "minimum.build must be a number in 0..0xff"),
        ("minimum.build = -1", "minimum.build must be a number in 0..0xff"),
        ("minimum.build = true", "minimum.build must be a number"),
        ("minimum.build = 1.0", "minimum.build must be a number"),
        ("minimum.reported_tcb.snp = 300", "must be a number in 0..0xff"),
        ("product = 'Rome'", "product must be one of Milan, Genoa, Turin"),
        ("signing_key = 'VCEK'", "signing_key must be one of vcek, vlek"),
        ("evidence = 'report'", "evidence must be one of snp-report, sev-report, launch"),
        ("version = 2026-01-01", "version must be a number"),
        ("", "wishes for nothing"),
        ("[policy]", "wishes for nothing"),
        ("a = ", "not TOML"),
        ("vmpl = 0\nvmpl = 1", "not TOML"),
        ("[policy]\nsmt = true\n[policy]\ndebug = true", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, reason: str) -> None:
    assert reason in " | ".join(bad(text))


def test_everything_that_is_wrong_with_a_file_is_said_at_once() -> None:
    found = bad("vmpl = 9\nfoo = 1\n[policy]\ndebug = 1\nbar = 2")
    assert 4 == len(found)
    assert 4 == str(BadWishes(list(found))).count("wishes.toml: ")


def test_a_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(BadWishes, match="not TOML"):
        read_wishes(b"\xff\xfe", source="wishes.toml")


@given(st.text(max_size=200))
def test_any_text_is_wishes_or_a_typed_error(text: str) -> None:
    try:
        found = read_wishes(text.encode("utf-8", "replace"), source="any")
    except BadWishes:
        return
    assert found.wanted


_VALUES = st.recursive(
    st.booleans() | st.integers(-5, 300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(sorted(WISHES)), _VALUES)
def test_any_value_is_read_or_refused_in_words(name: str, value: object) -> None:
    why = "must "
    try:
        WISHES[name].read(value)
    except ValueError as error:
        why = str(error)
    assert why.startswith("must ")


def test_the_forms_of_wishes() -> None:
    number = one_of(lambda value: value)
    assert ((1,), (1, 2)) == (number.read(1), number.read([1, 2]))
    assert number.holds((1, 2), 2)
    assert not number.holds((1, 2), 3)
    assert at_least(lambda value: value).holds(3, 3)
    assert not at_least(lambda value: value).holds(3, 2)
    assert () == wishes("vmpl = 0").digests
