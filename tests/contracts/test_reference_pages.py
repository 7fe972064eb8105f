"""The generated pages of the reference print the tables that the code runs on, all of them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cbit.attacks.experiments import ALL, named
from cbit.attacks.lab.outcome import Mode
from cbit.cli import main
from cbit.cli.command_line import COMMANDS as COMMAND_LINE
from cbit.cli.envelope import Exit, Outcome, envelope
from cbit.redirect.kvm import EXTENSIONS
from cbit.redirect.kvm_requests import REQUESTS, Cap
from cbit.secure_processor.dispatch import COMMANDS
from cbit.spec.command import Command
from cbit.spec.status import Status

REFERENCE = Path(__file__).parents[2] / "docs/reference"
SCHEMA = json.loads((REFERENCE / "envelope.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generated() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REFERENCE.parent / "_ext")
        yield importlib.import_module("generated")


def test_every_table_has_its_place_on_one_page(generated: Any) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
    assert sorted(generated.TABLES) == sorted(re.findall(r"^<!-- generated: (.*) -->$", pages, re.MULTILINE))


def test_a_mark_that_names_no_table_is_an_error(generated: Any) -> None:
    assert generated.fill("text\n<!-- a remark -->\n") == "text\n<!-- a remark -->\n"
    with pytest.raises(KeyError):
        generated.fill("<!-- generated: nonsense -->")


def test_every_command_is_on_the_page_once(generated: Any) -> None:
    implemented, _, missing = generated.fill("<!-- generated: commands -->").partition("## Not implemented")
    for command in Command:
        rows = re.findall(rf"^\| {command:#04x} \| {command.name} \|", implemented + missing, re.MULTILINE)
        assert len(rows) == 1
        assert (f"| {command.name} |" in implemented) is (command in COMMANDS)


def test_every_request_and_capability_of_the_supplied_kvm_is_on_the_page_once(generated: Any) -> None:
    page = generated.fill("<!-- generated: kvm-requests -->\n<!-- generated: kvm-capabilities -->\n")
    for number, row in REQUESTS.items():
        assert 1 == page.count(f"| {number:#x} | {row.name} |")
    for cap, answer in EXTENSIONS.items():
        assert 1 == page.count(f"| {int(cap)} | KVM_CAP_{Cap(cap).name} | {answer} |")
    assert (
        "| 0x4040ae77 | KVM_CREATE_PIT2 | machine | kept: timer | interrupt controllers, else ENOENT; once"
        in page
    )
    assert len(Cap) == len(EXTENSIONS)


def test_a_commands_row_says_what_dispatch_does(generated: Any) -> None:
    page = generated.fill("<!-- generated: commands -->")
    (row,) = (line for line in page.splitlines() if "| LAUNCH_MEASURE |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == [
        "0x33",
        "LAUNCH_MEASURE",
        "[LaunchMeasure](wire-structures.md#launchmeasure)",
        "in/out, back on success and on INVALID_LENGTH",
    ]
    assert cells[4:7] == ["WORKING", "LUPDATE", "LSECRET"]


def test_every_command_of_the_program_is_on_its_page() -> None:
    page = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    named_on_page = re.findall(
        r"`cbit ([a-z]+)`", "\n".join(re.findall(r"^\| (`cbit .*?) \|", page, re.MULTILINE))
    )
    assert sorted(name for name, *_ in COMMAND_LINE) == sorted(named_on_page)


def test_every_status_is_on_the_page(generated: Any) -> None:
    page = generated.fill("<!-- generated: statuses -->")
    for status in Status:
        assert f"| {status:#06x} | {status.name} |" in page
    (row,) = (line for line in page.splitlines() if "| INVALID_COMMAND |" in line)
    assert "`dispatch._carry_out`" in row
    (row,) = (line for line in page.splitlines() if "| BAD_SVN |" in line)
    assert "`commands.update.ANSWERS`" in row  # a table that functions answer by


def test_a_structure_is_printed_with_its_fields_gaps_and_remarks(generated: Any) -> None:
    page = generated.fill("<!-- generated: wire-structures -->")
    section = page.partition("### LaunchStart\n")[2].partition("\n###")[0]
    assert "0x24 bytes. Dossier: sev-api.md §7, LAUNCH_START." in section
    assert (
        "| 0x000 | 4 | `handle` | number | in/out | 0 | 0, or the guest whose key is shared |\n"
        "| 0x004 | 4 | `policy` | number | in |  |  |\n"
    ) in section
    assert "| 0x014 | 4 | *gap* |  |  | zero |  |\n| 0x018 | 8 | `session_paddr` |" in section


def test_every_structure_of_the_package_is_on_the_page(generated: Any) -> None:
    source = REFERENCE.parents[1] / "src/cbit"
    declared = re.compile(r"^class (\w+)\(Wire, size=", re.MULTILINE)
    names = [n for path in source.rglob("*.py") for n in declared.findall(path.read_text(encoding="utf-8"))]
    page = generated.fill("<!-- generated: wire-structures -->")
    assert sorted(names) == sorted(re.findall(r"^### (\w+)$", page, re.MULTILINE))


# ---- the JSON object ---------------------------------------------------------------------------------------


def violations(value: Any, schema: Mapping[str, Any], at: str = "$") -> list[str]:
    """Check the few words of JSON Schema that our schema uses."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{at} is no {schema['type']}"]
    found = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{at} lacks {name}" for name in schema.get("required", ()) if name not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{at} has {name}" for name in value if name not in properties]
        found += [
            v
            for n, inner in properties.items()
            if n in value
            for v in violations(value[n], inner, f"{at}.{n}")
        ]
    elif isinstance(value, list):
        found += [v for item in value for v in violations(item, schema["items"], f"{at}[]")]
    elif isinstance(value, str) and len(value) < schema.get("minLength", 0):
        found.append(f"{at} is too short")
    return found


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(ok=True),
        Outcome(ok=True, result={"policy": 1, "chain": ["pdh", "pek"]}),
        Outcome(ok=False, reasons=("the PEK is not signed by this CEK",)),
        Outcome(ok=False, reasons=("no such file",), exit_code=Exit.UNUSABLE),
    ],
)
def test_what_a_command_prints_follows_the_schema(outcome: Outcome) -> None:
    printed = json.loads(envelope("owner verify", outcome))
    assert violations(printed, SCHEMA) == []
    assert list(printed) == SCHEMA["required"] == list(SCHEMA["properties"])


@pytest.mark.parametrize(
    ("words", "command"),
    [("", "cbit"), ("foo", "cbit"), ("--foo", "cbit"), ("owner", "owner"), ("owner foo", "owner")],
)
def test_what_is_printed_of_a_senseless_command_line_follows_it_too(
    words: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert violations(printed, SCHEMA) == []
    assert printed["command"] == command
    assert printed["reasons"]


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"ok": 1}, "$.ok is no boolean"),
        ({"reasons": "none"}, "$.reasons is no array"),
        ({"reasons": [""]}, "$.reasons[] is too short"),
        ({"result": []}, "$.result is no object"),
        ({"extra": 1}, "$ has extra"),
        ({"command": ""}, "$.command is too short"),
    ],
)
def test_the_check_of_the_schema_finds_what_is_wrong(change: dict[str, Any], violation: str) -> None:
    printed = json.loads(envelope("owner verify", Outcome(ok=True)))
    assert violations(printed | change, SCHEMA) == [violation]
    del printed["cbit"]
    assert violations(printed, SCHEMA) == ["$ lacks cbit"]


def test_every_request_of_the_control_channel_is_on_its_page() -> None:
    from cbit.redirect.control import REQUESTS

    text = (REFERENCE / "control-channel.md").read_text(encoding="utf-8").partition("## What `status`")[0]
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")][1:]
    rows = {name.strip(" `"): fields for name, fields in cells}
    assert {name: list(request.fields) for name, request in REQUESTS.items()} == {
        name: re.findall(r"`(\w+)`", fields) for name, fields in rows.items()
    }


def test_each_attack_has_three_exercises_that_can_be_done(generated: Any) -> None:
    exercises = generated.attack_pages.exercises()
    assert {attack.name: 3 for attack in ALL} == {name: len(tasks) for name, tasks in exercises.items()}
    commands = re.findall(r"`cbit attack (?:run|sweep) ([^`]+)`", str(exercises))
    assert 20 < len(commands)
    for command in commands:
        name, *words = command.split()
        options = dict(zip(words[::2], words[1::2], strict=True))
        setting = (options.get("--set") or options.get("--over") or "=").partition("=")
        attack = named(name)
        mode = Mode(options.get("--mode", attack.defended))
        parameters = {setting[0]: float(setting[2].split(",")[0])} if setting[0] else {}
        attack.check(mode, options.get("--variant", ""), parameters)
        assert set(options) <= {"--mode", "--variant", "--set", "--over"}
