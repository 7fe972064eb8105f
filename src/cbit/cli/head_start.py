"""Large files begin to be hashed before anything else is loaded.

`cbit owner measure` needs SHA-256 of a kernel and of its initrd; a second processor can compute them while
this one loads the parser and what computes the rest.  The words are looked at here and not understood: the
parser decides what they mean, and a hash that nobody asks for is dropped.

Imports as little as it can, since all that it imports delays it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

TYPE_CHECKING = False  # loading `typing` takes longer than all that is done here
if TYPE_CHECKING:
    from cbit.owner.blob import Blob

_COMMAND = ["owner", "measure"]
_HASHED = ("--kernel", "--initrd")


def begin(words: Sequence[str]) -> Mapping[str, Blob]:
    """Begin to hash the files that a command line seems to want hashed, by their names in it."""
    if list(words[:2]) != _COMMAND:
        return {}
    values = dict(_values(words))
    # An explanation, and a direct boot, which has no firmware, want the bytes themselves.
    if "--firmware" not in values or "--explain" in words:
        return {}
    from cbit.cli.mapped import mapped

    names = [values[option] for option in _HASHED if option in values]
    return {name: blob for name in names if (blob := mapped(name)) is not None}


def _values(words: Sequence[str]) -> list[tuple[str, str]]:
    """Give what looks like options with their values: ``--option value`` and ``--option=value``."""
    spaced = list(pairwise(words))
    joined = [(option, value) for option, sign, value in (word.partition("=") for word in words) if sign]
    return [(option, value) for option, value in spaced + joined if option.startswith("--")]
