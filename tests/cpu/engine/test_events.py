"""Events on their way into a guest: what the hypervisor injects, and what the engine raises itself."""

from __future__ import annotations

import pytest

from cbit.cpu.engine.control_block import At
from cpu.engine.worlds import CODE, DATA, HLT, RBX, RDX, VMMCALL, Guest, assemble

VALID, TYPE_EXCEPTION = 1 << 31, 3 << 8
HANDLER = 0x40000


def handled(g: Guest, vector: int) -> Guest:
    g.write(HANDLER, assemble("pop rdx; mov rbx, 7; vmmcall", HANDLER))
    g.gate(vector, HANDLER)
    return g


@pytest.mark.parametrize("intercepts", [0, 1 << 6])
@pytest.mark.parametrize("source", ["hlt", f"clflush [{DATA}]; hlt", "ud2"])
def test_an_injected_invalid_opcode_is_about_no_instruction(source: str, intercepts: int) -> None:
    """The code is in no cache yet, and nobody looks at it; nor is an injected event intercepted."""
    g = handled(Guest(), 6)
    g.program(source)
    g.set("I", At.EXCEPTIONS, intercepts)
    g.set("Q", 0x0A8, VALID | TYPE_EXCEPTION | 6)
    assert (VMMCALL, 7, CODE) == (g.run().code, g.register(RBX), g.register(RDX))
    g.set("Q", 0x578, CODE)
    g.set("Q", 0x5D8, 0x9000)
    assert ({HLT} if "hlt" in source else {0x46 if intercepts else VMMCALL}) == {g.run().code}
