"""A campaign's journal: whose results they are, and one line for each, written before the next is counted.

    {"journal": 2, "cbit": …, "sources": …, "packages": {…}, "linux": {…} or null}      what they came out of
    {"case": {…}, "result": {…}, "sum": "…"}                                            one for each result

Results of another version, of changed sources or of another kernel are not this campaign's: the file is
refused.  What a result means is not read from it: verdict and prediction are worked out anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import cbit
from cbit.attacks.experiments import named
from cbit.attacks.lab.case import Case, Told
from cbit.attacks.lab.outcome import Verdict
from cbit.attacks.lab.run import verdict_of
from cbit.attacks.linux_owner import initramfs
from cbit.guest.linux.files import LinuxFiles
from cbit.guest.linux.unlock import unlock_program
from cbit.spec.errors import CbitError

_FORMAT: Final = 2
_BEGINS: Final = b'{"journal": '
_PACKAGES: Final = ("cryptography", "numpy", "unicorn")


class BadJournal(CbitError):
    """A journal that is none, or is another campaign's; the message says where, and what differs."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What results come out of.

    Attributes:
        cbit: the version.
        sources: digest of all of its sources: a result depends on the machine as much as on the lab.
        packages: versions of what it computes and executes with.
        linux: digests of what Linux victims are made of; None if there are none.
    """

    cbit: str
    sources: str
    packages: Mapping[str, str]
    linux: Mapping[str, str] | None

    @classmethod
    def here(cls, linux: LinuxFiles | None) -> Self:
        """Describe this program, and the files that it is given.

        Raises:
            OSError: a file cannot be read.
        """
        packages = {name: version(name) for name in _PACKAGES}
        return cls(cbit.__version__, _sources(), packages, None if linux is None else _digests(linux))

    @property
    def header(self) -> dict[str, Any]:
        """The journal's first line, as JSON values."""
        linux = None if self.linux is None else dict(self.linux)
        return {
            "journal": _FORMAT,
            "cbit": self.cbit,
            "sources": self.sources,
            "packages": dict(self.packages),
            "linux": linux,
        }

    def differences(self, header: Mapping[str, Any]) -> list[str]:
        """Say what is not as in a journal's header; where one of the two knows no Linux, nothing is."""
        differs = [
            f"{what}: {header.get(name)!r} there, {ours!r} here"
            for name, what, ours in (
                ("journal", "format", _FORMAT),
                ("cbit", "cbit", self.cbit),
                ("packages", "packages", dict(self.packages)),
            )
            if header.get(name) != ours
        ]
        if header.get("sources") != self.sources:
            differs.append("cbit's sources have changed")
        theirs, ours = header.get("linux"), self.linux
        if theirs is not None and ours is not None:
            differs += [f"another {name}" for name in ours if theirs.get(name) != ours[name]]
        return differs


@cache
def _sources() -> str:
    """Digest of the package's files, but for what was made of them."""
    top, digest = Path(cbit.__file__).parent, hashlib.sha256()
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name, contents = str(path.relative_to(top)), path.read_bytes()
            digest.update(f"{name}\0{len(contents)}\0".encode() + contents)
    return digest.hexdigest()


def _digests(files: LinuxFiles) -> dict[str, str]:
    """Digests of the kernel, and of what its modules and busybox become."""
    parts = {"kernel": files.kernel.read_bytes(), "initramfs": initramfs(files, unlock_program())}
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


class Journal:
    """An open journal.

    Mutable; a context manager.

    Attributes:
        known: the results in it, by their case's key.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        """Open a journal, or begin one.

        Raises:
            BadJournal: the file is something else, or another campaign's, or another campaign is at work with
                it; it stays as it is.
            OSError: it cannot be read and written.
        """
        if path.exists() and not path.is_file():
            raise BadJournal(f"{path} is no regular file")
        self._path, self._origin = path, origin
        self.known: dict[str, Told] = {}
        self._file: BufferedRandom = path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadJournal(f"{path} is in use by another campaign") from None
            self._begin(self._read())
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> list[dict[str, Any]]:
        """Read all whole lines; return the headers."""
        self._file.seek(0)
        contents = self._file.read()
        whole = contents[: contents.rfind(b"\n") + 1]
        if contents and not contents.startswith(_BEGINS[: len(contents)]):
            raise BadJournal(f"{self._path}, line 1: not a journal of this lab")
        headers = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                if "journal" in entry:
                    headers.append(self._checked(entry))
                else:
                    self._take(entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{self._path}, line {number}"
                raise BadJournal(f"{where}: not a journal of this lab ({error})") from None
            except CbitError as error:
                raise BadJournal(f"{self._path}, line {number}: {error}") from None
        # A last line that was being written when the campaign was killed does not count.
        if len(whole) < len(contents):
            self._file.truncate(len(whole))
        return headers

    def _checked(self, header: dict[str, Any]) -> dict[str, Any]:
        if differs := self._origin.differences(header):
            raise BadJournal(
                f"these are results of another campaign ({'; '.join(differs)}): begin another journal"
            )
        return header

    def _take(self, entry: Mapping[str, Any]) -> None:
        if entry["sum"] != _sum(entry):
            raise BadJournal("the line is not as it was written")
        case = Case.from_json(entry["case"])
        self.known[case.key] = judged(case, entry["result"])

    def _begin(self, headers: list[dict[str, Any]]) -> None:
        known = any(header["linux"] is not None for header in headers)
        if not headers or (self._origin.linux is not None and not known):
            self._write(self._origin.header)

    def note(self, case: Case, told: Told) -> None:
        """Append a result; it is on the disk when this returns."""
        entry = {"case": case.as_json(), "result": told}
        self._write(entry | {"sum": _sum(entry)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _sum(entry: Mapping[str, Any]) -> str:
    """Digest of a result's line, against accidents: it is no seal."""
    whole = json.dumps([entry["case"], entry["result"]], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def judged(case: Case, told: Told) -> Told:
    """Judge a kept result anew, from what was found and from what is expected now.

    Raises:
        BadJournal: it is not a result of this case.
        BadCase: there is no such case.
    """
    attack = named(case.attack)
    complete = attack.check(case.mode, case.variant, case.parameters)
    of = {**case.as_json(), "parameters": complete}
    if differs := [name for name, value in of.items() if told[name] != value]:
        raise BadJournal(f"the result is another case's: {', '.join(differs)}")
    expected = attack.expectation(case.mode, case.variant, complete)
    if not case.mode.modelled:
        verdict, agrees = Verdict.NOT_MODELLED, True
    elif expected.verdict is Verdict.NOT_APPLICABLE:
        verdict, agrees = Verdict.NOT_APPLICABLE, True
    else:
        if not 0 <= told["found"] <= told["planted"] or told["planted"] < 1:
            raise BadJournal(f"{told['found']} secrets found, of {told['planted']}")
        verdict = verdict_of(told["found"], told["planted"])
        agrees = expected.agrees(verdict, told["note"])
    return {
        **told,
        "verdict": verdict.value,
        "expected": expected.verdict.value,
        "why": expected.why,
        "shown": expected.shown,
        "as_expected": agrees,
    }
