"""Runs a program that finds the machine's files: start it, serve it, end as it ended.

    with start(["sevctl", "ok"], sev_files()) as target:    # forks; the program waits at the door
        ending = target.serve({"/dev/sev": device})         # lets it in, returns when nobody is left
    sys.exit(ending.pass_on())

The launcher is the program's parent (it may then read its memory) and adopts what the program leaves behind:
a daemon is served until it ends, and the launcher stays for it.  Start before other threads exist, from the
thread that will serve: the program dies with that thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from cbit.redirect import door as child
from cbit.redirect.clients import AnyDevice
from cbit.redirect.descriptor_limit import raise_limit, restore_limit
from cbit.redirect.errors import NamespaceRefused, NotStarted, RedirectError, Unsupported
from cbit.redirect.features import GIVE, NAMESPACE, KernelFeatures, probe, require_fuse
from cbit.redirect.files import Files, Mechanism
from cbit.redirect.fuse_server import FuseServer
from cbit.redirect.linux import PR_GET_CHILD_SUBREAPER, PR_SET_CHILD_SUBREAPER, prctl
from cbit.redirect.seccomp import Listener
from cbit.redirect.server import PART, Server
from cbit.redirect.signals import ENDING, SignalQueue, end_by
from cbit.redirect.tracer import WAIT_ALL, Tracer
from cbit.trace import SILENT, Trace

_MESSAGE: Final = 65536


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended.

    Attributes:
        code: its exit code; None if a signal ended it.
        signal: the signal that ended it; None if it exited.
    """

    code: int | None
    signal: int | None

    @property
    def exit_code(self) -> int:
        """The code that a shell would report."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    def pass_on(self) -> int:
        """End this process by the same signal, or return the code to exit with."""
        if self.signal is not None:
            end_by(self.signal)
        return self.exit_code


def choose(features: KernelFeatures, wanted: Mechanism | None) -> tuple[Mechanism, str]:
    """Choose a mechanism and say why.

    Raises:
        RedirectError: what is wanted, or everything, cannot be had here.
    """
    if wanted is Mechanism.NAMESPACE and not features.has(NAMESPACE):
        raise NamespaceRefused(features.reasons[NAMESPACE])
    if wanted is Mechanism.NAMESPACE or (wanted is None and features.has(NAMESPACE)):
        return Mechanism.NAMESPACE, "asked for" if wanted else "a private mount namespace can be made"
    if not features.has(GIVE):
        raise Unsupported(f"opens cannot be answered: {features.reasons[GIVE]}")
    return Mechanism.OPENS, "asked for" if wanted else features.reasons[NAMESPACE]


def start(
    argv: Sequence[str],
    files: Files,
    *,
    mechanism: Mechanism | None = None,
    environment: Mapping[str, str] | None = None,
    tracer: Tracer | None = None,
    trace: Trace = SILENT,
) -> Target:
    """Fork the process that will become the program, and put the files in its way.

    Args:
        argv: the program and its arguments; without a slash it is searched for in PATH.
        files: what it finds.
        mechanism: None to choose: a mount namespace where one is allowed, else answering opens.  FUSE only
            serves device files (``Files.devices``), so it is never chosen.
        environment: its environment; None for this process's.
        tracer: answers its CPUID instructions.
        trace: told which mechanism was chosen and why, and of every command.

    Raises:
        Unsupported: the computer or the kernel cannot do it, with every reason.
        NamespaceRefused: the namespace was asked for, and is refused.
        RedirectError: anything else, among it a launcher around this one.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RedirectError(
            "a program is started by the main thread: it dies with the thread that started it"
        )
    what = child.program(argv, os.environ if environment is None else environment)
    if mechanism is Mechanism.FUSE:
        return _start_over_fuse(what, files, trace, tracer)
    features = probe()
    features.require()
    chosen, why = choose(features, mechanism)
    try:
        target = Target(what, files, chosen, trace, tracer)
    except NamespaceRefused as error:
        if mechanism is not None or not features.has(GIVE):
            raise
        chosen, why = Mechanism.OPENS, str(error)
        target = Target(what, files, chosen, trace, tracer)
    target.why = why
    trace.emit(PART, f"mechanism {chosen}", why, synchronous=target.wakes_synchronously)
    return target


def _start_over_fuse(what: child.Program, files: Files, trace: Trace, tracer: Tracer | None) -> Target:
    if files.foreign or files.given or files.observed:
        raise Unsupported("through FUSE device files are served, and no descriptors of virtual machines")
    require_fuse()
    target = Target(what, files, Mechanism.FUSE, trace, tracer)
    target.why = "asked for"
    trace.emit(PART, f"mechanism {Mechanism.FUSE}", target.why)
    return target


class Target:
    """A program that waits to be served; changes as it runs.

    Attributes:
        pid: the number of its process.
        mechanism: how the files come to exist for it.
        why: why that mechanism.
        wakes_synchronously: False where every command takes four times as long: on old kernels, and through
            FUSE unless both sides have the same processor.
    """

    def __init__(
        self,
        what: child.Program,
        files: Files,
        mechanism: Mechanism,
        trace: Trace,
        tracer: Tracer | None = None,
    ) -> None:
        self.mechanism, self.why = mechanism, ""
        self._what, self._files, self._trace = what, files, trace
        self._tracer = tracer
        self._status: int | None = None
        self._over = self._is_inside = False
        self._not_started: RedirectError | None = None
        self._reaper_before = _is_reaper()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._signals = SignalQueue()
        self._descriptors: list[int] = []
        self._door, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._door.close()
                child.walk_through(
                    inside,
                    what,
                    files,
                    mechanism=mechanism,
                    parent=parent,
                    blocked=self._signals.before,
                )
            except Exception as error:  # nobody else would hear of it
                child.say(inside, failed=f"the program's process failed: {error!r}")
            finally:
                os._exit(125)
        self._limit_before = raise_limit()  # ours, now that the program has its own
        inside.close()
        try:
            self._descriptors = self._meet()
            if tracer is not None:
                tracer.seize(self.pid)
        except BaseException:
            self._end()
            raise
        self._listener = None if mechanism is Mechanism.FUSE else Listener(self._descriptors.pop())
        self.wakes_synchronously = self._listener is not None and self._listener.wake_synchronously()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ending(self) -> int:
        """A descriptor that is readable while a signal that ends us waits."""
        return self._signals.ending

    def interrupted(self) -> None:
        """Hear of signals in the middle of a command, for which the device waits for somebody else.

        Before the program is let in they stay: they end us, as soon as we let them through.
        """
        if self._is_inside:
            self._take_signals()

    def close(self) -> None:
        """Kill the program if it has not ended, and give everything back."""
        if self._listener is not None:
            self._listener.close()
        self._end()

    def serve(self, devices: Mapping[str, AnyDevice]) -> Ending:
        """Let the program in and serve it until the last process that it has left behind is gone.

        Args:
            devices: one for each of the files' ``served``.

        Raises:
            NotStarted: there is no such program, or it cannot be executed.
            RedirectError: a fault of ours has kept it from being executed.
        """
        server = self._server(devices)
        try:
            server.watch(self._door.fileno(), lambda: self._at_the_door(server))
            server.watch(self._signals.fileno(), self._take_signals)
            self._door.send(child.GO)
            self._is_inside = True
            server.run(lambda: self._over)
        finally:
            server.close()
        code = os.waitstatus_to_exitcode(self._wait_for_end())
        self._hear()  # the mounts may have gone before the door was looked at
        if self._not_started:
            raise self._not_started
        return Ending(code, None) if code >= 0 else Ending(None, -code)

    def _server(self, devices: Mapping[str, AnyDevice]) -> Server | FuseServer:
        if self._listener is not None:
            return Server(self._listener, self._files, devices, trace=self._trace)
        channels, self._descriptors = self._descriptors, []  # they are the server's from now on
        return FuseServer(channels, self._files, devices, trace=self._trace)

    def _meet(self) -> list[int]:
        """Receive what the program is served through; raises what went wrong instead."""
        message, descriptors, _, _ = socket.recv_fds(self._door, _MESSAGE, len(self._files.devices) or 1)
        if descriptors:
            return descriptors
        said = json.loads(message or b"{}")
        if "namespace" in said:
            raise NamespaceRefused(said["namespace"])
        raise RedirectError(said.get("failed", "the program's process ended before it was a program"))

    def _at_the_door(self, server: Server | FuseServer) -> None:
        """Hear whether the program was executed: its end of the door closes by itself then."""
        server.forget(self._door.fileno())
        self._hear()

    def _hear(self) -> None:
        """Take what is said at the door; nothing is left to hear the second time."""
        said = self._door.recv(_MESSAGE)
        if said:
            why = json.loads(said)
            if "failed" in why:
                self._not_started = RedirectError(why["failed"])
                return
            code: int = why["errno"]
            text = f"{self._what.argv[0]}: {os.strerror(code)}"
            self._not_started = NotStarted(text, found=code != errno.ENOENT)

    def _take_signals(self) -> None:
        self._reap()  # first: a signal for a program that has ended would go nowhere
        for number, from_kernel in self._signals.take():
            if number == signal.SIGCHLD:
                self._reap()
            elif self._status is not None:
                self._over = self._over or number in ENDING  # whatever its daemons do
            elif not from_kernel:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while self._wait(-1, os.WNOHANG):
                pass

    def _wait(self, whom: int, options: int) -> bool:
        """Hear of one child: its end, or a stop of one that is traced; False if there is nothing to hear."""
        pid, status = os.waitpid(whom, options | (WAIT_ALL if self._tracer else 0))
        if pid and self._tracer is not None and os.WIFSTOPPED(status):
            ended = self._tracer.stopped(pid, status)
            if ended is None:
                return True
            status = ended
        if pid == self.pid:
            self._status = status
        return pid != 0

    def _wait_for_end(self) -> int:
        """Wait for a program that nobody serves any more: it is about to end, or has unmounted its files."""
        waiting = select.poll()
        waiting.register(self._signals.fileno(), select.POLLIN)
        while self._status is None:
            if not self._wait(self.pid, os.WNOHANG):
                waiting.poll()
                self._take_signals()
        return self._status

    def _end(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._door.close()
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
                while os.WIFSTOPPED(status):  # of one that was traced; its end comes yet
                    _, status = os.waitpid(self.pid, 0)
                self._status = status
        restore_limit(self._limit_before)
        prctl(PR_SET_CHILD_SUBREAPER, self._reaper_before)
        self._signals.close()  # last: one that has waited may end us


def _is_reaper() -> int:
    answer = ctypes.c_int()
    prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(answer))
    return answer.value
