"""What a redirected program pays: for a command, and for everything that is none.

A client in C is compiled once and runs twice, alone and under a launcher, each asked in turn to time a batch
of calls by itself.  The device behind answers as PLATFORM_STATUS does: 16 bytes read, 12 and 4 written.

The unrelated ioctl is the cheapest there is, FIONREAD.  A process under any filter enters the kernel by a
longer way, whatever the filter says, and that alone is more than a twentieth of it; so the same call is
measured in a program under a filter that allows everything, too: what is ours is the rest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import cbit
from cbit.cli.bench import qemu
from cbit.cli.bench.figure import Figure, Skipped, medians
from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SystemEntropy
from cbit.driver.caller_memory import CallerMemory
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine
from cbit.machine.manufacture import make_root, manufacture
from cbit.machine.profiles import DEFAULT, profile
from cbit.machine.state_folder import StateFolder
from cbit.owner.session import Session
from cbit.owner.verify.verdict import UnverifiedPlatform
from cbit.redirect.device import Client
from cbit.redirect.errors import RedirectError, Unsupported
from cbit.redirect.features import GIVE, NAMESPACE, SYNC_WAKE_UP, KernelFeatures, probe, why_no_fuse
from cbit.redirect.files import SEV, Mechanism, sev_files
from cbit.redirect.launcher import start
from cbit.spec import buffers
from cbit.spec.certificate import CERT_SIZE, SevCert
from cbit.spec.command import Command
from cbit.spec.policy import Policy

BUDGET_US: Final = 60.0
BUDGET_WITHOUT_SYNC_US: Final = 150.0
COMMANDS: Final = 2000  #: in a batch
CROWD: Final = 6400  #: shared by all clients, so that starting them hardly counts
CALLS: Final = 20000

#: Reads lines "WHAT COUNT CLIENTS" and answers with the nanoseconds of one call.
CLIENT: Final = r"""
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
struct __attribute__((packed)) issue { uint32_t cmd; uint64_t data; uint32_t error; };
static int fd;
static int command(void) {
    unsigned char status[12] = {0};
    struct issue it = {1, (uintptr_t)status, 99};
    return ioctl(fd, 0xC0105300u, &it) || it.error || status[0] != 1;
}
static int unrelated_ioctl(void) { int n; return ioctl(0, FIONREAD, &n); }
static const char *own;
static int unrelated_open(void) { return close(open(own, O_RDONLY)); }
static int allow_everything(void) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}
int main(int words, char **word) {
    char what, byte = 0;
    long count, clients;
    int go[2], done[2];
    own = word[0];
    if (words > 1 && !strcmp(word[1], "filtered") && allow_everything()) return 1;
    fd = open(getenv("DEVICE") ? getenv("DEVICE") : "/dev/sev", O_RDWR);
    if (pipe(go) || pipe(done)) return 1;
    while (scanf(" %c %ld %ld", &what, &count, &clients) == 3) {
        int (*call)(void) = what == 'c' ? command : what == 'i' ? unrelated_ioctl : unrelated_open;
        struct timespec a, b;
        int bad = 0, status;
        for (long i = 1; i < clients; i++) /* all are there and have called before the time begins */
            if (!fork()) {
                bad += call() || write(done[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1;
                for (long j = 0; j < count / clients; j++) bad += call() != 0;
                bad += write(done[1], &byte, 1) != 1;
                _exit(bad != 0);
            }
        for (long i = 1; i < clients; i++) bad += read(done[0], &byte, 1) != 1;
        bad += call() != 0;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (long i = 1; i < clients; i++) bad += write(go[1], &byte, 1) != 1;
        for (long j = 0; j < count / clients; j++) bad += call() != 0;
        for (long i = 1; i < clients; i++) bad += read(done[0], &byte, 1) != 1;
        clock_gettime(CLOCK_MONOTONIC, &b);
        while (wait(&status) > 0) bad += status != 0;
        double ns = (b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec;
        printf("%f\n", bad ? -1.0 : ns / count);
        fflush(stdout);
    }
    return 0;
}
"""


def figures(rounds: int) -> list[Figure | Skipped]:
    """Measure each mechanism that is allowed here, and QEMU's way to a launch measurement.

    Raises:
        Unsupported: no program can be redirected here, or there is no C compiler.
    """
    features = probe()
    features.require()
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unsupported("this figure compiles a client, and there is no C compiler: install cc")
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as folder:
        source, client = Path(folder, "client.c"), Path(folder, "client")
        source.write_text(CLIENT, encoding="utf-8")
        subprocess.run([compiler, "-O2", "-o", client, source], check=True)
        found: list[Figure] = []
        if features.has(NAMESPACE):
            found += _under(Mechanism.NAMESPACE, client, features, rounds)
        if features.has(GIVE):
            found += _under(Mechanism.OPENS, client, features, rounds)
        if not why_no_fuse():
            found += _under(Mechanism.FUSE, client, features, rounds)
        return [*found, *_whole(client, features, rounds), qemu.figure(Path(folder), rounds)]


def _under(mechanism: Mechanism, client: Path, features: KernelFeatures, rounds: int) -> list[Figure]:
    launcher = [sys.executable, "-m", __name__, mechanism, str(client)]
    reach = "" if mechanism is Mechanism.OPENS else "<= 1.05"
    with ExitStack() as stack:
        alone = stack.enter_context(_asked([str(client)]))
        filtered = stack.enter_context(_asked([str(client), "filtered"]))
        redirected = stack.enter_context(_asked(launcher))
        found = [
            _command(mechanism, redirected, features, rounds),
            _crowd(mechanism, redirected, rounds),
            _unrelated(mechanism, "open()", (redirected, alone), rounds=rounds, reach=reach),
            _unrelated(mechanism, "ioctl()", (redirected, alone), rounds=rounds, reach=reach),
        ]
        if mechanism is not Mechanism.FUSE:  # which has no filter
            found.append(_beside_a_filter(mechanism, (redirected, filtered), rounds=rounds, reach=reach))
        return found


def _whole(client: Path, features: KernelFeatures, rounds: int) -> list[Figure]:
    """Measure PLATFORM_STATUS with the model behind, of one's own or served; and LAUNCH_START."""
    mechanism = Mechanism.NAMESPACE if features.has(NAMESPACE) else Mechanism.OPENS
    budget = BUDGET_US if features.has(SYNC_WAKE_UP) else BUDGET_WITHOUT_SYNC_US
    command = [sys.executable, "-m", "cbit"]
    state, sock = client.parent / "machine", client.parent / "cbit.sock"
    manufacture(state, profile(DEFAULT), entropy=SystemEntropy(), root=make_root(2048))
    found = []
    with ExitStack() as stack:
        run = [*command, "exec", "--kvm", "none", "--mechanism", mechanism]
        ways = {"own machine": [*run, "--state", str(state), "--", str(client)]}
        for name, words in ways.items():
            with _asked(words) as one:
                found.append(_status(name, one, budget, rounds))
        serve = [*command, "serve", "--state", str(state), "--socket", str(sock)]
        device = state.with_name("sev") if os.geteuid() == 0 and not why_no_fuse() else None
        stack.enter_context(_daemon([*serve, *(("--device", str(device)) if device else ())], sock))
        served = stack.enter_context(_asked([*run, "--socket", str(sock), "--", str(client)]))
        found.append(_status("served machine", served, budget, rounds))
        if device is not None:
            one = stack.enter_context(_asked([str(client)], DEVICE=str(device)))
            found.append(_status("served device", one, budget, rounds))
    with StateFolder(state) as folder:
        machine = Machine(folder)
        machine.power_on()
        host = Host(machine)
        host.initialise()
        found.append(_launch_start(host, rounds))
    return found


def _status(name: str, asked: _Asked, budget: float, rounds: int) -> Figure:
    asked.ask("c", COMMANDS // 4)
    ours, limit, ratio = medians([(asked.ask("c", COMMANDS // 4), budget) for _ in range(rounds)])
    against = f"the budget of a command, {budget:g} us on this kernel"
    return Figure("redirect", f"PLATFORM_STATUS, {name}", ours, limit, "us", ratio, against, "<= 1.0")


def _launch_start(host: Host, rounds: int) -> Figure:
    """LAUNCH_START with an owner's session, against its elliptic-curve operations."""
    policy = int(Policy.NODBG)
    pdh = SevCert.parse(host.export_chain()[:CERT_SIZE])
    session = Session.open(UnverifiedPlatform.dangerously_trust(pdh), policy=policy).session
    assert session is not None
    own = ec.random_key(SystemEntropy())

    def start() -> float:
        with host.lent(bytes(session.godh)) as godh, host.lent(bytes(session.blob)) as blob:
            request = buffers.LaunchStart(
                handle=0,
                policy=policy,
                dh_cert_paddr=godh,
                dh_cert_len=len(bytes(session.godh)),
                session_paddr=blob,
                session_len=len(bytes(session.blob)),
            )
            begun = time.perf_counter()
            handle = host.ccp.call(Command.LAUNCH_START, request).handle
            took = time.perf_counter() - begun
        host.ccp.call(Command.DECOMMISSION, buffers.GuestHandle(handle=handle))
        return 1e6 * took

    def floor() -> float:
        begun = time.perf_counter()
        ec.shared_secret(own, sev_cert.public_key(session.godh))
        return 1e6 * (time.perf_counter() - begun)

    start(), floor()
    times = [
        (statistics.median(start() for _ in range(20)), statistics.median(floor() for _ in range(20)))
        for _ in range(rounds)
    ]
    ours, limit, ratio = medians(times)
    against = "of LAUNCH_START: one P-384 key agreement with a fresh certificate"
    return Figure("redirect", "LAUNCH_START", ours, limit, "us", ratio, against, "<= 1.6")


@contextmanager
def _daemon(words: Sequence[str], sock: Path) -> Iterator[None]:
    where = {"PYTHONPATH": str(Path(cbit.__file__).parents[1])}
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ | where) as process:
        try:
            for _ in range(2000):
                if sock.exists() or process.poll() is not None:
                    break
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


def _command(mechanism: Mechanism, redirected: _Asked, features: KernelFeatures, rounds: int) -> Figure:
    budget = BUDGET_US if features.has(SYNC_WAKE_UP) else BUDGET_WITHOUT_SYNC_US
    redirected.ask("c", COMMANDS)
    ours, limit, ratio = medians([(redirected.ask("c", COMMANDS), budget) for _ in range(rounds)])
    name = f"command, {mechanism}"
    against = (
        f"the budget of a command, {budget:g} us on this kernel; of an unrelated call, the same call alone"
    )
    return Figure("redirect", name, ours, limit, "us", ratio, against, "<= 1.0")


def _crowd(mechanism: Mechanism, redirected: _Asked, rounds: int) -> Figure:
    redirected.ask("c", CROWD, clients=64)
    times = [
        (redirected.ask("c", CROWD, clients=64), redirected.ask("c", CROWD, clients=8)) for _ in range(rounds)
    ]
    ours, limit, ratio = medians(times)
    against = "a command of 64 clients: of 8 clients"
    return Figure("redirect", f"64 clients, {mechanism}", ours, limit, "us", ratio, against, "<= 1.1")


def _unrelated(
    mechanism: Mechanism, what: str, both: tuple[_Asked, _Asked], *, rounds: int, reach: str
) -> Figure:
    redirected, alone = both
    letter = what[0]
    redirected.ask(letter, CALLS)
    alone.ask(letter, CALLS)
    times = [(redirected.ask(letter, CALLS), alone.ask(letter, CALLS)) for _ in range(rounds)]
    ours, limit, ratio = medians(times)
    against = "the same call in the same program alone"
    return Figure("redirect", f"{what}, {mechanism}", ours, limit, "us", ratio, against, reach)


def _beside_a_filter(mechanism: Mechanism, both: tuple[_Asked, _Asked], *, rounds: int, reach: str) -> Figure:
    figure = _unrelated(mechanism, "ioctl()", both, rounds=rounds, reach=reach)
    against = "the same call in a program whose filter allows everything"
    return replace(figure, name=f"ioctl(), {mechanism}, filter", against=against)


class _Asked:
    """A client that waits to be asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str, count: int, *, clients: int = 1) -> float:
        """Return the microseconds of one call, of ``count`` that ``clients`` processes share."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{what} {count} {clients}\n")
        self._process.stdin.flush()
        answer = float(self._process.stdout.readline() or -1)
        if answer < 0:
            raise RedirectError("the measured client failed")
        return answer / 1e3


@contextmanager
def _asked(words: Sequence[str], **variables: str) -> Iterator[_Asked]:
    where = {"PYTHONPATH": str(Path(cbit.__file__).parents[1]), **variables}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | where
    )
    with process:
        yield _Asked(process)
        assert process.stdin
        process.stdin.close()


class _Status:
    """A device that answers each request as PLATFORM_STATUS is answered."""

    def open(self, client: Client, *, writable: bool) -> None:
        """Keep nothing."""

    def ioctl(self, handle: None, request: int, argument: int, memory: CallerMemory) -> int:
        """Answer."""
        _, data, _ = _ISSUE.unpack(memory.read(argument, _ISSUE.size))
        memory.write_all([(data, _ANSWER), (argument + 12, bytes(4))])
        return 0

    def close(self, handle: None) -> None:
        """Nothing is kept."""


_ISSUE: Final = struct.Struct("<IQI")
_ANSWER: Final = struct.pack("<BBBIBI", 1, 55, 1, 0, 24, 7)


def _launch(mechanism: str, client: str) -> int:
    with start([client], sev_files(), mechanism=Mechanism(mechanism)) as target:
        return target.serve({SEV: _Status()}).pass_on()


if __name__ == "__main__":
    sys.exit(_launch(*sys.argv[1:]))
