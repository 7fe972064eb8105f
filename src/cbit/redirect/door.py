"""The child's side of a start: from the fork to the program's first instruction.

Between the filter and the program nothing may open a file: under mechanism B that open would wait for a
parent that waits for this process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cbit.redirect import namespace, opens, seccomp, signals
from cbit.redirect.bpf import Rule, assemble
from cbit.redirect.errors import NamespaceRefused, NotStarted
from cbit.redirect.features import explain_install
from cbit.redirect.files import Files, Mechanism
from cbit.redirect.fuse_server import MODE
from cbit.redirect.linux import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, Call, prctl

GO: Final = b"go"

_NOT_HERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute.

    Attributes:
        argv: its words, the first being its name.
        environment: its environment.
        candidates: where to look for it, in order.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    candidates: tuple[str, ...]


def program(argv: Sequence[str], environment: Mapping[str, str]) -> Program:
    """Look a program up as a shell does, without deciding yet: the namespace decides what exists.

    Raises:
        NotStarted: its name is empty, and nothing has that name.
    """
    if not argv:
        raise ValueError("no program is given")
    name = argv[0]
    if not name:
        raise NotStarted(f": {os.strerror(errno.ENOENT)}", found=False)
    folders = environment.get("PATH", os.defpath).split(os.pathsep)
    places = (name,) if "/" in name else tuple(os.path.join(folder or ".", name) for folder in folders)
    return Program(tuple(argv), dict(environment), places)


def filter_program(files: Files, *, in_namespace: bool) -> bytes:
    """Return the filter: requests in both mechanisms, calls that name a path where no namespace shows it."""
    single = tuple(request for request in files.requests if request >> 8 & 0xFF not in files.types)
    requests = Rule(Call.IOCTL, argument=1, values=single, types=files.types)
    return assemble([requests] if in_namespace else [requests, *opens.RULES])


def walk_through(
    door: socket.socket,
    what: Program,
    files: Files,
    *,
    mechanism: Mechanism,
    parent: int,
    blocked: set[int | signal.Signals],
) -> None:
    """Become the program; never returns.  What goes wrong is said through the door."""
    try:
        descriptors = _prepare(files, mechanism, parent)
    except NamespaceRefused as error:
        say(door, namespace=str(error))
        os._exit(125)
    except OSError as error:
        say(door, failed=explain_install(error))
        os._exit(125)
    socket.send_fds(door, [b"{}"], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    if door.recv(len(GO)) != GO:
        os._exit(125)
    if mechanism is Mechanism.FUSE:
        _let_owners_be_known(files)
    signals.as_a_program_expects(blocked)
    say(door, errno=_execute(what))
    os._exit(127)


def _prepare(files: Files, mechanism: Mechanism, parent: int) -> list[int]:
    """Put the files in this process's way; return what they are served through."""
    # A launcher that holds keys is undumpable, and its fork with it: the parent could not serve that.
    prctl(PR_SET_DUMPABLE, 1)
    channels: list[int] = []
    if mechanism is not Mechanism.OPENS:
        namespace.enter()
    if mechanism is Mechanism.NAMESPACE:
        namespace.place(files)
    if mechanism is Mechanism.FUSE:
        channels = namespace.place_served(files, mode=MODE)
    # Without its launcher every redirected call would fail for ever, strangely; so it goes with it.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(125)
    if mechanism is Mechanism.FUSE:
        return channels
    return [seccomp.install(filter_program(files, in_namespace=mechanism is Mechanism.NAMESPACE))]


def _let_owners_be_known(files: Files) -> None:
    """Let the kernel ask who owns the files, now that somebody answers.

    Until then it takes user 0 for it, who does not exist in a user namespace of ours: what he owns nobody may
    write, whatever the permission bits say.
    """
    for device in files.devices:
        with contextlib.suppress(OSError):  # the program will see what is wrong
            os.stat(device.path)


def _execute(what: Program) -> int:
    """Try each place; return the errno that matters: of several, that of the one which was found.

    A folder of PATH that cannot be searched has no say in it, as in a shell: a program that is nowhere else
    is not found, whatever may be in there.
    """
    searched = "/" not in what.argv[0]
    worst = errno.ENOENT
    for path in what.candidates:
        try:
            os.execve(path, what.argv, what.environment)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                return error.errno or errno.ENOEXEC
            if error.errno == errno.EACCES and (not searched or os.path.lexists(path)):
                worst = errno.EACCES
    return worst


def say(door: socket.socket, **words: str | int) -> None:
    """Tell the launcher."""
    door.send(json.dumps(words).encode())
