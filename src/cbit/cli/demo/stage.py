"""Where a story is shown while it runs, and the machine that it is about."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cbit.attacks.forensics import Find
    from cbit.attacks.survey import Cell
    from cbit.cli.demo.act import Act
    from cbit.crypto.entropy import Entropy
    from cbit.machine.profiles import Profile
    from cbit.machine.state_folder import StateFolder


class Stage:
    """What a person sees of a story; nothing with --json."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = None
        if not quiet:
            from cbit.cli.demo.console import new_console

            self._console = new_console()

    def act(self, act: Act) -> None:
        """Show an act."""
        if self._console:
            from cbit.cli.demo.render import show_act

            show_act(self._console, act)

    def attempt(self, cell: Cell) -> None:
        """Show an adversary's attempt while others are being made."""
        if self._console and self._console.is_terminal:
            self._console.print(f"  {cell.protection:<5} {cell.adversary}: {cell.note}", style="dim")

    def survey(self, cells: list[Cell]) -> None:
        """Show what each adversary got."""
        if self._console:
            from cbit.cli.demo.render import show_survey

            show_survey(self._console, cells)

    def finds(self, finds: list[Find]) -> None:
        """Show what the tools found, dump beside dump."""
        if self._console:
            from cbit.cli.demo.render import show_finds

            show_finds(self._console, finds)

    def begins(self, what: str) -> None:
        """Say what comes now."""
        if self._console:
            self._console.print(f"\n  ── {what}", style="dim", markup=False)

    @property
    def line(self) -> Callable[[str], None]:
        """What shows a line of a guest's console."""
        console = self._console
        if console is None:
            return lambda text: None
        return lambda text: console.print(f"  │ {text}", style="dim", markup=False)


def new_machine(
    stack: ExitStack, chosen: Profile, entropy: Entropy, *, quiet: bool
) -> tuple[Path, StateFolder]:
    """Make a machine in a temporary folder, both gone at the end; return the folder and its state."""
    from cbit.cli.progress import progress
    from cbit.machine.manufacture import make_root, manufacture
    from cbit.machine.state_folder import StateFolder

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbit-demo-")))
    doing = f"manufacturing a {chosen.name} machine with a {chosen.root_bits}-bit root"
    with progress(doing, quiet=quiet):
        manufacture(folder / "machine", chosen, entropy=entropy, root=make_root(chosen.root_bits))
    return folder, stack.enter_context(StateFolder(folder / "machine"))
