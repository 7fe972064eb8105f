"""Pin what pyproject.toml names, with the hash of every published file: run by ``make lock``.

The lists are written once, in pyproject.toml; this reads them and lets pip-compile resolve them.  It is run
under the oldest Python that we support, so that the versions chosen install on the newer ones too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OLDEST = (3, 11)


def wanted(project: dict[str, Any]) -> dict[str, list[str]]:
    """Return the requirements of each lock file, as pyproject.toml writes them."""
    groups = project["dependency-groups"]
    machine = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["machine"]]
    machine += groups["build"]
    dev = [*machine, *groups["tests"], *groups["lint"], *groups["docs"]]
    return {"machine": machine, "dev": dev, "oracles": groups["oracles"]}


def lock(name: str, requirements: list[str], *, agree_with: Path | None) -> None:
    """Write requirements/NAME.txt; versions that ``agree_with`` pins are kept."""
    target = HERE / f"{name}.txt"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pyproject.in"
        constraint = [f"-c {agree_with}"] if agree_with else []
        source.write_text("\n".join([*requirements, *constraint]) + "\n")
        options = "--generate-hashes --strip-extras --no-annotate --no-header --no-emit-index-url"
        options += " --no-emit-find-links --no-emit-trusted-host --no-emit-options --quiet"
        command = [sys.executable, "-m", "piptools", "compile", *options.split()]
        subprocess.run([*command, "--output-file", str(target), str(source)], check=True)
    text = target.read_text()
    target.write_text(f"# Made by `make lock` from pyproject.toml; do not edit.\n{text}")


def main() -> None:
    """Lock everything; ``dev`` is resolved on top of ``machine``, so that both agree."""
    if sys.version_info[:2] != OLDEST:
        sys.exit(
            f"lock under Python {OLDEST[0]}.{OLDEST[1]}, the oldest supported: make lock PYTHON=python3.11"
        )
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    for name, requirements in wanted(project).items():
        lock(name, requirements, agree_with=HERE / "machine.txt" if name == "dev" else None)


if __name__ == "__main__":
    main()
