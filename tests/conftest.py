"""What every test may ask for: vectors, other people's programs, a number of examples for its properties."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

RequireProgram = Callable[[str, str], list[str]]

# Both gates draw the same examples every time: the same commit gets the same verdict on every machine, and a
# red run repeats by running it again.  New examples are looked for on purpose: HYPOTHESIS_PROFILE=explore.
_common = settings(
    deadline=None,  # wall clock is no fact of the code; pytest-timeout ends what hangs
    suppress_health_check=[HealthCheck.too_slow],  # as above
    print_blob=True,
)
settings.register_profile("quick", _common, max_examples=40, derandomize=True)
settings.register_profile("thorough", _common, max_examples=150, derandomize=True)
settings.register_profile("explore", _common, max_examples=500, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of vectors; its README says what each of its folders proves."""
    return Path(__file__).parent / "vectors"


@pytest.fixture
def require_program(request: pytest.FixtureRequest) -> RequireProgram:
    """Find another project's program, or skip and say what to install.

    ``require_program("virt-qemu-sev-validate", "apt install libvirt-clients-qemu")`` returns the words that
    begin its command line.  The environment variable CBIT_VIRT_QEMU_SEV_VALIDATE, if set, is its path.
    """
    if request.node.get_closest_marker("oracle") is None:
        pytest.fail("a test that is judged by another program carries @pytest.mark.oracle", pytrace=False)

    def find(name: str, install: str) -> list[str]:
        variable = f"CBIT_{name.upper().replace('-', '_')}"
        path = shutil.which(os.environ.get(variable, name))
        if path is None:
            pytest.skip(f"{name} is not here: {install} (or set {variable})")
        with Path(path).open("rb") as program:
            first_line = program.readline()
        # A distribution's script wants the distribution's modules, whichever Python comes first in PATH.
        if path.startswith("/usr/bin/") and first_line.strip() == b"#!/usr/bin/env python3":
            return ["/usr/bin/python3", path]
        return [path]

    return find
