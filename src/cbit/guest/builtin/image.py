"""The built-in guest's image, assembled here: no opaque bytes, and no linker that could change them.

Every reference is inside the one section and resolved by the assembler, so the section *is* the image.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Final

from cbit.compiler import compiled
from cbit.cpu.engine.errors import NoEngine

PROGRAM: Final = Path(__file__).parent / "program"
FLAGS: Final = ("-c", "-m64")
_ELF: Final = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian
_RELOCATABLE: Final = 1
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_RELOCATIONS: Final = (4, 9)  # SHT_RELA, SHT_REL


@functools.cache
def image() -> bytes:
    """Assemble the guest, once.

    Raises:
        NoCompiler: there is no C compiler, or it refuses the source.
        NoEngine: it makes something else than we need; the message says what.
    """
    return assembled("guest.S")


@functools.cache
def helper() -> bytes:
    """Assemble the adversary's small guest, once (errors as `image`)."""
    return assembled("helper.S")


def assembled(name: str, *, program: Path = PROGRAM, compiler: str | None = None) -> bytes:
    """Assemble a program and take its section out of the object file.

    Args:
        name: the file that includes the others.
        program: the folder of all of them.
        compiler: a command; by default the environment's CC, or cc.

    Raises:
        NoCompiler, NoEngine: as `image`.
    """
    main = program / name
    others = [path for path in sorted(program.iterdir()) if path != main and path.suffix in (".S", ".h")]
    made = compiled([main], FLAGS, name=main.stem, suffix=".o", included=others, compiler=compiler)
    return text_section(made.read_bytes())


def text_section(data: bytes) -> bytes:
    """Return the bytes of ``.text`` of an ELF object file.

    Raises:
        NoEngine: it is none, it has no such section, or a linker would have to change it.
    """
    try:
        return _text_section(data)
    except (struct.error, IndexError, ValueError):
        raise NoEngine("the assembler made a damaged object file") from None


def _text_section(data: bytes) -> bytes:
    header = _HEADER.unpack_from(data)
    kind, sections_at, size, count, names_at = header[1], header[6], header[11], header[12], header[13]
    if not header[0].startswith(_ELF) or kind != _RELOCATABLE or size != _SECTION.size:
        raise NoEngine("the assembler made no ELF object file for x86-64: CC=… names another compiler")
    sections = [_SECTION.unpack_from(data, sections_at + size * index) for index in range(count)]
    names = data[sections[names_at][4] :][: sections[names_at][5]]
    named = [names[section[0] : names.index(b"\0", section[0])] for section in sections]
    if b".text" not in named:
        raise NoEngine("the assembler made an object file without code")
    index = named.index(b".text")
    if any(section[1] in _RELOCATIONS and section[7] == index and section[5] for section in sections):
        raise NoEngine("the assembler left references that only a linker resolves")
    start, length = sections[index][4], sections[index][5]
    return data[start : start + length]
