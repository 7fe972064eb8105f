"""One run, from a machine that is on to an account of what happened.

load ── launch, compare, seal ── power on ── turns until the end ── survey, WBINVD, dump ── report
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbit.cli.run.console import GuestConsole
from cbit.cli.run.ending import Ending
from cbit.cli.run.loop import CountingClock, Loop
from cbit.cli.run.place import Place
from cbit.cli.run.settings import Settings
from cbit.cli.run.tenant import Owner
from cbit.cli.run.terminal import Keyboard, ending_signals
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.devices.chipset import Chipset
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.execution.bare_metal import LinuxHost
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.linux_guest import LinuxGuest, Session
from cbit.hypervisor.page_survey import PageSurvey
from cbit.hypervisor.survey import survey, survey_machine
from cbit.machine.board import Machine
from cbit.memory.latency import LatencyReport


@dataclass(slots=True)
class Account:
    """What a run came to, as programs read it.

    Mutable: it is filled in as the run goes.

    Attributes:
        ending: how it ended.
        result: everything else.
    """

    ending: Ending
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a run needs of the world.

    Attributes:
        console: where the guest prints.
        keyboard: who types.
        say: takes what a person should know before the guest starts.
        seconds: since some moment; for the time-out and for what took how long.
        cpu_seconds: since some moment, of this process's own time.
        timeout: None: for ever.
        epoch: seconds since 1970, for the guest's clock.
    """

    console: GuestConsole
    keyboard: Keyboard
    say: Callable[[str], None]
    seconds: Callable[[], float] = time.monotonic
    cpu_seconds: Callable[[], float] = time.process_time
    timeout: float | None = None
    epoch: int


def launch(
    host: Host, place: Place, settings: Settings, *, entropy: Entropy
) -> tuple[LinuxGuest, dict[str, Any] | None]:
    """Load the guest; with SEV, let its owner open a session, compare the measurement and seal the secret.

    Returns:
        The guest, not yet powered on, and what the launch came to.

    Raises:
        Untrusted, BadMeasurement, FirmwareError, OutOfMemory: it is not launched, or not as the owner wants.
    """
    if settings.protection is not Protection.SEV:
        return LinuxGuest(host, settings.image, protection=settings.protection), None
    owner = Owner(settings.launch, settings.policy, entropy)
    measuring = owner.open(host.export_chain(), vendor_certs=place.vendor_certs, root=place.root)
    assert measuring.session is not None
    session = Session(
        policy=settings.policy, godh=bytes(measuring.session.godh), blob=bytes(measuring.session.blob)
    )
    guest = LinuxGuest(host, settings.image, protection=settings.protection, session=session)
    try:
        assert guest.receipt is not None
        trusted = owner.check(measuring, guest.receipt)
        if settings.secret:
            guest.inject(*trusted.seal(settings.secret, entropy=entropy))
        return guest, owner.result(guest.receipt) | {"secret_injected": bool(settings.secret)}
    except BaseException:
        guest.end()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Software at its first instruction, whether a guest's or the machine's own.

    Attributes:
        monitor: what runs it.
        exits: gives how often it needed somebody, by what for.
        survey: looks at its pages.
        asid: what tags its accesses; 0 without a hypervisor.
        launched: what a launch came to.
    """

    monitor: Monitor
    exits: Callable[[], dict[str, int]]
    survey: Callable[[], PageSurvey]
    asid: int = 0
    launched: dict[str, Any] | None = None


@contextmanager
def started(
    place: Place, settings: Settings, *, entropy: Entropy, outside: Outside, disks: list[Disk]
) -> Iterator[Started]:
    """Start what is to run, for the time of the block (errors as `run_software`)."""
    machine, console, epoch = place.machine, outside.console, outside.epoch
    if settings.protection is Protection.SME:
        linux = LinuxHost(machine, settings.image, console, epoch=epoch, disks=disks)
        yield Started(
            monitor=linux.monitor, exits=lambda: linux.exits, survey=lambda: survey_machine(machine)
        )
        return
    host = Host(machine)
    host.initialise()
    guest, launched = launch(host, place, settings, entropy=entropy)
    try:
        yield Started(
            monitor=guest.power_on(console, epoch=epoch, disks=disks),
            exits=lambda: guest.exits,
            survey=lambda: survey(guest.vm),
            asid=guest.vm.asid,
            launched=launched,
        )
    finally:
        guest.end()


def run_software(
    place: Place,
    settings: Settings,
    *,
    entropy: Entropy,
    outside: Outside,
    disks: list[Disk],
    dump: Path | None = None,
) -> Account:
    """Run one kernel on a machine until it ends, and give an account.

    Raises:
        NoEngine, EngineFault: guests do not execute here, or the engine failed.
        Untrusted, BadMeasurement, FirmwareError, OutOfMemory: as `launch`.
        OSError: the dump cannot be written.
    """
    machine, begun, cpu_begun = place.machine, outside.seconds(), outside.cpu_seconds()
    with started(place, settings, entropy=entropy, outside=outside, disks=disks) as software:
        result: dict[str, Any] = {
            "mode": str(settings.protection),
            "profile": machine.profile.name,
            "memory_size": settings.image.memory_size,
            "cache_size": settings.cache,
            "command_line": settings.command_line,
            "asid": software.asid,
            "c_bit": {
                "guest": machine.cores[0].guest_features.c_bit,
                "profile": machine.profile.features.c_bit,
            },
            "launch": software.launched,
            "launch_seconds": round(outside.seconds() - begun, 3),
        }
        for line in _beginning(result):
            outside.say(line)
        account = _execute(machine, software, outside)
        result["cpu_seconds"] = round(outside.cpu_seconds() - cpu_begun, 3)
        account.result = result | account.result | _pages(machine, software, dump)
        return account


def _beginning(result: dict[str, Any]) -> list[str]:
    c_bit, launched = result["c_bit"], result["launch"]
    mode, memory = result["mode"], result["memory_size"] >> 20
    who = f"guest with ASID {result['asid']}" if result["asid"] else "host"
    lines = [f"{result['profile']}, {memory} MiB, mode {mode}: a Linux as {who}"]
    if mode != Protection.NONE:
        lines[0] += f"; its C-bit is {c_bit['guest']}, the profile's {c_bit['profile']}"
    if launched is not None:
        lines += [
            f"owner: launch digest of its own copies {launched['digest']}",
            f"owner: measurement {launched['measure']}: it matches",
        ]
        if launched["secret_injected"]:
            lines.append("owner: secret sealed for this launch, injected by LAUNCH_SECRET")
    return lines


def _execute(machine: Machine, software: Started, outside: Outside) -> Account:
    console, monitor = outside.console, software.monitor
    monitor.clock = clock = CountingClock(machine.cores[0])
    chipset = monitor.devices
    assert isinstance(chipset, Chipset)
    if not outside.keyboard.is_terminal:  # what comes through a pipe would be lost on a kernel that starts
        console.hold = lambda: not chipset.serial.listens
    loop = Loop(
        monitor,
        clock,
        console=console,
        keyboard=outside.keyboard,
        listens=lambda: chipset.serial.listens,
        seconds=outside.seconds,
        timeout=outside.timeout,
    )
    memory, before = machine.memory, machine.controller.counts.report()
    fills, evictions, begun, from_ns = memory.fills, memory.evictions, outside.seconds(), clock.ns
    with outside.keyboard.raw(), ending_signals(loop.interrupt), _settled_objects():
        ending = loop.run()
        console.flush()
    after = machine.controller.counts.report()
    exits = monitor.exits
    result: dict[str, Any] = {
        "end": str(ending.end),
        "why": ending.why,
        "seconds": round(outside.seconds() - begun, 3),
        "guest_seconds": round((clock.ns - from_ns) / 1e9, 6),
        "executed_blocks": clock.executed,
        "halts": monitor.halts,
        "exits": software.exits(),
        "fills": memory.fills - fills,
        "evictions": memory.evictions - evictions,
        "latency": _latency(before, after),
        "unknown_msrs": {hex(number): count for number, count in sorted(exits.unknown_msrs.items())},
        "unassigned_ports": {hex(port): count for port, count in sorted(chipset.ports.unassigned.items())},
        "console": console.lines,
    }
    return Account(ending, result)


@contextmanager
def _settled_objects() -> Iterator[None]:
    """Leave what is there alone: each search for garbage would go through all of it, and find none."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _latency(before: LatencyReport, after: LatencyReport) -> dict[str, Any]:
    names = ("reads_encrypted_lines", "reads_plain_lines", "writes_encrypted_lines", "writes_plain_lines")
    moved = {name: getattr(after, name) - getattr(before, name) for name in names}
    return moved | {"extra_ns": after.extra_ns - before.extra_ns, "source": after.source}


def _pages(machine: Machine, software: Started, dump: Path | None) -> dict[str, Any]:
    """Survey the pages as they are, and only then write the caches back for a dump."""
    seen, flushed = software.survey(), 0
    if dump is not None:
        flushed = machine.wbinvd_on_all_cores()
        machine.probe.dump(dump)
    return {
        "dump": None if dump is None else {"file": str(dump), "flushed": flushed},
        "pages": dataclasses.replace(seen, flushed=flushed).as_json(),
    }
