"""Seconds as people write them."""

from __future__ import annotations

import argparse
from typing import Final

_MOST: Final = 1e9  #: 31 years


def seconds(text: str) -> float:
    """Read a number of seconds, 0 or more, for an argument's ``type``.

    Raises:
        ArgumentTypeError: it is none, or has no end.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < _MOST:  # which is no NaN either
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
