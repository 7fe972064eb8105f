"""The examples in the documents, read and run.

A page is Markdown.  Its ``python`` and ``console`` fences run in the order of the page, in one empty folder
and one Python namespace.  A console block is a shell transcript:

    $ cbit setup --state chip          a command; a trailing backslash continues it
    chip 4f… made                      what it prints on both streams; no such lines: not compared

``…`` stands for any text in a line, and alone on a line for any lines.  Comments above a block change it:

    <!-- exit: 1 -->                   the block's last command ends with this code; the others with 0
    <!-- not run: takes an hour -->    listed as skipped, with the reason
    <!-- needs: vol; pipx install volatility3 -->   run where the program is installed, else listed as skipped

    <!-- the page needs: cc; apt install gcc -->    as above, for all blocks of a page

`make`, `git` and `cd` lines are listed as skipped: they are what the reader does around cbit.  `cbit` is no
program until a `. .venv/bin/activate` has run, and stays one then.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

RUN: Final = frozenset(
    {"cbit", "cat", "chmod", "cmp", "cp", "cut", "dd", "echo", "grep", "head", "ls", "mkdir", "mv", "od"}
    | {"openssl", "printf", "rm", "sed", "sha256sum", "sort", "tail", "tr", "truncate", "wc"}
)
ACTIVATE: Final = "."
READERS_OWN: Final = frozenset({"cd", "git", "make"})
UNCHECKED: Final = frozenset(  # a shell example under a name that nothing would run
    {
        "bash",
        "sh",
        "shell",
        "shell-session",
        "shellsession",
        "zsh",
        "py",
        "py3",
        "python3",
        "pycon",
        "doctest",
    }
)
TIMEOUT_S: Final = 100
_PAGE = re.compile(r"<!--\s*the page needs:\s*(\S+);\s*(.*?)\s*-->")
_MARKER = re.compile(r"<!--\s*(exit|not run|needs):\s*(.*?)\s*-->", re.DOTALL)


class BadExample(AssertionError):
    """An example does not do what its page says, or says nothing that can be run."""


@dataclass(frozen=True)
class Command:
    """One ``$`` line of a console block, and what the page says it prints."""

    text: str
    output: str

    @property
    def program(self) -> str:
        """The first word that is not a variable's setting."""
        words = [word for word in self.text.split() if not re.match(r"[A-Za-z_]\w*=", word)]
        return words[0] if words else ""


@dataclass(frozen=True)
class Block:
    """One fenced example: where it stands, its language, its text, and the comments above it."""

    page: str
    line: int
    language: str
    text: str
    markers: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The block's place as ``page:line``."""
        return f"{self.page}:{self.line}"

    @property
    def exit_code(self) -> int:
        """What the last command is to end with."""
        return int(self.markers.get("exit", "0"))

    def commands(self) -> list[Command]:
        """Read a console block as commands and their output."""
        commands: list[Command] = []
        pieces = re.split(r"^\$ ", self.text.replace("\\\n", ""), flags=re.MULTILINE)
        if pieces[0].strip() or len(pieces) == 1:
            raise BadExample(f"{self.place}: a console block begins with a '$ ' line")
        for piece in pieces[1:]:
            text, _, output = piece.partition("\n")
            commands.append(Command(" ".join(text.split()), output))
        return commands

    def why_skipped(self, command: Command | None = None) -> str | None:
        """Say why the block, or one command of it, does not run here; None if it runs."""
        if "not run" in self.markers:
            return self.markers["not run"]
        program, _, install = (part.strip() for part in self.markers.get("needs", "").partition(";"))
        if program and shutil.which(program) is None:
            return f"{program} is not here: {install}"
        if command is not None and command.program in READERS_OWN:
            return f"`{command.text}` is the reader's own"
        return None

    def skips(self) -> Iterator[str]:
        """Everything in this block that is not run, each with its reason."""
        whole = self.why_skipped()
        if whole is not None:
            yield whole
        elif self.language == "console":
            yield from filter(None, map(self.why_skipped, self.commands()))


def blocks(page: str, text: str, *, first_line: int = 1) -> list[Block]:
    """Collect the examples of a page, also those inside admonitions.

    Raises:
        BadExample: a shell or Python example under a language name that is never run.
    """
    found: list[Block] = []
    markers: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "html_block":
            markers |= dict(_MARKER.findall(token.content))
        if token.type == "fence":
            line = first_line + (token.map[0] if token.map else 0)
            language = token.info.split()[0] if token.info.strip() else ""
            if language.startswith("{"):
                found += blocks(page, token.content, first_line=line + 1)
            elif language in UNCHECKED:
                raise BadExample(f"{page}:{line}: {language} blocks are not run: say console or python")
            elif language in {"python", "console"}:
                found.append(Block(page, line, language, token.content, markers))
        if token.type != "html_block" and token.nesting != 1:
            markers = {}
    return found


def why_page_skipped(text: str) -> str | None:
    """Say why nothing of a page runs here; None if it does."""
    for program, install in _PAGE.findall(text):
        if shutil.which(program) is None:
            return f"{program} is not here: {install}"
    return None


def matches(expected: str, actual: str) -> bool:
    """Compare output with its page, where ``…`` is a wildcard."""
    pattern = ""
    for line in _lines(expected):
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r"[^\n]*".join(map(re.escape, line.split("…"))) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(actual))) is not None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


class Reader:
    """Somebody who follows a page to the letter, in an empty folder."""

    def __init__(self, folder: Path, *, package_parent: Path) -> None:
        self._folder = folder / "here"
        self._folder.mkdir()
        made = self._folder / ".venv"  # as `make demo` leaves it, with the real script of this Python
        venv.create(made, symlinks=True)
        cbit = made / "bin" / "cbit"
        cbit.write_text(f"#!{sys.executable}\nimport sys\nfrom cbit.cli import main\nsys.exit(main())\n")
        cbit.chmod(0o755)
        folders = os.environ["PATH"].split(os.pathsep)
        self._environment = {
            "PATH": os.pathsep.join(one for one in folders if not (Path(one) / "cbit").exists()),
            "PYTHONPATH": str(package_parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }
        self._namespace: dict[str, object] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Run one block, except what it says is not run.

        Raises:
            BadExample: a command ends or prints otherwise than the page says.
        """
        if block.why_skipped() is not None:
            return
        if block.language == "python":
            self._run_python(block)
            return
        commands = block.commands()
        for command in commands:
            if block.why_skipped(command) is None:
                exit_code = block.exit_code if command is commands[-1] else 0
                self._run_command(block, command, exit_code=exit_code)

    def _run_python(self, block: Block) -> None:
        # Blank lines in front make tracebacks point at the page's own line.
        source = "\n" * block.line + block.text
        before = Path.cwd()
        os.chdir(self._folder)
        try:
            exec(compile(source, block.page, "exec"), self._namespace)
        finally:
            os.chdir(before)

    def _run_command(self, block: Block, command: Command, *, exit_code: int) -> None:
        where = f"{block.place}: $ {command.text}"
        allowed = RUN | {ACTIVATE} | {block.markers.get("needs", "").partition(";")[0].strip()}
        if command.program not in allowed:
            raise BadExample(
                f"{where}\n{command.program!r} is not run by this test: write '<!-- not run: … -->' above it"
            )
        sourced = command.program == ACTIVATE
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{command.text} && env -0" if sourced else command.text],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
        if ended.returncode != exit_code:
            raise BadExample(
                f"{where}\nends with {ended.returncode}, the page says {exit_code}:\n{ended.stdout}"
            )
        if sourced:  # what follows runs in another shell
            self._environment = dict(one.split("=", 1) for one in ended.stdout.split("\0") if one)
            return
        if command.output.strip() and not matches(command.output, ended.stdout):
            lines = difflib.unified_diff(
                _lines(command.output), _lines(ended.stdout), "the page", "what it printed", lineterm=""
            )
            raise BadExample(f"{where}\nprints something else:\n" + "\n".join(lines))
