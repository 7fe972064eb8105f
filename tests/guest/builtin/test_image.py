"""The image is what the assembler makes of readable source: the same bytes everywhere, and no others."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.compiler import NoCompiler
from cbit.cpu.engine.errors import NoEngine
from cbit.guest.builtin import image as builtin
from cbit.guest.builtin import interface
from cbit.guest.builtin.image import PROGRAM, assembled, helper, image, text_section
from cbit.hypervisor.devices import copier, requests
from cbit.owner.measure import expect_sev
from cbit.spec.acpi.board import SERIAL_BASE
from cbit.spec.address import PAGE
from cbit.spec.firmware_table import Area, parse

#: Of the bytes that GNU as 2.40 and LLVM 14 make, each by itself.  Whoever changes the source changes these.
DIGEST = "ed7ca0cbded86181fedcd1807c1722ae560d4e472d28b81642a9a6772a04cadc"
HELPER_DIGEST = "f41a9458f516248ee5baa01ac4754634ffbd31b24682423d2c74439a0f7529e7"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_bytes_are_the_ones_that_were_reviewed() -> None:
    assert DIGEST == _digest(image())
    assert HELPER_DIGEST == _digest(helper())


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "digest"), [("guest.S", DIGEST), ("helper.S", HELPER_DIGEST)])
def test_another_assembler_makes_the_same_bytes(
    require_program: Callable[..., list[str]], name: str, digest: str
) -> None:
    clang = next(
        (found for found in ("clang", "clang-14", "clang-16", "clang-19") if shutil.which(found)), "clang"
    )
    command = require_program(clang, "apt install clang")
    assert digest == _digest(assembled(name, compiler=" ".join(command)))


@pytest.mark.parametrize(
    ("before", "after"),
    [("I run in 64-bit mode", "I run in 65-bit mode"), ("PDPT + 3, ebp", "PDPT + 3, 0"), ("cli\n", "nop\n")],
    ids=["a letter", "an operand", "an instruction"],
)
def test_a_changed_source_is_another_image(tmp_path: Path, before: str, after: str) -> None:
    program = tmp_path / "program"
    shutil.copytree(PROGRAM, program)
    changed = [path for path in sorted(program.iterdir()) if before in path.read_text()]
    changed[0].write_text(changed[0].read_text().replace(before, after, 1))
    data = assembled("guest.S", program=program)
    assert len(image()) == len(data)
    assert DIGEST != _digest(data)
    assert expect_sev(image()).digest != expect_sev(data).digest


def test_it_is_a_firmware_image() -> None:
    assert interface.IMAGE_SIZE == len(image())
    assert Area(interface.SECRET, interface.SECRET_SIZE) == parse(image()).secret_area
    assert 0xE9 == image()[-16]  # the reset vector jumps
    assert b"built-in guest" in image()
    assert len(helper()) <= PAGE


def test_source_and_interface_have_the_same_numbers() -> None:
    layout = dict(
        re.findall(r"^#define +(\w+) +(.+?) *(?:/\*.*)?$", (PROGRAM / "layout.h").read_text(), re.M)
    )
    window = dict(re.findall(r"^#define +(\w+) +(\w+)", (PROGRAM / "helper.S").read_text(), re.M))

    def number(name: str) -> int:
        words = re.sub(r"\b[A-Z][A-Z_0-9]+", lambda found: str(number(found[0])), layout[name])
        return int(eval(words, {"__builtins__": {}}))  # sums of numbers: our own header

    for name, ours in {
        "IMAGE_SIZE": interface.IMAGE_SIZE,
        "IMAGE": interface.IMAGE,
        "MEMORY": interface.MEMORY,
        "SECRET": interface.SECRET,
        "SECRET_SIZE": interface.SECRET_SIZE,
        "RESULT": interface.RESULT,
        "MESSAGE": interface.MESSAGE,
        "NAME": interface.NAME,
        "ROUND_KEYS": interface.ROUND_KEYS,
        "SHARED": interface.SHARED_AT,
        "SHARED_PAGE": interface.SHARED_PAGE,
        "LONGEST": interface.LONGEST,
        "SIEVE_SIZE": interface.LARGEST_NUMBER,
        "SERIAL_DATA": SERIAL_BASE,
        "DMA_LOW": copier.BASE,
        "DMA_TAKE": copier.TAKE,
        "DMA_GIVE": copier.GIVE,
        "ASK_COMMAND": requests.BASE,
    }.items():
        assert (name, int(ours)) == (name, number(name))
    for name, shared in (
        ("SEALED", interface.SEALED),
        ("BOUNCE", interface.BOUNCE),
        ("PUBLISHED", interface.PUBLISHED),
        ("SHOWN", interface.SHOWN),
    ):
        assert int(shared) - interface.SHARED_PAGE == number(name) - number("SHARED")
    assert [0xCB00, 0xCB04, 0xCB08, 0xCB0C] == [
        number(f"DMA_{word}") for word in ("LOW", "HIGH", "LENGTH", "DO")
    ]
    assert [0xCB10, 0xCB14, 0xCB18, 0xCB1C] == [
        number(word) for word in ("ASK_COMMAND", "ASK_ARGUMENT", "ANSWER", "DONE")
    ]
    assert interface.WINDOW == int(window["WINDOW"], 0)
    assert (number("ANSWER"), number("DONE")) == (int(window["ANSWER"], 0), int(window["DONE"], 0))
    assert interface.MESSAGE_KEY.bytes_le.hex() in _bytes_after("key_guid", (PROGRAM / "open.S").read_text())


def _bytes_after(label: str, source: str) -> str:
    return "".join(re.findall(r"0x([0-9A-F]{2})\b", source.split(f"{label}:")[1])).lower()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (".text\n.long elsewhere\n", "left references that only a linker resolves"),
        (".text\ncall elsewhere\n", "left references that only a linker resolves"),
        ("no such instruction\n", r"cannot compile .*broken\.S"),
    ],
)
def test_what_needs_a_linker_or_is_no_program_is_refused(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "broken.S").write_text(source)
    with pytest.raises((NoCompiler, NoEngine), match=why):
        assembled("broken.S", program=tmp_path)


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(NoCompiler, match="no C compiler: no-such-cc is not there"):
        assembled("guest.S", compiler="no-such-cc")


@given(st.binary(max_size=200))
def test_any_bytes_for_an_object_file_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(NoEngine):
        text_section(data)
    with pytest.raises(NoEngine):
        text_section(builtin._ELF.ljust(16, b"\0") + data)


@given(st.data())
def test_a_damaged_object_file_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(_object())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(NoEngine):
        text_section(bytes(whole))


def _object() -> bytes:
    from cbit.compiler import compiled

    return compiled([PROGRAM / "helper.S"], builtin.FLAGS, name="helper", suffix=".o").read_bytes()
