"""What the verbs of the lab read from a command line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from cbit.attacks.lab.attack import Attack, BadCase, Value
from cbit.attacks.lab.outcome import Mode
from cbit.guest.linux.files import LinuxFiles


def mode_named(name: str) -> Mode:
    """Find a mode.

    Raises:
        BadCase: there is none of this name.
    """
    try:
        return Mode(name)
    except ValueError:
        raise BadCase(f"no mode {name!r}: there are {', '.join(Mode)}") from None


def value(text: str) -> Value:
    """Read a number, whole, in hexadecimal, or with a point; else a word."""
    for read in (lambda word: int(word, 0), float):
        try:
            return read(text)
        except ValueError:
            pass
    return text


def number(text: str) -> int | float:
    """Read a number (as `value`).

    Raises:
        BadCase: it is none.
    """
    found = value(text)
    if isinstance(found, str):
        raise BadCase(f"{text!r} is no number")
    return found


def once(words: Sequence[Value], what: str) -> None:
    """See that nothing is given twice: only one of the two would count.

    Args:
        words: what was given.
        what: as what.

    Raises:
        BadCase: something was.
    """
    for word, count in Counter(words).items():
        if count > 1:
            raise BadCase(f"{what}: {word} is given {count} times")


def parameters(settings: Sequence[str]) -> dict[str, Value]:
    """Read NAME=VALUE words.

    Raises:
        BadCase: a word of another form, or a parameter twice.
    """
    found: dict[str, Value] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise BadCase(f"{setting!r}: write NAME=VALUE")
        found[name] = value(text)
    once([setting.partition("=")[0] for setting in settings], "--set")
    return found


def linux_for(attacks: Sequence[Attack], args: argparse.Namespace) -> LinuxFiles | str:
    """Find what Linux victims are made of, if one of these attacks has one.

    Raises:
        ValueError: some of the files are named, and not all.
        NoPackage: none is named, and the distribution's cannot be had.
    """
    from cbit.attacks.lab.stand import NO_LINUX
    from cbit.cli.linux_files import linux_files

    if not any(attack.linux for attack in attacks):
        return NO_LINUX
    return linux_files(kernel=args.kernel, modules=args.modules, busybox=args.busybox)
