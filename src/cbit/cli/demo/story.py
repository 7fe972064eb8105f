"""The story of the machine, act by act: DESIGN.md's story lines.  Every value comes from what ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cbit.cli.demo.act import Act
from cbit.cli.demo.boot import power_on, sme
from cbit.cli.demo.guests import many_guests, the_end
from cbit.cli.demo.launch import launch, receipt, run_guest
from cbit.cli.demo.platform import platform, session
from cbit.cli.demo.world import World

#: In order: an act works on the world that the acts before it left behind.
ACTS: Final[tuple[Callable[[World], Act], ...]] = (
    power_on,
    sme,
    platform,
    session,
    launch,
    receipt,
    run_guest,
    many_guests,
    the_end,
)
