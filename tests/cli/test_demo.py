"""``cbit demo``: one object or one story, the same facts in both, and never a key."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cbit.attacks.power import Power
from cbit.attacks.survey import Cell, adversaries
from cbit.cli import main
from cbit.cli.demo import firmware, render
from cbit.cli.demo.act import Act, Picture
from cbit.crypto import ec
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.guest import generated_firmware
from cbit.guest.builtin import image as builtin
from cbit.hypervisor.host import Protection
from cbit.machine import state_folder
from cbit.machine.manufacture import Root, make_root
from cbit.spec import firmware_table
from cbit.spec.address import MIB
from engine_here import missing


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "generated.fd"
    path.write_bytes(generated_firmware.generate())
    return path


REGISTERS = "hypervisor that reads registers at exits"


def demo(*words: str | Path) -> list[str]:
    return ["demo", "--profile", "naples", *map(str, words)]


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    code = main([*demo(*words), "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return code, json.loads(out)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The story where guests execute, told once, as data."""
    if why := missing():
        pytest.skip(why)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main([*demo("--seed", "5"), "--json"]) == 0
    result: dict[str, Any] = json.loads(out.getvalue())["result"]
    return result


def facts(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "seconds"}


# ---- data


def test_json_is_one_object_with_nine_acts_and_a_cell_for_every_attempt(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = told(capsys, "--firmware", image, "--seed", "5")
    assert code == 0
    assert ["cbit", "command", "ok", "reasons", "result"] == list(found)
    assert (found["command"], found["ok"], found["reasons"]) == ("demo", True, [])
    result = found["result"]
    assert ["profile", "execution", "firmware", "acts", "adversaries", "seconds"] == list(result)
    executes = not missing()
    assert executes is result["execution"]["executes"]
    assert result["firmware"] == {
        "name": str(image),
        "origin": "named on the command line",
        "size": generated_firmware.SIZE,
    }
    assert list(range(1, 10)) == [act["act"] for act in result["acts"]]
    for act in result["acts"]:
        assert ["act", "title", "items", "who_sees"] == list(act)
        assert act["items"]
        assert act["who_sees"]
    cells = result["adversaries"]
    wanted = {(name, str(protection)) for name in adversaries(executes=executes) for protection in Protection}
    assert len(cells) == (30 if executes else 27)
    assert wanted == {(cell["adversary"], cell["protection"]) for cell in cells}
    for cell in cells:
        assert ["adversary", "protection", "powers", "got_secret", "bytes_read", "note"] == list(cell)
        assert set(cell["powers"]) <= set(Power)
    assert [cell["adversary"] for cell in cells if cell["got_secret"] and cell["protection"] == "sev"] == (
        [REGISTERS] if executes else []
    )
    assert sum(cell["got_secret"] for cell in cells) == 9 + 6 + (3 if executes else 0)
    assert {"set_up", "story"} == set(result["seconds"])


def test_what_is_claimed_is_what_the_items_show(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = told(capsys, "--firmware", image, "--seed", "5")
    acts = {act["act"]: act["items"] for act in found["result"]["acts"]}
    succeeded = {
        item["attempt"]: item["succeeded"] for items in acts.values() for item in items if "attempt" in item
    }
    assert [name for name, good in succeeded.items() if good] == [
        "the vendor's firmware",
        "an organisation signs the PEK and takes ownership",
        "owner computes the same HMAC and compares",
        "control: the same search, through the guest's key",
        *(
            []
            if missing()
            else [
                "the guest opens it with the injected key",
                "hypervisor interrupts it at work and looks for its key",
                "A and B, each under its own ASID again",
            ]
        ),
        "DEACTIVATE",
        "WBINVD on all cores, DF_FLUSH",
        "ACTIVATE with ASID 5 now",
        "DEACTIVATE, DECOMMISSION",
    ]
    pictures = [item for item in acts[5] if "picture" in item]
    assert len(pictures[0]["after"]) == generated_firmware.SIZE // 4096
    assert min(pictures[0]["after"]) > 7.9 > max(pictures[0]["before"])
    shown = {item["bytes"]: item for item in acts[2] if "bytes" in item}
    text = shown["the host, through its C=1 mapping"]["hex"]
    assert bytes.fromhex(text).startswith(b"The host's page")
    assert text == shown["a live page, encrypted in place: its user"]["hex"]
    assert text == shown["a device that drives the C-bit"]["hex"]
    assert text == shown["a 32-bit device, by an IOMMU's tables"]["hex"]
    assert text != shown["a device that cannot drive the C-bit"]["hex"]
    assert text != shown["the same page in DRAM"]["hex"]


def test_a_seed_gives_the_same_story_but_for_the_seconds(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The RSA root is new each time; nothing that is told depends on it."""
    first, again, other = (told(capsys, "--firmware", image, "--seed", seed)[1]["result"] for seed in "556")
    assert facts(first) == facts(again)
    assert facts(first) != facts(other)


def test_without_a_seed_every_story_has_keys_of_its_own(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = (told(capsys, "--firmware", image)[1]["result"] for _ in range(2))
    assert facts(first) != facts(again)


@pytest.mark.parametrize("profile", ["rome", "milan", "genoa"])
def test_every_profile_tells_it(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.setattr("cbit.machine.manufacture.make_root", lambda bits: make_root(2048))
    code = main(["demo", "--profile", profile, "--firmware", str(image), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["result"]["profile"] == profile
    assert sum(cell["got_secret"] for cell in found["result"]["adversaries"]) == (15 if missing() else 18)


# ---- the guest that executes


def _acts(story: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    return {act["act"]: act["items"] for act in story["acts"]}


def _attempts(items: list[dict[str, Any]]) -> dict[str, tuple[bool, str]]:
    return {item["attempt"]: (item["succeeded"], item["answer"]) for item in items if "attempt" in item}


def _values(items: list[dict[str, Any]], name: str) -> list[str]:
    return [item["value"] for item in items if item.get("fact") == name]


def test_the_guest_computes_does_dma_and_opens_its_message(story: dict[str, Any]) -> None:
    items = _acts(story)[7]
    assert [
        "I run in 64-bit mode. My memory is encrypted: SEV, C-bit 39.",
        "primes below 100000: 9592",
        "the device gave me: block 7 of your disk",
        "Good-bye.",
    ] == _values(items, "the guest prints")
    shown = {item["bytes"]: bytes.fromhex(item["hex"]) for item in items if "bytes" in item}
    text = b"primes below 100000: 9592".ljust(32, b"\0")
    private, shared = "DRAM: its result, written to a private page", "DRAM: the same, written with C=0"
    assert text == shown[shared] == shown["a device takes the result from the shared page"]
    assert text != shown[private] == shown["a device takes the result from the private page"]
    tried = _attempts(items)
    assert [True, False, False, True] == [succeeded for succeeded, _ in tried.values()]
    assert "the message says: Meet me where the third lamp burns." in [answer for _, answer in tried.values()]
    exits = dict(part.split() for part in _values(items, "exits")[0].split(", "))
    assert {"CPUID", "MSR", "IOIO", "HLT", "INTR"} == set(exits)


def test_guests_side_by_side_each_do_their_own_work(story: dict[str, Any]) -> None:
    items = _acts(story)[8]
    said = [item["value"] for item in items if " prints, after " in item.get("fact", "")]
    assert [f"primes below {n}" for n in (100000, 150000, 200000, 250000)] == [
        line.partition(":")[0] for line in said
    ]
    turns = [int(item["fact"].split()[-2]) for item in items if " prints, after " in item.get("fact", "")]
    assert turns == sorted(turns)
    assert turns[0] > 10
    for name in "ABCD":
        assert [f"the message says: {name}, the lamp is lit."] == _values(items, f"{name} opens its message")
    shown = {item["bytes"]: bytes.fromhex(item["hex"]) for item in items if "bytes" in item}
    cells = shown["DRAM: what A computed"]
    assert b"primes below 250000: 22044".ljust(32, b"\0") == shown["DRAM: what D computed"]
    assert (
        b"primes below 100000: 9592".ljust(32, b"\0")
        == shown["A's page mapped into a guest that shares A's key: it reads"]
    )
    assert cells == shown["A's page mapped into a guest without encryption: it reads"]
    assert shown["A's page mapped into a guest with another key: it reads"] not in (cells, bytes(32))
    tried = _attempts(items)
    assert not tried["hypervisor hands A's message to B"][0]
    assert "POLICY_FAILURE" in tried["a guest asks for B's key"][1]
    spoofed, how = tried["hypervisor runs B under A's ASID"]
    assert not spoofed
    assert "#VMEXIT" in how or "said nothing" in how
    assert (True, "both as before") == tried["A and B, each under its own ASID again"]


def test_the_adversaries_met_guests_that_ran(story: dict[str, Any]) -> None:
    notes = {(cell["adversary"], cell["protection"]): cell["note"] for cell in story["adversaries"]}
    assert "its program became garbage" in notes["hypervisor with a spoofed ASID", "sev"]
    assert "its program ran and handed out" in notes["other guest, victim's page mapped in", "sev"]
    assert "times, registers read each time" in notes[REGISTERS, "sev"]


def test_an_executed_story_repeats_with_its_seed(
    story: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = told(capsys, "--seed", "5")
    assert code == 0
    assert facts(story) == facts(found["result"])


def test_a_person_is_told_of_it_too(story: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(demo("--seed", "5")) == 0
    out, _ = capsys.readouterr()
    assert "7. Run: a guest executes, in memory that only it can read" in out
    assert out.count("SECRET READ") == 18
    assert max(map(len, out.splitlines())) <= 120


def test_without_an_engine_the_story_says_so_in_one_sentence_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not this computer's engine: the guest is launched, the reference walker looks through its eyes."""
    monkeypatch.setenv("CC", "no-such-cc")
    builtin.image.cache_clear()
    monkeypatch.setattr(firmware, "PLACES", ())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, found = told(capsys)
    result = found["result"]
    assert code == 0
    assert not result["execution"]["executes"]
    assert result["execution"]["why_not"].startswith("no C compiler: no-such-cc is not there")
    acts = {act["act"]: act for act in result["acts"]}
    assert "not executed" in acts[7]["title"]
    assert "no C compiler" in acts[7]["who_sees"]
    assert len(result["adversaries"]) == 27
    assert REGISTERS not in {cell["adversary"] for cell in result["adversaries"]}
    assert sum(cell["got_secret"] for cell in result["adversaries"]) == 15


# ---- secrets


def test_nothing_secret_is_in_any_output(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key that the process makes is caught at its birth, and looked for in all that is printed."""
    secret: list[bytes] = []
    original_key, original_scalar, original_root = Key.__init__, ec.private_key, make_root

    def key(self: Key, material: bytes) -> None:
        secret.append(bytes(material))
        original_key(self, material)

    def scalar(number: int) -> ec.PrivateKey:
        secret.extend(number.to_bytes(48, order) for order in ("big", "little"))
        return original_scalar(number)

    def root(bits: int) -> Root:
        made = original_root(bits)
        for half in (made.ark_key, made.ask_key):
            numbers = half.private_numbers()
            secret.extend(prime.to_bytes(bits // 16, "big") for prime in (numbers.p, numbers.q))
        return made

    monkeypatch.setattr(Key, "__init__", key)
    monkeypatch.setattr(ec, "private_key", scalar)
    monkeypatch.setattr("cbit.machine.manufacture.make_root", root)
    printed = ""
    for words in (
        demo("--firmware", image, "--seed", "5"),
        [*demo("--firmware", image, "--seed", "5"), "--json"],
        [*demo("--seed", "5"), "--json"],
    ):
        assert main(words) == 0
        out, err = capsys.readouterr()
        printed += out + err
    secret = [material for material in secret if len(set(material)) > 2]
    assert len(secret) > 40
    squeezed = "".join(printed.split())
    for material in secret:
        assert material.hex() not in squeezed
        assert material.hex()[:32] not in squeezed
        assert base64.b64encode(material).decode()[:20] not in squeezed
    assert "-----BEGIN" not in printed
    # Of the guest's secret its label is shown, and nothing of the random part behind it.
    assert b"disk passphrase ".hex() in squeezed
    passphrase = SeededEntropy(5).draw(12).hex()
    for shown in (passphrase, passphrase.encode().hex(), base64.b64encode(passphrase.encode()).decode()):
        assert shown[:12] not in squeezed


# ---- the story as text


def test_a_person_gets_the_same_acts_and_the_table(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(demo("--firmware", image, "--seed", "5")) == 0
    out, err = capsys.readouterr()
    assert "manufacturing a naples machine" in err
    for number in range(1, 10):
        assert f"\n{number}. " in out
    assert out.count("SECRET READ") == (15 if missing() else 18)
    assert "The same as data: cbit demo --json" in out
    assert "SIMULATED" in out
    assert ("this image is not executed" if missing() else "cbit's own guest does") in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120
    assert "\x1b" not in out


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_terminal_of_any_width_is_kept(width: int) -> None:
    act = Act(1, "A title that is longer than a narrow terminal, by a good deal of words")
    act.fact("a name that has to wrap in a narrow terminal too", "a" * 300)
    act.attempt("somebody tries", succeeded=False, answer="and is told why not " * 10)
    act.show("bytes with spaces", b"The host's page:" * 256)
    act.items.append(Picture("a picture", [0.0, 3.0, 5.0, 7.0, 7.95] * 60, [7.95] * 300))
    act.who_sees = "Somebody sees something. " * 10
    cells = [
        Cell(n, p, (Power.DMA, Power.DMA_C_BIT), p == "none", 64, "")
        for n in adversaries()
        for p in Protection
    ]
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    render.show_act(console, act)
    render.show_survey(console, cells)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ("what it can do" in out.getvalue()) is (width >= 110)
    assert sum(line.count("█") for line in lines[: lines.index("")] if line.strip()) == 0
    assert sum(line.count("█") for line in lines) >= 360


def test_a_reader_that_goes_away_gets_no_traceback(image: Path) -> None:
    call = [sys.executable, "-m", "cbit", *demo("--firmware", image, "--seed", "5")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert "Traceback" not in complaint


# ---- bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code, found = told(capsys, *words)
    assert code == 2
    assert not found["ok"]
    assert len(found["reasons"]) == 1
    return str(found["reasons"][0])


def test_firmware_that_cannot_be_launched_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(bits: int) -> Root:
        raise AssertionError("the image is looked at before a machine is made")

    monkeypatch.setattr("cbit.machine.manufacture.make_root", too_late)
    for size, why in ((0, "not empty"), (100, "multiple of 16"), (16 * MIB + 16, "at most 16777216 bytes")):
        path = tmp_path / f"{size}.fd"
        with path.open("wb") as file:
            file.truncate(size)
        assert why in refused(capsys, "--firmware", path)
    assert "No such file" in refused(capsys, "--firmware", tmp_path / "none")
    assert "directory" in refused(capsys, "--firmware", tmp_path)
    assert "not a regular file" in refused(capsys, "--firmware", "/dev/zero")
    broken = bytearray(generated_firmware.generate())
    broken[-32 - 18 : -32 - 16] = b"\xff\xff"
    (tmp_path / "table.fd").write_bytes(broken)
    assert "firmware table" in refused(capsys, "--firmware", tmp_path / "table.fd")


@pytest.mark.parametrize("gpa", ["0x10", "0x7ffff0", "0x810008", "0x9ffff0", "0xffffffff0", "-16"])
def test_a_secret_outside_the_guests_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gpa: str
) -> None:
    (tmp_path / "silent.fd").write_bytes(bytes(4080) + 16 * b"\x90")
    why = refused(capsys, "--firmware", tmp_path / "silent.fd", f"--secret-gpa={gpa}")
    assert "--secret-gpa" in why
    assert "0x800000..0x9fffff" in why


def test_an_image_that_announces_nowhere_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    area = (0x1000_0000).to_bytes(4, "little") + (0x1000).to_bytes(4, "little")
    table = firmware_table.build({firmware_table.SEV_SECRET: area})
    (tmp_path / "far.fd").write_bytes((table + bytes(32)).rjust(4096, b"\x00"))
    assert "the image announces its secret area at 0x10000000" in refused(
        capsys, "--firmware", tmp_path / "far.fd"
    )


def test_a_full_disk_is_a_sentence(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(state_folder, "replace_file", full)
    assert "No space left on device" in refused(capsys, "--firmware", image)


def test_senseless_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no profile 'zen9'" in refused(capsys, "--profile", "zen9")
    assert "'here' is no address" in refused(capsys, "--secret-gpa", "here")
    assert "--seed" in refused(capsys, "--seed", "x")
    assert "160M at least" in refused(capsys, "--linux", "--memory", "64M")
    assert "belong together" in refused(capsys, "--linux", "--kernel", "K")


# ---- where the image comes from


def test_our_own_image_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "PLACES", ())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = firmware.find(None)
    assert found.data == generated_firmware.generate()
    assert "generated" in found.origin


def test_a_package_tool_that_fails_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(command: list[str], **options: object) -> None:
        raise subprocess.CalledProcessError(100, command)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing was fetched before
    monkeypatch.setattr(firmware, "PLACES", ())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", fail)
    assert firmware.find(None).name == "cbit's own test firmware"


def test_an_installed_image_comes_first(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    monkeypatch.setattr(firmware, "PLACES", ("/nowhere/OVMF.fd", str(image)))
    found = firmware.find(None)
    assert (found.name, found.origin) == (str(image), "installed on this computer")
