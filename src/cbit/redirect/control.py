"""The control channel of a served machine: JSON lines, one answer for each request.

    {"do": "power-cycle", "decay": 0.001}        ->  {"ok": true, "result": {…}}
    {"do": "fly"}                                ->  {"ok": false, "reasons": ["…"]}

One table is the parser, the command line and what the reference page is held to.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from cbit.redirect.backend import Backend
from cbit.spec.errors import CbitError


class BadRequest(CbitError):
    """A request that is no request; the message says why."""


class Controlled(Protocol):
    """The daemon, as far as requests concern it."""

    backend: Backend

    def status(self) -> dict[str, object]:
        """Say what the machine and its clients do."""
        ...

    def serves(self, path: Path) -> bool:
        """Tell whether a path leads to a file that the daemon itself serves: it would wait for itself."""
        ...

    def stop(self) -> None:
        """End the daemon when the answer has been sent."""
        ...


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request.

    Attributes:
        kind: its type in JSON, as Python has it; a string is a path.
        default: what it is when it is left out; None if it has to be there.
        text: what it means.
        bounds: of a number, the least and the greatest; whatever is none, NaN too, lies between none.
    """

    kind: type
    default: Any
    text: str
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its fields, what it does, and what `--help` says."""

    text: str
    run: Callable[[Controlled, Mapping[str, Any]], dict[str, object]]
    fields: Mapping[str, Field] = field(default_factory=dict)


def _status(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    return daemon.status()


def _reset(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    daemon.backend.reset()
    return daemon.status()


def _power_cycle(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    daemon.backend.power_cycle(decay=given["decay"])
    return daemon.status()


def _freeze(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    path = Path(given["file"])
    if not path.is_absolute():
        raise BadRequest(f"file: {path} is relative, and the daemon's folder is another than yours")
    if daemon.serves(path):
        raise BadRequest(f"file: {path} is the device that this daemon serves")
    return daemon.backend.freeze(path, decay=given["decay"], write_back=given["write_back"])


def _shutdown(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    daemon.stop()
    return {}


_DECAY: Final = Field(float, 0.0, "share of the charged cells that lose their bit, 0 to 1", (0.0, 1.0))

REQUESTS: Final[Mapping[str, Request]] = MappingProxyType(
    {
        "status": Request("what the machine is, and who uses it", _status),
        "reset": Request("reset: DRAM stays, keys and guests are gone", _reset),
        "power-cycle": Request(
            "cut the power and let it return; also turns a frozen machine on again",
            _power_cycle,
            MappingProxyType({"decay": _DECAY}),
        ),
        "freeze": Request(
            "carry the memory modules away, cold, into a file; the machine is off afterwards",
            _freeze,
            MappingProxyType(
                {
                    "file": Field(str, None, "absolute path of the file"),
                    "decay": _DECAY,
                    "write_back": Field(bool, False, "execute WBINVD first"),
                }
            ),
        ),
        "shutdown": Request("end the daemon as SIGTERM does", _shutdown),
    }
)


def parse(line: bytes) -> dict[str, Any]:
    """Read a line as an object with ``do``.

    Raises:
        BadRequest: it is none.
    """
    try:
        given = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not a line of JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("do"), str):
        raise BadRequest('a request is an object with "do"')
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields; of one that is there twice nobody knows which is meant."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"{reprlib.repr(name)} is there twice")
        found[name] = value
    return found


def carry_out(daemon: Controlled, given: Mapping[str, Any]) -> dict[str, object]:
    """Check a request's fields and do what it says.

    Raises:
        BadRequest: no such request, or a field that is unknown, missing, of another type, or out of bounds;
            nothing has been done.
        CbitError, OSError, ValueError: what was asked cannot be done.
    """
    request = REQUESTS.get(given["do"])
    if request is None:
        raise BadRequest(f"do: {given['do']!r} is none of {', '.join(REQUESTS)}")
    refuse_unknown(given, request.fields)
    values = {name: _value(name, one, given) for name, one in request.fields.items()}
    return request.run(daemon, values)


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a request with a field that it has not: whoever misspells one is told so.

    Raises:
        BadRequest: which.
    """
    if unknown := set(given) - {"do", *known}:
        raise BadRequest(f"{given['do']} has no field {', '.join(sorted(map(repr, unknown)))}")


def _value(name: str, wanted: Field, given: Mapping[str, Any]) -> object:
    if name not in given:
        if wanted.default is None:
            raise BadRequest(f"{name} is missing: {wanted.text}")
        return wanted.default
    value = given[name]
    kinds = (int, float) if wanted.kind is float else (wanted.kind,)
    fits = type(value) in kinds  # a bool is an int, and is none here
    if fits and wanted.bounds is not None:
        fits = wanted.bounds[0] <= value <= wanted.bounds[1]
    if not fits or (wanted.kind is str and not _is_a_path(value)):
        raise BadRequest(f"{name} is {reprlib.repr(value)}: {wanted.text}")
    return wanted.kind(value)


def _is_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a character
        return False


def refused(error: Exception) -> dict[str, object]:
    """Write the answer to a request that was not carried out."""
    text = (
        f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    )
    return {"ok": False, "reasons": [" ".join(text.split()) or type(error).__name__]}
