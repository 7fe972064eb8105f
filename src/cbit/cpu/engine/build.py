"""The stubs are compiled once, before the first guest executes.

``python -m cbit.cpu.engine.build`` does it ahead of time and prints where the result is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from cbit.compiler import NoCompiler, compiled, has_compiler, place
from cbit.cpu.engine.errors import NoEngine

NATIVE: Final = Path(__file__).parent / "native"
NAME: Final = "stubs"
SUFFIX: Final = ".so"
# The stubs read "the engine of this thread" at every TLB fill: the cheapest kind of thread-local variable.
FLAGS: Final = (
    *("-std=gnu11", "-O2", "-fPIC", "-shared", "-ftls-model=initial-exec"),
    *("-Wall", "-Wextra", "-Werror"),
)


def compiled_stubs(folder: Path | None = None, *, compiler: str | None = None) -> Path:
    """Return the engine's shared library, compiled if it is not there yet (arguments as of ``compiled``).

    Raises:
        NoEngine: it cannot be compiled here; the message says why.
    """
    try:
        return compiled(sources(), FLAGS, name=NAME, suffix=SUFFIX, folder=folder, compiler=compiler)
    except NoCompiler as error:
        raise NoEngine(f"guests execute through stubs that are compiled here: {error}") from error


def can_have_stubs() -> bool:
    """Whether the shared library is compiled already, or could be; it is not compiled for the question."""
    return place(sources(), FLAGS, name=NAME, suffix=SUFFIX).is_file() or has_compiler()


def sources() -> list[Path]:
    """List the native sources, headers too."""
    return sorted(path for path in NATIVE.iterdir() if path.suffix in (".c", ".h"))


if __name__ == "__main__":
    try:
        print(compiled_stubs())
    except NoEngine as error:
        sys.exit(f"cbit: {error}")
