"""`cbit run` with kernels of a few instructions: every way to end, what is measured, what is left behind."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.attacks.linux_launch import check, launch
from cbit.attacks.tenant import Tenant
from cbit.cli import main
from cbit.cli.run.settings import DEFAULT_POLICY, table_of
from cbit.crypto.entropy import SeededEntropy
from cbit.driver.errors import FirmwareError
from cbit.memory.probe import Probe
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi
from cbit.spec.address import MIB
from cbit.spec.errors import BadMeasurement
from cbit.spec.linux_boot import ACPI_BASE, boot_image, command_line
from cbit.testing.worlds import a_host, a_machine, a_state
from cli.run import kernels
from cli.run.conftest import Ran

Run = Callable[..., Ran]
MODES = pytest.mark.parametrize("mode", ["none", "sme", "sev"])
BYE = kernels.says("bye\r\n") + kernels.POWER_OFF + kernels.HALT
MEMORY = 32 * MIB
PLANTED = b"the tenant's planted sentence!!!"
PLANTED_AT = 0x60_0000


@MODES
def test_a_guest_prints_and_powers_itself_off(run: Run, mode: str) -> None:
    ran = run(kernels.small(BYE), "--mode", mode)
    assert (0, "bye\r\n") == (ran.code, ran.out)
    assert ("power-off", ["bye", ""]) == (ran.report["end"], ran.report["console"])
    assert {"guest": 39, "profile": 51} == ran.report["c_bit"]
    assert 0 < ran.report["executed_blocks"] < 1000
    assert 6 == ran.report["exits"]["IOIO"]
    if mode == "sev":  # the launch left ciphertext in DRAM; the plain image may be in the cache still
        assert ran.report["fills"] > 0
        assert ran.report["latency"]["extra_ns"] > 0
    assert ran.report["cpu_seconds"] > 0
    assert MEMORY == ran.report["pages"]["memory_size"]


@pytest.mark.parametrize("guests", [(), ("--guest", "alice", "--guest", "bob,mode=none")])
def test_the_reference_has_each_member_of_a_report(run: Run, guests: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/json.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`(\w+)`", page.partition("## The report of `cbit run`")[2].partition("\n## ")[0])
    )
    ran = run(kernels.small(BYE), "--mode", "sev", *guests)
    each = ran.report.get("guests", [ran.report])
    inside = [part for guest in each for part in (guest["launch"] or {}, guest["pages"])]
    assert set() == set().union(ran.report, *each, *inside) - named


def test_the_owner_compares_before_the_guest_starts(run: Run) -> None:
    ran = run(kernels.small(BYE), "--mode", "sev", "--policy", "NODBG|NOKS")
    launch = ran.report["launch"]
    assert ("trusted", 3) == (launch["verdict"], launch["policy"])
    assert f"owner: launch digest of its own copies {launch['digest']}" in ran.err
    kernel = Kernel(kernel=kernels.small(BYE))
    assert launch["digest"] == DirectLaunch(kernel=kernel, memory_size=MEMORY).expectation().digest.hex()


def test_a_text_that_comes_ends_the_run_well(run: Run) -> None:
    ran = run(kernels.small(kernels.says("login: ") + kernels.FOREVER), "--until", "login: ")
    assert (0, "seen", "login: ") == (ran.code, ran.report["end"], ran.out)


def test_a_text_that_does_not_come_times_out(run: Run) -> None:
    ran = run(kernels.small(kernels.says("log") + kernels.FOREVER), "--until", "login: ", "--timeout", "0.2")
    assert (1, "timeout") == (ran.code, ran.report["end"])
    assert "cbit run: time-out: the guest still runs after 0.2 s" in ran.err


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda nv: nv.write_bytes(nv.read_bytes()[:100]), "NV store: 100 bytes, must be 6496: torn"),
    "altered": (lambda nv: nv.write_bytes(bytes(6496)), "NV store: the MAC does not match"),
    "missing": (Path.unlink, "sev.nv is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_reported_and_what_it_held_is_made_anew(
    run: Run, tmp_path: Path, damage: str
) -> None:
    well, folder = (0, None), tmp_path / "machine"
    assert 0 == main(["setup", "--profile", "naples", "--state", str(folder)])
    harm, words = DAMAGES[damage]
    ran = run(kernels.small(BYE), "--mode", "sev", machine=folder)
    assert well == (ran.code, ran.report["new_identity"])
    assert "identity" not in ran.err
    harm(folder / "spi" / "sev.nv")
    ran = run(kernels.small(BYE), "--mode", "sev", machine=folder)
    assert 0 == ran.code
    assert words in ran.report["new_identity"]
    (line,) = (line for line in ran.err.splitlines() if "new identity" in line)
    assert f"cbit run: {ran.report['new_identity']}; the platform has made itself a new identity" in line
    ran = run(kernels.small(BYE), "--mode", "sev", machine=folder)
    assert well == (ran.code, ran.report["new_identity"])


def test_a_report_that_does_not_fit_is_named_and_the_rest_is_said(run: Run) -> None:
    ran = run(kernels.small(BYE), "--report", "/dev/full")
    assert (2, "bye\r\n") == (ran.code, ran.out)
    assert "cbit run: the guest powered itself off" in ran.err
    assert "cbit run: --report /dev/full: No space left on device" in ran.err.splitlines()


def test_a_dump_that_does_not_fit_is_named_and_the_report_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_probe: Probe, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Probe, "dump", full)
    dump = tmp_path / "dram.bin"
    ran = run(kernels.small(BYE), "--dump-dram", str(dump))
    why = f"{dump}: No space left on device"
    assert (2, why) == (ran.code, ran.report["dump"]["error"])
    assert f"cbit run: --dump-dram {why}" in ran.err.splitlines()
    assert ("power-off", ["bye", ""]) == (ran.report["end"], ran.report["console"])


@pytest.mark.parametrize("code", [BYE, kernels.TRIPLE_FAULT])
def test_a_report_replaces_the_old_one_as_a_whole(run: Run, tmp_path: Path, code: bytes) -> None:
    report = tmp_path / "report.json"
    report.write_text('{"old": true}')
    assert 2 == run(b"no kernel").code
    assert '{"old": true}' == report.read_text()
    assert "end" in run(kernels.small(code)).report
    assert ["kernel", "report.json"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_cache_beyond_this_computer_is_named(run: Run) -> None:
    ran = run(kernels.small(BYE), "--cache", "1000000G")
    assert (2, {}) == (ran.code, ran.report)
    assert "cbit run: --memory 32M, --cache 1000000G: this computer has no room for such a machine" in ran.err


@pytest.mark.parametrize("profile", ["naples", "garbage"])
def test_a_machine_of_another_profile_is_not_taken_for_one(run: Run, machine: Path, profile: str) -> None:
    ran = run(kernels.small(BYE), "--profile", profile)
    assert (2, b"", {}) == (ran.code, ran.raw, ran.report)
    words = f"--profile naples: the machine in {machine} is milan" if profile == "naples" else "no profile"
    assert words in ran.err


def test_a_machine_of_the_profile_that_is_asked_for_runs(run: Run) -> None:
    assert 0 == run(kernels.small(BYE), "--profile", "milan").code


@MODES
def test_the_smallest_cache_does(run: Run, mode: str) -> None:
    ran = run(kernels.small(BYE), "--mode", mode, "--cache", "256K")
    assert (0, "bye\r\n", 256 << 10) == (ran.code, ran.out, ran.report["cache_size"])


def test_a_guest_that_gets_nowhere_times_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbit.cli.run.LEAST_CACHE", 4096)  # no room for code and data at once
    ran = run(kernels.small(kernels.reads(PLANTED_AT) + BYE), "--cache", "4K", "--timeout", "0.5")
    assert (1, "timeout", "") == (ran.code, ran.report["end"], ran.out)
    assert ran.report["executed_blocks"] <= 1


@pytest.mark.parametrize(
    ("code", "end", "words"),
    [
        (kernels.TRIPLE_FAULT, "triple-fault", "triple fault at 0x1000000"),
        (kernels.reads(0xFEC0_0000), "no-memory", "read of guest physical 0xfec00000, where nothing is"),
        (kernels.HALT, "halted", "HLT with interrupts disabled: nothing will wake it"),
    ],
)
@MODES
def test_a_guest_that_cannot_go_on_is_described(
    run: Run, mode: str, code: bytes, end: str, words: str
) -> None:
    ran = run(kernels.small(code), "--mode", mode)
    assert (1, end) == (ran.code, ran.report["end"])
    assert words in ran.err


@pytest.mark.parametrize("mode", ["none", "sme"])
def test_the_chipsets_absent_registers_read_as_ones(run: Run, mode: str) -> None:
    hang_unless_ones = b"\x40\x75\xfe"  # inc eax; here: jnz here
    ran = run(kernels.small(kernels.reads(0xFED8_03C0) + hang_unless_ones + BYE), "--mode", mode)
    assert (0, "bye\r\n") == (ran.code, ran.out)


@MODES
def test_a_write_to_the_absent_registers_ends_the_run(run: Run, mode: str) -> None:
    ran = run(kernels.small(kernels.writes(0xFED8_03C0, b"reset") + BYE), "--mode", mode)
    assert (1, "no-memory") == (ran.code, ran.report["end"])
    assert "write to guest physical 0xfed803c0, where nothing is" in ran.err


@MODES
def test_string_output_prints_or_an_encrypted_guest_is_told_that_it_does_not(run: Run, mode: str) -> None:
    text = b"a string\r\n"
    prints = kernels.sends_memory(PLANTED_AT, len(text)) + kernels.POWER_OFF + kernels.HALT
    ran = run(kernels.small(kernels.writes(PLANTED_AT, text) + prints), "--mode", mode)
    if mode == "sev":
        assert (1, b"", {"0x3f8": 1}) == (ran.code, ran.raw, ran.report["refused_string_io"])
        assert "INS or OUTS at port 0x3f8 is an invalid opcode to an encrypted guest" in ran.err
    else:
        assert (0, text, {}) == (ran.code, ran.raw, ran.report["refused_string_io"])
        assert 2 == ran.report["exits"]["IOIO"]


def test_a_reset_ends_the_run(run: Run) -> None:
    ran = run(kernels.small(kernels.RESET + kernels.HALT))
    assert (0, "reboot") == (ran.code, ran.report["end"])


@pytest.mark.parametrize("then", [kernels.RESET, kernels.FOREVER], ids=["resets", "hangs"])
def test_a_panic_is_none_the_less_a_panic_for_the_reset_behind_it(run: Run, then: bytes) -> None:
    said = "[    0.1] Kernel panic - not syncing: no init\r\n"
    ran = run(kernels.small(kernels.says(said) + then), "--timeout", "100")
    assert (1, "panic") == (ran.code, ran.report["end"])
    assert "cbit run: Kernel panic - not syncing: no init" in ran.err


VERSION = "[    0.000000] Linux version 6.1.0\r\n"
PANIC = "Kernel panic - not syncing: no init"


@pytest.mark.parametrize(
    "said",
    [
        f"{VERSION}[   12.345678] {PANIC}\r\n",
        f"{VERSION}/ # [   12.345678] {PANIC}\r\n",  # behind a prompt
        f"{VERSION}[   12.345678][    T1] {PANIC}\r\n",
        f"<0>[   12.345678] {PANIC}\r\n",
        f"Linux version 6.1.0\r\n{PANIC}\r\n",  # printk.time=0
        f"<0>{PANIC}\r\n",
    ],
)
def test_a_kernels_own_panic_is_known(run: Run, said: str) -> None:
    ran = run(kernels.small(kernels.says(said) + kernels.RESET + kernels.HALT))
    assert (1, "panic", PANIC) == (ran.code, ran.report["end"], ran.report["why"])


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (f"{VERSION}/ # echo {PANIC}\r\n{PANIC}\r\n", kernels.POWER_OFF),
        (f"{VERSION}/ # echo {PANIC}\r\n{PANIC}\r\n", kernels.RESET),
        (f"{VERSION}init: [12] {PANIC}\r\n", kernels.RESET),
        (f"Linux version 6.1.0\r\n/ # echo {PANIC}\r\n", kernels.RESET),
        (f"{VERSION}[   12.345678] {PANIC}\r\n", kernels.POWER_OFF),  # an old log: a panic does not power off
    ],
)
def test_the_same_words_of_a_program_are_no_panic(run: Run, said: str, end: bytes) -> None:
    ran = run(kernels.small(kernels.says(said) + end + kernels.HALT))
    assert (0, {kernels.POWER_OFF: "power-off", kernels.RESET: "reboot"}[end]) == (
        ran.code,
        ran.report["end"],
    )


DEADLOCKED = "Kernel panic - not syncing: System is deadlocked on memory"
BOUNCES = "[    0.0] software IO TLB: SWIOTLB bounce buffer size adjusted to 64MB\r\n"


@pytest.mark.parametrize(
    ("before", "panic", "explained"),
    [
        (BOUNCES, DEADLOCKED, True),
        (BOUNCES, "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom", True),
        ("", DEADLOCKED, False),  # nobody says what took the memory
        (BOUNCES, "Kernel panic - not syncing: no init", False),  # not for want of memory
    ],
)
def test_a_panic_for_want_of_memory_names_the_bounce_buffers_that_took_it(
    run: Run, before: str, panic: str, explained: bool
) -> None:
    kernel = kernels.small(kernels.says(f"{before}[    0.1] {panic}\r\n") + kernels.RESET)
    ran = run(kernel, "--timeout", "100")
    assert (1, "panic") == (ran.code, ran.report["end"])
    assert ran.report["why"].startswith(panic)
    assert explained == ("64 MiB of its memory went to bounce buffers" in ran.report["why"])
    assert explained == ("--append swiotlb=8192" in ran.err)


def test_one_seed_gives_the_same_bytes_and_blocks(run: Run) -> None:
    random = b"\x0f\xc7\xf0\x66\xba\xf8\x03\xee"  # rdrand eax; mov dx, 0x3F8; out dx, al
    kernel = kernels.small(8 * random + BYE)
    ones, twos, other = (run(kernel, "--seed", seed, "--mode", "sev").report for seed in ("1", "1", "2"))
    for name in ("console", "executed_blocks", "exits", "fills", "launch", "guest_seconds"):
        assert ones[name] == twos[name]
    assert ones["console"] != other["console"]


def test_with_json_standard_output_is_one_object(run: Run) -> None:
    ran = run(kernels.small(BYE), "--json")
    answer = json.loads(ran.out)
    assert (True, "run", ["bye", ""]) == (answer["ok"], answer["command"], answer["result"]["console"])
    assert "bye" in ran.err


# --- the secret


@MODES
def test_the_secret_is_where_user_space_will_look(run: Run, tmp_path: Path, mode: str) -> None:
    (tmp_path / "secret").write_bytes(b"open sesame")
    code = kernels.prints_memory(kernels.secret_address(MEMORY), 64) + kernels.POWER_OFF + kernels.HALT
    ran = run(kernels.small(code), "--mode", mode, "--secret", str(tmp_path / "secret"))
    assert table_of(b"open sesame").ljust(64, b"\0") == ran.raw
    assert bytes(64) == run(kernels.small(code), "--mode", mode).raw


# --- what an administrator sees


# A host that does not set the C-bit stores plaintext under SME too.
@pytest.mark.parametrize(("mode", "found"), [("none", True), ("sme", True), ("sev", False)])
def test_a_dump_holds_what_the_guest_wrote_or_its_ciphertext(
    run: Run, tmp_path: Path, mode: str, found: bool
) -> None:
    dump = tmp_path / "dram.bin"
    code = kernels.writes(PLANTED_AT, PLANTED) + BYE
    ran = run(kernels.small(code), "--mode", mode, "--dump-dram", str(dump))
    runs = ran.report["pages"]["guest"]
    page = PLANTED_AT >> 12
    (spa,) = (first + page - gpa for gpa, first, count, _ in runs if gpa <= page < gpa + count)
    held = dump.read_bytes()[spa << 12 :][: len(PLANTED)]
    assert any(held)
    assert found is (held == PLANTED)
    assert ran.report["dump"]["flushed"] == ran.report["pages"]["flushed"] > 0
    assert f"WBINVD wrote {ran.report['dump']['flushed']} pages back" in ran.err
    assert 0 == main(["memory", str(dump), "--report", str(tmp_path / "report.json")])


# --- a hypervisor that changes one byte


@pytest.mark.parametrize("what", ["nothing", "kernel", "initrd", "append"])
def test_a_byte_that_the_hypervisor_changed_is_measured(tmp_path: Path, what: str) -> None:
    mine = Kernel(kernel=kernels.small(BYE), initrd=b"an initrd", cmdline="quiet")
    flipped = {"kernel": bytearray(mine.kernel), "initrd": bytearray(mine.initrd)}
    if what in flipped:
        flipped[what][-1] ^= 1
    loaded = boot_image(
        bytes(flipped["kernel"]),
        bytes(flipped["initrd"]),
        cmdline=command_line("quiex" if what == "append" else "quiet"),
        memory_size=MEMORY,
        acpi=acpi.tables(ACPI_BASE),
    )
    entropy = SeededEntropy("owner")
    with a_state(tmp_path / "machine") as state:
        host = a_host(a_machine(state, memory_size=2 * MEMORY))
        owner, own = (
            Tenant.beside(state, policy=DEFAULT_POLICY),
            DirectLaunch(kernel=mine, memory_size=MEMORY),
        )
        measuring, guest = launch(host, loaded, owner, entropy=entropy)
        if what == "nothing":
            trusted = check(owner, measuring, guest, own)
            guest.inject(*trusted.seal(table_of(b"secret"), entropy=entropy))
        else:
            with pytest.raises(BadMeasurement, match="another image"):
                check(owner, measuring, guest, own)
            forged = measuring.dangerously_trust(bytes(32))  # and a packet for another launch is refused
            with pytest.raises(FirmwareError):
                guest.inject(*forged.seal(table_of(b"secret"), entropy=entropy))
        guest.end()
