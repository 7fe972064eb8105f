"""`cbit run --guest … --guest …`: several guests in turn on one machine, each in its own ASID."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.attacks.linux_launch import launch
from cbit.attacks.tenant import Tenant
from cbit.cli import main
from cbit.cli.run.loop import SLICE
from cbit.cli.run.settings import DEFAULT_POLICY
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.engine.errors import EngineFault
from cbit.cpu.faults import VmexitInvalid
from cbit.crypto.entropy import SeededEntropy
from cbit.hypervisor.execution.vcpu import ExecutingVcpu
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.linux_guest import LinuxGuest
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec.address import MIB
from cbit.spec.errors import CbitError, NotModelled
from cbit.spec.key_id import guest as guest_key_id
from cbit.testing.worlds import a_host, a_machine, a_state
from cli.run import kernels
from cli.run.conftest import Ran

Run = Callable[..., Ran]
#: Says three words, and computes for more than a turn between them.
SPIN = (
    b"\xb9" + (SLICE * 3 // 2).to_bytes(4, "little") + b"\x49\x75\xfd"
)  # mov ecx, n; again: dec ecx; jnz again
WORDS = kernels.small(
    kernels.says("one\r\n")
    + SPIN
    + kernels.says("two\r\n")
    + SPIN
    + kernels.says("three\r\n")
    + kernels.POWER_OFF
    + kernels.HALT
)
THREE = ("--guest", "alice", "--guest", "bob,key=alice", "--guest", "carol,mode=none,memory=24M")


def test_three_guests_take_turns_each_in_its_own_asid(run: Run, tmp_path: Path) -> None:
    dump = tmp_path / "dram.bin"
    ran = run(WORDS, "--mode", "sev", *THREE, "--dump-dram", str(dump))
    assert 0 == ran.code, ran.err
    said = re.findall(r"(\w+) +\| (\w+)\r\n", ran.out)
    names, words = ["alice", "bob", "carol"], ["one", "two", "three"]
    assert [(name, word) for word in words for name in names] == said  # nobody waits for the end of another
    guests = ran.report["guests"]
    assert [("alice", ""), ("bob", "alice"), ("carol", "")] == [(g["name"], g["shares"]) for g in guests]
    assert ["sev", "sev", "none"] == [guest["mode"] for guest in guests]
    assert 3 == len({guest["asid"] for guest in guests})
    assert ["trusted", "trusted", None] == [g["launch"] and g["launch"]["verdict"] for g in guests]
    assert [32 * MIB, 32 * MIB, 24 * MIB] == [guest["pages"]["memory_size"] for guest in guests]
    for guest in guests:
        assert ("power-off", [*words, ""]) == (guest["end"], guest["console"])
        assert guest["exits"]["INTR"] >= 2  # its time was over
    for name in ("executed_blocks", "fills", "evictions"):
        assert ran.report[name] == sum(guest[name] for guest in guests)
    assert "bob: milan, 32 MiB, mode sev: a Linux as guest with ASID" in ran.err
    assert "it shares alice's memory key" in ran.err
    report = str(tmp_path / "report.json")
    assert 0 == main(["memory", str(dump), "--report", report, "--guest", "carol"])
    assert 2 == main(["memory", str(dump), "--report", report])


def test_one_seed_gives_the_same_bytes_and_the_same_turns(run: Run) -> None:
    once, again = (run(WORDS, "--mode", "sev", "--seed", "3", *THREE) for _ in range(2))
    assert once.out == again.out
    for name in ("guests", "executed_blocks", "guest_seconds", "fills"):
        assert once.report[name] == again.report[name]


def test_one_that_fails_does_not_end_the_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(kernels.small(kernels.TRIPLE_FAULT))
    ran = run(WORDS, "--guest", f"bad,kernel={tmp_path / 'bad'}", "--guest", "good,mode=sev")
    assert 1 == ran.code
    assert "cbit run: bad: the guest cannot go on: triple fault" in ran.err
    assert "cbit run: good: the guest powered itself off" in ran.err
    assert ["triple-fault", "power-off"] == [guest["end"] for guest in ran.report["guests"]]


@pytest.mark.parametrize("error", [VmexitInvalid, NotModelled, EngineFault])
def test_one_whose_state_is_refused_does_not_end_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[CbitError]
) -> None:
    """No guest can bring its own VMCB into such a state; who else writes there can."""
    enter, first = ExecutingVcpu.enter, list[ExecutingVcpu]()

    def entered(vcpu: ExecutingVcpu, *, blocks: int | None) -> Exit:
        first.append(vcpu)
        if vcpu is first[0] and len(first) > 6:
            raise error("a state of which nothing is known")
        return enter(vcpu, blocks=blocks)

    monkeypatch.setattr(ExecutingVcpu, "enter", entered)
    ran = run(WORDS, "--guest", "bad", "--guest", "good,mode=sev")
    assert 1 == ran.code
    assert re.search("cbit run: bad: the guest cannot go on: .*a state of which nothing is known\n", ran.err)
    assert [("refused", "one"), ("power-off", "one")] == [
        (guest["end"], guest["console"][0]) for guest in ran.report["guests"]
    ]
    assert "bad  | one\r\n" in ran.out


def test_the_text_is_waited_for_at_each_of_them(run: Run, tmp_path: Path) -> None:
    early = kernels.small(kernels.says("ready") + kernels.FOREVER)
    (tmp_path / "late").write_bytes(kernels.small(SPIN + kernels.says("ready") + kernels.FOREVER))
    ran = run(early, "--guest", "a", "--guest", f"b,kernel={tmp_path / 'late'}", "--until", "ready", "--json")
    answer = json.loads(ran.out)
    assert (0, True) == (ran.code, answer["ok"])
    assert ["seen", "seen"] == [guest["end"] for guest in answer["result"]["guests"]]
    assert "a | ready\r\nb | ready\r\n" in ran.err


@pytest.mark.parametrize("shared", [False, True], ids=["a key each", "one key"])
def test_a_shared_key_opens_the_others_memory_and_no_other_does(tmp_path: Path, shared: bool) -> None:
    own = DirectLaunch(kernel=Kernel(kernel=WORDS), memory_size=32 * MIB)
    entropy = SeededEntropy("owner")
    with a_state(tmp_path / "machine") as state:
        host = a_host(a_machine(state, memory_size=128 * MIB))
        owner = Tenant.beside(state, policy=DEFAULT_POLICY)

        def start(share_with: SevGuest | None = None) -> LinuxGuest:
            return launch(host, own.image, owner, entropy=entropy, share_with=share_with)[1]

        alice = start()
        bob = start(alice.sev if shared else None)
        region = own.image.regions[-2]  # the kernel
        host.flush_caches()
        spa, key = alice.vm.spa(region.gpa), guest_key_id(bob.vm.asid)
        read = host.machine.controller.read(spa, 4096, key)
        assert shared is (region.data[:4096] == read)
        bob.end()
        alice.end()


def test_a_policy_may_forbid_to_share(run: Run) -> None:
    ran = run(WORDS, "--mode", "sev", "--policy", "NOKS", "--guest", "a", "--guest", "b,key=a")
    assert 2 == ran.code
    assert "cbit run: LAUNCH_START: POLICY_FAILURE" in ran.err
