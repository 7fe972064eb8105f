"""The options that name the files of a Linux, for every sub-command that boots a distribution's."""

from __future__ import annotations

from argparse import _ActionsContainer
from pathlib import Path


def add_linux_options(parser: _ActionsContainer) -> None:
    """Declare them; without any, all three files are fetched (`cbit.cli.linux_files`)."""
    parser.add_argument("--kernel", type=Path, metavar="K", help="another kernel, with its --modules")
    parser.add_argument("--modules", type=Path, metavar="DIR", help="its /lib/modules/RELEASE")
    parser.add_argument("--busybox", type=Path, metavar="FILE", help="a static busybox for it")
