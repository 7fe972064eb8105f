"""Whether guests execute on this computer."""

from __future__ import annotations

from cbit.compiler import NoCompiler
from cbit.cpu.engine.errors import NoEngine


def why_not_executing() -> str:
    """Say in one sentence what is missing; empty if guests execute.

    What is needed is compiled now, once per computer.
    """
    from cbit.cpu.engine.interpose import interpose
    from cbit.cpu.engine.layout import layout
    from cbit.guest.builtin.image import helper, image

    try:
        image()
        helper()
        interpose()
        layout()
    except (NoCompiler, NoEngine) as missing:
        return str(missing).splitlines()[0]
    return ""
