"""Answers the FUSE files of one program, until nobody is left who could open them."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping, Sequence

from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import report_fault
from cbit.redirect.files import Files
from cbit.redirect.fuse import FuseFile
from cbit.redirect.lingering import next_events
from cbit.redirect.watching import Watching
from cbit.trace import SILENT, Trace

MODE = 0o666  #: of the files: the namespace is the program's alone


class FuseServer(Watching):
    """Serves the programs in one mount namespace; one thread, one command after another.

    Args:
        channels: of the files' devices, in their order; taken over.
        files: what the programs find.
        devices: what is behind.
        trace: told of every command.
    """

    def __init__(
        self,
        channels: Sequence[int],
        files: Files,
        devices: Mapping[str, AnyDevice],
        *,
        trace: Trace = SILENT,
    ) -> None:
        if set(devices) != set(files.served):
            raise ValueError(f"devices are wanted for {files.served}, and given for {tuple(devices)}")
        super().__init__()
        self._files: dict[int, FuseFile] = {}
        for channel, one in zip(channels, files.devices, strict=True):
            self._files[channel] = FuseFile(
                channel,
                one,
                devices[one.path],
                mode=MODE,
                failed=lambda error: report_fault(trace, error),
                trace=trace,
            )
            self._poll.register(channel, select.EPOLLIN)

    def run(self, until: Callable[[], bool]) -> None:
        """Serve until ``until()`` holds, or every mount is gone with the last process that could see it."""
        while self._files and not until():
            for descriptor, _ in next_events(self._poll):
                file = self._files.get(descriptor)
                if file is not None:
                    if not file.serve():
                        self._end(descriptor)
                elif descriptor in self._watched:  # not one that an earlier event ended
                    self._watched[descriptor]()

    def close(self) -> None:
        """Close every handle and channel: from now on the files answer ENOTCONN."""
        for channel in list(self._files):
            self._end(channel)
        self._poll.close()

    def _end(self, channel: int) -> None:
        self._poll.unregister(channel)
        self._files.pop(channel).close()
