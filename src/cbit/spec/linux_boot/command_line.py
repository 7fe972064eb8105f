"""The kernel's command line: what this machine needs, then what the user adds.

Both sides compute it: the hypervisor that loads it, and the owner who measures it.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.linux_boot.kernel_image import Unbootable

#: Every option with its reason; a later one on the same line wins, so what is appended may overrule it.
DEFAULTS: Final = (
    "console=ttyS0",  # the machine's only console
    "earlyprintk=ttyS0",  # and from the first line on
    "random.trust_cpu=on",  # RDRAND is the machine's entropy: no waiting for noise
    "panic=-1",  # a panic resets at once, which ends the run
    "mitigations=off",  # the emulated CPU does not speculate
)


def command_line(append: str = "") -> str:
    """Join the defaults and what is appended.

    Raises:
        Unbootable: a NUL or a line break, which would end the line early or hide a part of it.
    """
    if bad := {"\x00", "\n", "\r"} & set(append):
        raise Unbootable(f"the command line holds {min(bad)!r}: it is one line of text")
    return " ".join((*DEFAULTS, append) if append else DEFAULTS)  # nothing is trimmed: each byte is measured
