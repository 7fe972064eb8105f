"""``cbit exec``: run an unmodified program that finds /dev/sev.

    fork the program ── it waits ── open or manufacture the machine ── power on ── let the program in

The fork comes first: a child made later would carry the machine's keys in its memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cbit.cli.capabilities import require_machine
from cbit.cli.ending_signals import Ended
from cbit.cli.envelope import Outcome
from cbit.cli.messages import Messages
from cbit.spec.errors import CbitError, NotModelled

if TYPE_CHECKING:
    from cbit.cpu.cpuid import Registers
    from cbit.driver.client_pages import MemoryRule
    from cbit.machine.state_folder import StateFolder
    from cbit.redirect.clients import AnyDevice
    from cbit.redirect.files import Files, Kvm, Mechanism
    from cbit.redirect.launcher import Ending, Target
    from cbit.trace import Event, Trace

HELP = "run an unmodified program that finds /dev/sev"
EXAMPLE = """examples:
  cbit exec --state ./machine -- sevctl export --full chain.cert
  cbit exec --socket ./cbit.sock -- ./my-tests

PROGRAM's exit code is cbit's own; 125: cbit failed before it; 126, 127: PROGRAM cannot be executed, is not
found.  Why the machine refuses a command is said on standard error."""

FAILED: Final = 125  #: exit code: cbit failed, PROGRAM did not run


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.usage = (
        "cbit exec [--json] [--state DIR | --socket PATH] [--mechanism namespace|opens|fuse] [--cpuid]\n"
        "                 [--kvm host|supplied|none] [--guest-memory encrypted|plain] -- PROGRAM [ARGUMENT …]"
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="the machine; without it a new one is made for this run"
    )
    parser.add_argument(
        "--mechanism",
        metavar="M",
        help="namespace (a private mount namespace), opens (answered calls) or fuse (a served file: no call "
        "is watched, no virtual machines); default: namespace where it is allowed, else opens",
    )
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="the machine that cbit serve serves there"
    )
    parser.add_argument(
        "--kvm",
        metavar="K",
        help="host (the kernel's virtual machines), supplied (cbit's own: they launch and do not run) or "
        "none; default: host where /dev/kvm can be opened, else supplied",
    )
    parser.add_argument(
        "--guest-memory",
        metavar="M",
        help="what a virtual machine's pages hold once they are encrypted: encrypted (default of a supplied "
        "KVM) or plain (default of the host's, whose processor has no AES engine)",
    )
    parser.add_argument(
        "--cpuid", action="store_true", help="answer CPUID 8000_001F too, where the processor allows it"
    )
    parser.add_argument("program", nargs="*", metavar="PROGRAM", help="after --, with its arguments")


def run(args: argparse.Namespace) -> Outcome:
    """Run the program to its end; its exit code is the outcome's, a signal that ended it ends us too."""
    reasons: list[str] = []
    try:
        _check(args)
        ending, result = _run(args, reasons)
    except (CbitError, ValueError, OSError) as error:
        code = getattr(error, "exit_code", FAILED)
        return Outcome(ok=False, reasons=(" ".join(str(error).split()),), exit_code=code)
    code = ending.exit_code if args.json else ending.pass_on()
    if not args.json:
        return Outcome(ok=code == 0, exit_code=code)
    ended = (f"{args.program[0]} ended with {code}",) if code else ()
    result |= {"program": args.program, "exit_code": code, "refused": reasons}
    return Outcome(ok=code == 0, result=result, reasons=ended, exit_code=code)


def _check(args: argparse.Namespace) -> None:
    if args.state is not None and args.socket is not None:
        raise ValueError("--state or --socket: a machine of its own, or one that is served")
    if not args.program:
        raise ValueError("name a program: cbit exec [--state DIR] -- PROGRAM [ARGUMENT …]")
    require_machine()
    if args.cpuid:
        from cbit.redirect.tracer import why_not

        if why := why_not():
            raise NotModelled(
                f"--cpuid needs a processor on which CPUID can be made to fault, and this one, or what "
                f"emulates it, cannot (arch_prctl(ARCH_SET_CPUID): {why}); without it a program that "
                f"executes CPUID finds the real answer"
            )


def _run(args: argparse.Namespace, reasons: list[str]) -> tuple[Ending, dict[str, object]]:
    from cbit.redirect.files import sev_files
    from cbit.trace import Trace

    say = Messages("cbit exec")

    def hear(event: Event) -> None:
        if event.why:
            why = f"{event.what}: {event.why}"
            if args.json:
                reasons.append(why)
            say(why)  # whoever reads it or not: no reason to answer the program otherwise

    trace = Trace()
    ended: tuple[Ending, dict[str, object]] | None = None
    try:
        with ExitStack() as stack:
            kvm, rule = _mode(args)
            cpuid = _Cpuid() if args.cpuid else None
            files = sev_files(es=True, kvm=kvm)
            target = stack.enter_context(_started(args, files, cpuid, trace))
            stack.enter_context(trace.watched_by(hear, only="driver"))
            profile, devices = stack.enter_context(_machine(args, kvm, rule, trace, target))
            if cpuid is not None:
                cpuid.becomes(profile)
            ending = target.serve(devices)
            result: dict[str, object] = {
                "mechanism": str(target.mechanism),
                "why": target.why,
                "profile": profile,
                "kvm": str(kvm),
                "guest_memory": str(rule),
            }
            ended = ending, result
    except Ended:
        if ended is None:
            raise
        # It came when the program had ended: its code is ours all the same.
    assert ended is not None
    return ended


class _Cpuid:
    """Answers CPUID as soon as it is known whose."""

    def __init__(self) -> None:
        from cbit.redirect.tracer import Tracer

        self.tracer = Tracer(self._reply)
        self._answer: Callable[[int, int], Registers]

    def becomes(self, profile: str) -> None:
        """Answer as this processor."""
        from cbit.machine.profiles import PROFILES
        from cbit.redirect.processor import Native, answers

        self._answer = answers(PROFILES[profile].features, Native())

    def _reply(self, leaf: int, subleaf: int) -> Registers:
        return self._answer(leaf, subleaf)


def _mechanism(args: argparse.Namespace) -> Mechanism | None:
    from cbit.redirect.files import Mechanism

    if args.mechanism not in (None, *Mechanism):
        raise ValueError(f"--mechanism {args.mechanism}: it is one of {', '.join(Mechanism)}")
    return None if args.mechanism is None else Mechanism(args.mechanism)


def _mode(args: argparse.Namespace) -> tuple[Kvm, MemoryRule]:
    """Say whose virtual machines the program gets, and what their pages hold."""
    from cbit.driver.client_pages import MemoryRule
    from cbit.redirect.files import Kvm, Mechanism
    from cbit.redirect.kvm_requests import KVM

    if args.kvm not in (None, *Kvm):
        raise ValueError(f"--kvm {args.kvm}: it is one of {', '.join(Kvm)}")
    if args.guest_memory not in (None, *MemoryRule):
        raise ValueError(f"--guest-memory {args.guest_memory}: it is one of {', '.join(MemoryRule)}")
    if _mechanism(args) is Mechanism.FUSE:
        if args.kvm not in (None, Kvm.NONE):
            raise ValueError(
                f"--kvm {args.kvm}: through FUSE no requests of virtual machines can be answered, for their "
                f"descriptors are the kernel's; --mechanism {Mechanism.NAMESPACE} or {Mechanism.OPENS} does"
            )
        return Kvm.NONE, MemoryRule(args.guest_memory or "encrypted")
    kvm = Kvm(args.kvm or ("host" if os.access(KVM, os.R_OK | os.W_OK) else "supplied"))
    return kvm, MemoryRule(args.guest_memory or ("plain" if kvm is Kvm.HOST else "encrypted"))


@contextmanager
def _machine(
    args: argparse.Namespace, kvm: Kvm, rule: MemoryRule, trace: Trace, launcher: Target
) -> Iterator[tuple[str, Mapping[str, AnyDevice]]]:
    """Give the profile's name and the devices of a served machine, or of one of our own."""
    from cbit.redirect.files import SEV, Kvm
    from cbit.redirect.kvm import SuppliedKvm
    from cbit.redirect.kvm_requests import KVM_VM

    with ExitStack() as stack:
        if args.socket is not None:
            from cbit.redirect.remote import RemoteMachine

            wanted = (SEV, KVM_VM)
            options = {"guest_memory": str(rule)}
            remote = stack.enter_context(
                RemoteMachine(
                    args.socket,
                    wanted,
                    clock=time.monotonic,
                    options=options,
                    trace=trace,
                    launcher=launcher,
                )
            )
            name = str(remote.answer["profile"])
            devices: dict[str, AnyDevice] = {**remote.devices}
        else:
            from cbit.redirect.backend import Backend

            state = stack.enter_context(_state(args.state, quiet=args.json))
            name, devices = state.profile.name, dict(Backend(state, trace).devices(rule))
        if kvm is Kvm.NONE:
            del devices[KVM_VM]
        if kvm is Kvm.SUPPLIED:
            devices |= SuppliedKvm(devices[KVM_VM], trace).devices
        yield name, devices


@contextmanager
def _started(args: argparse.Namespace, files: Files, cpuid: _Cpuid | None, trace: Trace) -> Iterator[Target]:
    """Fork the program; with --json its standard output becomes standard error, for ours is one object."""
    from cbit.redirect.launcher import start

    with _program_on_stderr(wanted=args.json):
        tracer = cpuid.tracer if cpuid else None
        target = start(args.program, files, mechanism=_mechanism(args), tracer=tracer, trace=trace)
    with target:
        yield target


@contextmanager
def _program_on_stderr(*, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1, inheritable=os.get_inheritable(2))  # one that our caller has closed is closed for it too
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


@contextmanager
def _state(path: Path | None, *, quiet: bool) -> Iterator[StateFolder]:
    """Open the machine's folder, or make a machine that is gone afterwards."""
    from cbit.machine.state_folder import StateFolder

    if path is not None:
        with StateFolder(path) as state:
            yield state
        return
    from cbit.cli.progress import progress
    from cbit.crypto.entropy import SystemEntropy
    from cbit.machine.manufacture import make_root, manufacture
    from cbit.machine.profiles import DEFAULT, profile

    chosen = profile(DEFAULT)
    with tempfile.TemporaryDirectory(prefix="cbit-exec-") as name:
        with progress(f"making a machine ({chosen.name}) for this run", quiet=quiet):
            manufacture(Path(name), chosen, entropy=SystemEntropy(), root=make_root(chosen.root_bits))
        with StateFolder(Path(name)) as state:
            yield state
