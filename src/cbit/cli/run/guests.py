"""``--guest NAME[,WORD=VALUE]…``: what one of several guests has of its own.

A word stands for the option of that name; what a guest does not say of itself, the command line says for all.
"""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cbit.cli.owner.arguments import policy
from cbit.cli.sizes import size

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_MODES: Final = ("none", "sev")


def _mode(text: str) -> str:
    if text not in _MODES:
        raise ValueError(f"{text!r}: a guest's mode is none or sev; under sme the kernel is the host itself")
    return text


_WORDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "mode": _mode,
    "key": str,
    "memory": size,
    "kernel": Path,
    "initrd": Path,
    "append": str,
    "policy": policy,
    "secret": Path,
    "disk": Path,
}


def guests(args: Namespace) -> list[Namespace]:
    """Give each guest's arguments: the one of the command line, or one for each ``--guest``.

    Raises:
        ValueError: what a guest says of itself makes no sense; the message names it.
    """
    if not args.guest:
        return [Namespace(**vars(args) | {"name": "", "key": ""})]
    if args.mode == "sme":
        raise ValueError(
            "--guest: under --mode sme the kernel is the host itself, and nothing runs beside it"
        )
    if args.disk:
        raise ValueError("--disk: whose is it? Say --guest NAME,disk=FILE")
    found: list[Namespace] = []
    for text in args.guest:
        guest = _guest(text, args)
        if guest.name in (other.name for other in found):
            raise ValueError(f"--guest {guest.name}: there is one of that name already")
        if guest.key and guest.key not in (other.name for other in found if other.mode == "sev"):
            raise ValueError(f"--guest {text}: no encrypted guest {guest.key!r} was named before it")
        if guest.key and guest.mode != "sev":
            raise ValueError(f"--guest {text}: key belongs to mode=sev")
        found.append(guest)
    return found


def _guest(text: str, args: Namespace) -> Namespace:
    name, *words = (part.replace(",,", ",") for part in re.split(r"(?<!,),(?!,)", text))
    if not _NAME.fullmatch(name):
        raise ValueError(f"--guest {text}: it begins with the guest's name: letters, digits, '.', '_', '-'")
    own: dict[str, Any] = {"name": name, "key": "", "disk": []}
    for each in words:
        word, is_there, value = each.partition("=")
        if word not in _WORDS or not is_there or not value:
            raise ValueError(f"--guest {text}: {each!r} is none of {'=… '.join(_WORDS)}=…")
        try:
            read = _WORDS[word](value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"--guest {text}: {word}: {error}") from error
        if word == "disk":
            own["disk"] = [*own["disk"], read]
        else:
            own[word] = read
    if own.get("mode", args.mode) != "sev" and "policy" not in own:
        own["policy"] = None  # what is said for all is for those that have one
    return Namespace(**vars(args) | own)
