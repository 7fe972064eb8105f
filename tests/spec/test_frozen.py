"""Frozen values behave as frozen dataclasses do, and `dataclasses` takes them."""

from __future__ import annotations

import dataclasses
import pickle
from functools import cached_property
from typing import Any

import pytest

from cbit.spec.frozen import Frozen


class Range(Frozen):
    """A value with a default."""

    base: int
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")

    @cached_property
    def end(self) -> int:
        """Computed once and kept."""
        return self.base + self.size


class Named(Range, kw_only=True):
    """One more field, and none without its name."""

    name: str = "?"


@dataclasses.dataclass(frozen=True)
class Twin:
    """What `Range` would be as a dataclass."""

    base: int
    size: int = 1


def test_fields_are_given_by_place_or_name_and_have_defaults() -> None:
    assert (3, 1) == (Range(3).base, Range(3).size)
    assert Range(3, 4) == Range(3, size=4) == Range(size=4, base=3)
    named = Named(base=1, name="x")
    assert (1, 1, "x") == (named.base, named.size, named.name)


@pytest.mark.parametrize(
    ("cls", "values", "named"),
    [
        (Range, (), {}),
        (Range, (1, 2, 3), {}),
        (Range, (1,), {"base": 1}),
        (Range, (1,), {"length": 1}),
        (Range, (), {"size": 1}),
        (Named, (1,), {}),
    ],
)
def test_what_is_not_declared_is_refused(
    cls: type[Frozen], values: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match=cls.__name__):
        cls(*values, **named)


def test_values_that_do_not_go_together_are_refused_wherever_they_are_given() -> None:
    with pytest.raises(ValueError, match="negative"):
        Range(0, -1)
    with pytest.raises(ValueError, match="negative"):
        Range(0).replace(size=-1)
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(Range(0), size=-1)


def test_a_value_is_frozen() -> None:
    value = Range(1)
    for name in ("base", "end", "other"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(value, name, 2)
        with pytest.raises(AttributeError, match="frozen"):
            delattr(value, name)
    assert (2, 1) == (value.end, value.base)


def test_values_are_equal_if_class_and_fields_are() -> None:
    assert Range(1, 2) == Range(1, 2)
    assert hash(Range(1, 2)) == hash(Range(1, 2))
    others: list[Any] = [Range(1, 3), Range(2, 2), Named(base=1, size=2), Twin(1, 2), (1, 2), None]
    assert all(Range(1, 2) != other for other in others)
    known = Range(1, 2)
    assert 3 == known.end  # what is kept beside the fields is no part of the value
    assert known == Range(1, 2)


def test_a_value_prints_itself_as_a_dataclass_does() -> None:
    assert repr(Twin(1, 2)).replace("Twin", "Range") == repr(Range(1, 2))


def test_dataclasses_take_a_value() -> None:
    assert dataclasses.asdict(Twin(1, 2)) == dataclasses.asdict(Range(1, 2)) == {"base": 1, "size": 2}
    assert Range(1, 5) == dataclasses.replace(Range(1, 2), size=5) == Range(1, 2).replace(size=5)
    assert ["base", "size", "name"] == [field.name for field in dataclasses.fields(Named(base=1))]
    with pytest.raises(TypeError):
        dataclasses.replace(Range(1), length=2)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(TypeError):
        Range(1).replace(length=2)


def test_a_value_is_pickled() -> None:
    assert Range(1, 2) == pickle.loads(pickle.dumps(Range(1, 2)))
