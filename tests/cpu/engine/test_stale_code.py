"""Code that a guest changes through an alias is executed as changed: stock unicorn runs the old blocks.

The page is patched through a mapping that is not executable, twice, with another store in between.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpu.engine.worlds import HLT, R8, R9, R10, Guest, assemble

PATCHED = 0x30000
ALIAS = 0x230000  # 2 MiB above
PROGRAM = f"""
    mov rbx, {PATCHED + 0x800}; mov rdi, {ALIAS}
    call rbx; mov r8, rax
    mov qword ptr [rdi+0x100], 0x55; mov byte ptr [rdi+0x801], 2; call rbx; mov r9, rax
    mov byte ptr [rdi+0x801], 3; call rbx; mov r10, rax; hlt
"""
CURE = ("tb_invalidate_phys_page_fast", "tlb_protect_code", "tlb_reset_dirty_by_vaddr")


def patch_code_twice() -> list[int]:
    g = Guest()
    nx = 1 << 63
    g.write(0x5000, b"".join((page << 12 | g.c | 0x63 | nx).to_bytes(8, "little") for page in range(512)))
    g.write(PATCHED, assemble("mov eax, 1; ret; .org 0x800; mov eax, 1; ret", PATCHED))
    g.program(PROGRAM)
    assert HLT == g.run().code
    return [g.register(r) for r in (R8, R9, R10)]


def test_patched_code_is_executed_as_patched() -> None:
    assert [1, 2, 3] == patch_code_twice()


def test_without_the_cure_the_old_code_runs() -> None:
    """The positive control: the same program on the library's own functions."""
    assemble("hlt")  # skips aloud without an assembler
    program = f"""
from types import MappingProxyType
from cbit.cpu.engine import interpose
kept = {{name: stub for name, stub in interpose.REPLACED.items() if stub[5:] not in {CURE!r}}}
interpose.REPLACED = MappingProxyType(kept)
from cpu.engine.test_stale_code import patch_code_twice
print(patch_code_twice())
"""
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(str(root / part) for part in ("src", "tests"))
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [1, 1, 1] == [int(word) for word in ended.stdout.strip("[]\n").split(",")]


@pytest.mark.parametrize("distance", [1, 5, 64])
def test_a_block_that_patches_what_follows_executes_the_patch(distance: int) -> None:
    g = Guest()
    g.program(
        f"""mov r8, 1; lea rdi, [rip + patch + 1]; mov byte ptr [rdi], 7
        .fill {distance}, 1, 0x90
        patch: mov al, 1; movzx r9d, al; hlt"""
    )
    assert HLT == g.run().code
    assert [1, 7] == [g.register(r) for r in (R8, R9)]
