"""Answers one listener: requests go to devices, opens to the files, until no process is left that could call.

One thread, one command after another, as behind the driver's own lock; the kernel queues the others.  Under
mechanism B the opens of all programs queue there too, and a command that takes a second delays them by it.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Mapping
from typing import Final

from cbit.redirect.clients import AnyDevice, Clients, Session
from cbit.redirect.descriptor_limit import NO_MORE, no_more
from cbit.redirect.descriptors import Descriptors
from cbit.redirect.device import Give, report_fault
from cbit.redirect.files import REQUEST_NAMES, Files
from cbit.redirect.given import GivenOut
from cbit.redirect.linux import Call
from cbit.redirect.opens import CALLS, OpenAnswers
from cbit.redirect.process_memory import ProcessMemory
from cbit.redirect.seccomp import Listener, Notification
from cbit.redirect.watching import Watching
from cbit.trace import SILENT, Trace

_LOW: Final = 0xFFFFFFFF
PART: Final = "redirect"
_OURS: Final = frozenset({errno.ESRCH, errno.EIO})  #: what looking for a handle may end with
REASONS: Final = "driver"  #: the part in whose name refusals are explained, whoever refuses


class Server(Watching):
    """Serves the programs behind one listener."""

    def __init__(
        self, listener: Listener, files: Files, devices: Mapping[str, AnyDevice], *, trace: Trace = SILENT
    ) -> None:
        if set(devices) != set(files.served):
            raise ValueError(f"devices are wanted for {files.served}, and given for {tuple(devices)}")
        super().__init__()
        self._listener = listener
        self._devices = devices
        self._requests = {one.path: one.requests for one in files.devices}
        self._requests |= {kind.link: kind.requests for kind in (*files.foreign, *files.given)}
        self._known = frozenset(files.requests)
        self._observed = {kind.link: kind.requests for kind in files.observed}
        self._trace = trace
        self._memory = ProcessMemory(listener)
        descriptors = Descriptors(files)
        self._clients = Clients(devices, descriptors, begun=self._begun, failed=self._failed)
        self._given = GivenOut(devices, descriptors, self, self._failed)
        self._opens = OpenAnswers(files, listener)
        self._poll.register(listener.fileno(), select.EPOLLIN)

    def run(self, until: Callable[[], bool]) -> None:
        """Serve until ``until()`` holds, or the last process that could call has ended."""
        listening = self._listener.fileno()
        while not until():
            calls = 0
            for descriptor, event in self._poll.poll():
                if descriptor == listening:
                    calls = event
                elif descriptor in self._watched:  # not one that an earlier event ended
                    # Before the next call: a process number may pass to another process.
                    self._watched[descriptor]()
            if calls & select.EPOLLIN:
                call = self._listener.receive()
                if call is not None:
                    self.serve(call)
            elif calls:
                return

    def close(self) -> None:
        """Close every handle and descriptor; the listener is its owner's."""
        self._given.close()
        self._clients.close()
        self._opens.close()
        self._poll.close()

    def serve(self, call: Notification) -> None:
        """Answer one call; whatever happens, there is an answer, and the server lives."""
        try:
            if call.number == Call.IOCTL:
                self._ioctl(call)
            elif call.number in CALLS:
                self._opens.serve(call, self._memory.of(id_=call.id, tid=call.tid))
            else:
                self._listener.let_pass(call.id)
        except OSError as error:
            if error.errno in NO_MORE:
                error = no_more()
            if self._listener.answer(call.id, -(error.errno or errno.EIO)):  # the caller is still there
                self._explain(call, error)
        except Exception as error:  # a fault of ours is one client's EIO, not everybody's end
            self._failed(error)
            self._listener.answer(call.id, -errno.EIO)

    def _ioctl(self, call: Notification) -> None:
        number, request, argument = call.arguments[:3]
        request &= _LOW
        session, name = self._clients.named(call.tid, _descriptor(number))
        if name is not None and request in self._observed.get(name, ()):
            self._observe(call, session, name, request)
            return
        if name is None and request not in self._known:
            self._listener.let_pass(call.id)
            return
        if name is None or request not in self._requests.get(name, ()):
            self._listener.answer(call.id, -errno.ENOTTY)
            if name is not None:
                self._explain(call, OSError(errno.ENOTTY, f"cbit's {name} does not answer it"))
            return
        why = ""
        handle = None
        result: int | Give
        try:
            handle = self._clients.handle(session, name, _descriptor(number))
            memory = self._memory.of(id_=call.id, tid=call.tid)
            result = self._devices[name].ioctl(handle, request, argument, memory)
        except OSError as error:
            result, why = -(error.errno or errno.EIO), error.strerror or ""
            if handle is None and error.errno in _OURS:  # no device has been asked, none explains it
                self._explain(call, error)
        if self._trace.watched(PART):
            shown = result if isinstance(result, int) else result.link
            pid = session.client.pid
            self._trace.emit(PART, "ioctl", why, file=name, request=request, client=pid, result=shown)
        if isinstance(result, int):
            self._listener.answer(call.id, result)
        else:
            self._given.give(self._listener, call.id, result, handle)

    def _explain(self, call: Notification, error: OSError) -> None:
        """Say why we refuse a request ourselves; what a device refuses it explains itself."""
        if call.number == Call.IOCTL:
            request = call.arguments[1] & _LOW
            what = REQUEST_NAMES.get(request, f"request {request:#x}")
            symbol = errno.errorcode.get(error.errno or 0, "EIO")
            self._trace.emit(REASONS, what, error.strerror or symbol, errno=symbol)

    def _observe(self, call: Notification, session: Session, name: str, request: int) -> None:
        """See a request pass that the kernel answers."""
        try:
            if name in self._devices:  # of an object that has a device here: it is told
                number, _, argument = call.arguments[:3]
                handle = self._clients.handle(session, name, _descriptor(number))
                memory = self._memory.of(id_=call.id, tid=call.tid)
                self._devices[name].ioctl(handle, request, argument, memory)
            else:
                self._clients.sweep(session)
        except OSError as error:  # the kernel has an answer of its own
            self._trace.emit(PART, "observed", error.strerror or "", file=name, request=request)
        self._listener.let_pass(call.id)

    def _begun(self, pidfd: int) -> None:
        self.watch(pidfd, lambda: self._ended(pidfd))

    def _ended(self, pidfd: int) -> None:
        self.forget(pidfd)
        self._clients.ended(pidfd)

    def _failed(self, error: BaseException) -> None:
        report_fault(self._trace, error)


def _descriptor(word: int) -> int:
    """Return a descriptor number as the kernel takes it; raises EBADF for what cannot be one."""
    number = word & _LOW
    if number >> 31:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return number
