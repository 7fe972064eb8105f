"""What this kernel, and whatever confines this process, lets the launcher do; tried out, not looked up.

A child process tries each thing on itself and reports: it can then be thrown away, filter and namespace and
all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cbit.redirect import fuse, namespace, seccomp
from cbit.redirect.bpf import NOTIFY, Rule, assemble
from cbit.redirect.errors import NamespaceRefused, Unsupported
from cbit.redirect.linux import Call, require_linux, syscall
from cbit.redirect.process_memory import ProcessMemory

#: No kernel has a system call of this number, so the probe's filter concerns nothing.
_NO_CALL: Final = 0x0FFFFFFF

LISTENER: Final = "listener"
WAIT_KILLABLE: Final = "wait_killable"
GIVE: Final = "give"
SYNC_WAKE_UP: Final = "sync_wake_up"
MEMORY: Final = "memory"
PROC: Final = "proc"
NAMESPACE: Final = "namespace"
FUSE: Final = "fuse"

#: Without these no program is run against the machine.
_NEEDED: Final = (LISTENER, WAIT_KILLABLE, MEMORY, PROC)


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What is there.

    Attributes:
        reasons: for each feature that is missing, why; the others are there.
    """

    reasons: Mapping[str, str]

    def has(self, feature: str) -> bool:
        """Tell whether one feature is there."""
        return feature not in self.reasons

    def require(self) -> None:
        """Raise ``Unsupported``, with every reason, if something indispensable is missing."""
        if missing := [self.reasons[feature] for feature in _NEEDED if feature in self.reasons]:
            raise Unsupported("this computer cannot redirect a program's requests: " + "; ".join(missing))


def probe() -> KernelFeatures:
    """Try everything out; takes a few milliseconds and leaves nothing behind.

    Raises:
        Unsupported: not Linux on x86-64.
    """
    require_linux()
    return KernelFeatures(_tried(_reasons))


def why_no_fuse() -> str:
    """Try to serve a file through FUSE in a mount namespace; say why it is refused, "" if it is not.

    Nothing is left behind, but the kernel may load its module for FUSE.

    Raises:
        Unsupported: not Linux on x86-64.
    """
    require_linux()
    return "; ".join(_tried(_fuse_reasons).values())


def require_fuse() -> None:
    """Raise ``Unsupported``, with the reason, if no program can be served through FUSE."""
    if why := why_no_fuse():
        raise Unsupported(f"this computer cannot serve a program through FUSE: {why}")


def _tried(attempts: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Let a child process try things on itself; return what it found."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write_end, json.dumps(attempts()).encode())
            status = 0
        except BaseException:  # a forked copy must not run on as its parent
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as report:
        text = report.read()
    os.waitpid(child, 0)
    if not text:
        raise Unsupported("the process that tries out the kernel's features did not report")
    found: dict[str, str] = json.loads(text)
    return found


def _reasons() -> dict[str, str]:
    """Try each feature on this process, which is of no use afterwards."""
    reasons = {feature: why for feature, attempt in _ATTEMPTS.items() if (why := attempt())}
    if LISTENER not in reasons and WAIT_KILLABLE not in reasons:
        reasons |= _on_a_listener()
    return reasons


def _listener() -> str:
    action = ctypes.c_uint32(NOTIFY)
    sizes = (ctypes.c_uint16 * 3)()
    try:
        syscall(Call.SECCOMP, seccomp.GET_ACTION_AVAIL, 0, ctypes.byref(action))
        syscall(Call.SECCOMP, seccomp.GET_NOTIF_SIZES, 0, ctypes.byref(sizes))
    except OSError as error:
        return f"the kernel, or a sandbox, has no seccomp user notifications (Linux 5.0): {_name(error)}"
    if tuple(sizes) != seccomp.SIZES:
        return f"the kernel's notifications have other sizes than this program knows: {tuple(sizes)}"
    return ""


def _wait_killable() -> str:
    # A filter at address 0: EFAULT if all flags are known, EINVAL if not.
    try:
        syscall(Call.SECCOMP, seccomp.SET_MODE_FILTER, seccomp.FLAGS, None)
    except OSError as error:
        if error.errno == errno.EFAULT:
            return ""
        return (
            "the kernel cannot hold a signal back while a command runs (Linux 5.19), "
            f"so commands would run twice: {_name(error)}"
        )
    return ""


def _proc() -> str:
    return (
        "" if os.path.isdir("/proc/self/fd") else "/proc is not mounted, so no descriptor can be recognised"
    )


def _namespace() -> str:
    try:
        namespace.enter()
    except NamespaceRefused as error:
        return str(error)
    return ""


#: In this order; the namespace does not touch the others.
_ATTEMPTS: Final[Mapping[str, Callable[[], str]]] = {
    LISTENER: _listener,
    WAIT_KILLABLE: _wait_killable,
    PROC: _proc,
    NAMESPACE: _namespace,
}


def _on_a_listener() -> dict[str, str]:
    try:
        listener = seccomp.Listener(seccomp.install(assemble([Rule(_NO_CALL)])))
    except OSError as error:
        return {LISTENER: explain_install(error)}
    reasons = {}
    if not listener.can_give():
        reasons[GIVE] = "the kernel cannot give a descriptor with an answer (Linux 5.14)"
    if not listener.wake_synchronously():
        reasons[SYNC_WAKE_UP] = (
            "the kernel has no synchronous wake-up (Linux 6.6): requests take four times as long"
        )
    if why := _memory():
        reasons[MEMORY] = why
    return reasons


def _fuse_reasons() -> dict[str, str]:
    reasons = {NAMESPACE: _namespace()}
    if not reasons[NAMESPACE]:
        reasons = {PROC: _proc(), FUSE: _fuse(), MEMORY: _memory()}
    return {feature: why for feature, why in reasons.items() if why}


def _fuse() -> str:
    try:
        channel = fuse.open_channel()
    except OSError as error:
        return f"{fuse.DEVICE} cannot be opened: {_name(error)}"
    try:
        fuse.mount_file(channel, os.devnull, mode=0)
    except OSError as error:
        return f"the kernel, or a sandbox, refuses to mount through FUSE: {_name(error)}"
    return ""


class _Nobody:
    """Waits for nothing: of a process that reads its own memory there is no call."""

    def is_current(self, id_: int) -> bool:
        """Tell that the caller is there."""
        return True


def _memory() -> str:
    word = ctypes.create_string_buffer(b"seen")
    try:
        seen = ProcessMemory(_Nobody()).small(os.getpid(), ctypes.addressof(word), 4)
    except OSError as error:
        return f"the memory of a program cannot be read (process_vm_readv): {_name(error)}"
    return "" if seen == b"seen" else "the memory of a program reads wrongly (process_vm_readv)"


def explain_install(error: OSError) -> str:
    """Say what it means that the kernel refuses a listener."""
    if error.errno == errno.EBUSY:
        return (
            "something listens to the system calls of this process already, such as another launcher around "
            "this one or a container runtime, and there can be one listener only"
        )
    return f"the kernel refuses a listener: {_name(error)}"


def _name(error: OSError) -> str:
    with contextlib.suppress(KeyError):
        return errno.errorcode[error.errno or 0]
    return str(error)
