"""What the verbs of the lab read from a command line."""

from __future__ import annotations

from collections.abc import Sequence

from cbit.attacks.lab.attack import BadCase, Number
from cbit.attacks.lab.outcome import Mode


def mode_named(name: str) -> Mode:
    """Find a mode.

    Raises:
        BadCase: there is none of this name.
    """
    try:
        return Mode(name)
    except ValueError:
        raise BadCase(f"no mode {name!r}: there are {', '.join(Mode)}") from None


def number(text: str) -> Number:
    """Read a number: whole, in hexadecimal, or with a point.

    Raises:
        BadCase: it is none.
    """
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise BadCase(f"{text!r} is no number") from None


def parameters(settings: Sequence[str]) -> dict[str, Number]:
    """Read NAME=VALUE words.

    Raises:
        BadCase: a word of another form.
    """
    found: dict[str, Number] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise BadCase(f"{setting!r}: write NAME=VALUE")
        found[name] = number(value)
    return found
