"""All wire structures of ``cbit.spec``, and how to draw values of them from their declarations."""

from __future__ import annotations

import enum
import functools
import importlib
import operator
import pkgutil
from typing import Any

from hypothesis import strategies as st

import cbit.spec
from cbit.spec.wire import Field, Wire


def _descendants(cls: type[Wire]) -> list[type[Wire]]:
    return [d for child in cls.__subclasses__() for d in (child, *_descendants(child))]


def all_wires() -> list[type[Wire]]:
    """Every structure that a module of ``cbit.spec`` declares, by name."""
    for module in pkgutil.iter_modules(cbit.spec.__path__, "cbit.spec."):
        importlib.import_module(module.name)
    found = {cls for cls in _descendants(Wire) if cls.__module__.startswith("cbit.spec.")}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


WIRES = all_wires()


def values(field: Field) -> st.SearchStrategy[Any]:
    """Values that a field can hold, by its declared kind."""
    if issubclass(field.kind, Wire):
        return structures(field.kind)
    if issubclass(field.kind, bytes):
        return st.binary(min_size=field.size, max_size=field.size)
    if issubclass(field.kind, enum.Flag):
        no_flag = field.kind(0)
        return st.sets(st.sampled_from(list(field.kind))).map(
            lambda flags: functools.reduce(operator.or_, flags, no_flag)
        )
    if issubclass(field.kind, enum.Enum):
        return st.sampled_from(list(field.kind))
    return st.integers(0, (1 << 8 * field.size) - 1)


def structures(cls: type[Wire]) -> st.SearchStrategy[Wire]:
    """Structures of one class with every field drawn."""
    return st.builds(cls, **{name: values(field) for name, field in cls.FIELDS.items()})


def required(cls: type[Wire]) -> set[str]:
    """Names of the fields without a default."""
    return cls.FIELDS.keys() - cls.DEFAULTS.keys()
