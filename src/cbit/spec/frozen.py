"""Frozen values that load at once: what a frozen dataclass gives, from methods that stand here once.

    class Area(Frozen):
        base: int
        size: int = 0

``dataclasses`` writes and compiles its methods anew for each class, and loads half of the standard library
for it: a third of the time in which `cbit owner measure` starts.  What that command loads is made of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import Field


@dataclass_transform(frozen_default=True)
class Frozen:
    """Base of values that have fields and nothing else: frozen, equal if their class and fields are.

    ``dataclasses.replace``, ``asdict`` and ``fields`` take one as they take a dataclass.

    Raises:
        TypeError: a field without a value, one that is not declared, or a positional one with ``kw_only``.
        AttributeError: a field that shall be set or deleted.
    """

    _NAMES: ClassVar[tuple[str, ...]] = ()
    _DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    _POSITIONAL: ClassVar[int] = 0

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        own = tuple(name for name in cls.__annotations__ if name not in cls._NAMES)
        cls._DEFAULTS = {**cls._DEFAULTS, **{name: vars(cls)[name] for name in own if name in vars(cls)}}
        cls._NAMES += own
        cls._POSITIONAL = 0 if kw_only else len(cls._NAMES)

    def __init__(self, *values: Any, **named: Any) -> None:
        if len(values) > self._POSITIONAL:
            raise TypeError(
                f"{type(self).__name__}: {len(values)} values without a name, {self._POSITIONAL} can be"
            )
        given = dict(zip(self._NAMES, values, strict=False))
        if twice := given.keys() & named.keys():
            raise TypeError(f"{type(self).__name__}: given twice: {', '.join(sorted(twice))}")
        given = {**self._DEFAULTS, **given, **named}
        if odd := given.keys() ^ set(self._NAMES):
            raise TypeError(
                f"{type(self).__name__}: no such field, or no value for it: {', '.join(sorted(odd))}"
            )
        self.__dict__.update(given)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Refuse values that do not go together; nothing here."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**dict(zip(self._NAMES, self._values(), strict=True)) | changes)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._NAMES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in zip(self._NAMES, self._values(), strict=True))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}: a {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete field {name!r}: a {type(self).__name__} is frozen")

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    else:

        @property
        def __dataclass_fields__(self) -> dict[str, Field[Any]]:
            """What ``dataclasses`` asks a value for; made when it asks."""
            from dataclasses import make_dataclass  # noqa: PLC0415  # see the module

            return make_dataclass(type(self).__name__, self._NAMES).__dataclass_fields__
