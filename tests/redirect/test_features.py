"""What is missing is found out by trying, said with its reason, and decides the mechanism."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cbit.redirect.errors import NamespaceRefused, NotStarted, RedirectError, Unsupported
from cbit.redirect.features import GIVE, LISTENER, MEMORY, NAMESPACE, SYNC_WAKE_UP, KernelFeatures, probe
from cbit.redirect.files import Mechanism, sev_files
from cbit.redirect.launcher import Ending, choose, start
from cbit.redirect.linux import require_linux
from redirect.conftest import command, environment

EVERYTHING = KernelFeatures({})
NO_NAMESPACE = KernelFeatures({NAMESPACE: "refused: EPERM"})
NO_GIVING = KernelFeatures({GIVE: "old"})
NEITHER = KernelFeatures({GIVE: "old", NAMESPACE: "refused"})


@pytest.mark.parametrize(
    ("features", "wanted", "chosen", "why"),
    [
        (EVERYTHING, None, Mechanism.NAMESPACE, "a private mount namespace can be made"),
        (EVERYTHING, Mechanism.OPENS, Mechanism.OPENS, "asked for"),
        (EVERYTHING, Mechanism.NAMESPACE, Mechanism.NAMESPACE, "asked for"),
        (NO_NAMESPACE, None, Mechanism.OPENS, "refused: EPERM"),
        (NO_GIVING, None, Mechanism.NAMESPACE, "a private mount namespace can be made"),
    ],
)
def test_a_mechanism_is_chosen_with_its_reason(
    features: KernelFeatures, wanted: Mechanism | None, chosen: Mechanism, why: str
) -> None:
    assert (chosen, why) == choose(features, wanted)


@pytest.mark.parametrize(
    ("features", "wanted", "error"),
    [
        (NO_NAMESPACE, Mechanism.NAMESPACE, NamespaceRefused),
        (NO_GIVING, Mechanism.OPENS, Unsupported),
        (NEITHER, None, Unsupported),
    ],
)
def test_what_cannot_be_had_is_refused(
    features: KernelFeatures, wanted: Mechanism | None, error: type[RedirectError]
) -> None:
    with pytest.raises(error):
        choose(features, wanted)


def test_every_reason_is_given_for_what_is_indispensable_and_none_for_speed() -> None:
    KernelFeatures({SYNC_WAKE_UP: "slow", NAMESPACE: "refused"}).require()
    with pytest.raises(Unsupported, match="no listener; no memory"):
        KernelFeatures({MEMORY: "no memory", LISTENER: "no listener", SYNC_WAKE_UP: "slow"}).require()


def test_probing_leaves_this_process_as_it_was() -> None:
    def state() -> tuple[int, str, str]:
        status = Path("/proc/self/status").read_text()
        lines = [line for line in status.splitlines() if line.startswith(("Seccomp", "NoNewPrivs"))]
        return len(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), "\n".join(lines)

    before = state()
    assert probe() == probe()
    assert before == state()


@pytest.mark.parametrize(
    ("denied", "why"),
    [
        ("seccomp", "has no seccomp user notifications (Linux 5.0): EPERM"),
        ("process_vm_readv", "the memory of a program cannot be read (process_vm_readv): EPERM"),
    ],
)
def test_what_a_sandbox_takes_away_is_named(denied: str, why: str, client: Path) -> None:
    confined = [sys.executable, str(Path(__file__).with_name("confined.py")), denied]
    words = [*confined, *command([], [client, "exit", 4])]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert 125 == ended.returncode
    assert ended.stderr.startswith("cbit: this computer cannot redirect a program's requests: ")
    assert why in ended.stderr
    assert 1 == len(ended.stderr.splitlines())


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")]
)
def test_elsewhere_it_is_one_clear_sentence(
    system: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(
        Unsupported, match=rf"^running a program .* needs Linux on x86-64; this is .* on {machine}$"
    ):
        require_linux()


def test_only_the_main_thread_starts_programs() -> None:
    said: list[str] = []

    def attempt() -> None:
        try:
            start(["true"], sev_files())
        except RedirectError as error:
            said.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert ["a program is started by the main thread: it dies with the thread that started it"] == said


def test_codes_are_those_of_a_shell() -> None:
    assert (3, 137) == (Ending(3, None).exit_code, Ending(None, 9).exit_code)
    assert 3 == Ending(3, None).pass_on()
    assert (125, 126, 127) == (
        *(RedirectError("").exit_code, NotStarted("", found=True).exit_code),
        NotStarted("", found=False).exit_code,
    )
