"""The register structures are the kernel's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cbit.driver.kvm_registers import KvmRegs, KvmSegment, KvmSregs, KvmTable
from cbit.spec.wire import Wire

NAMES: dict[type[Wire], str] = {
    KvmSegment: "kvm_segment",
    KvmTable: "kvm_dtable",
    KvmSregs: "kvm_sregs",
    KvmRegs: "kvm_regs",
}


def test_the_kernels_header_says_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    lines, ours = [], []
    for cls, struct in NAMES.items():
        lines.append(f'printf("{struct} %zx\\n", sizeof(struct {struct}));')
        ours.append(f"{struct} {cls.SIZE:x}")
        for name, field in cls.FIELDS.items():
            measures = f"offsetof(struct {struct}, {name}), sizeof(((struct {struct} *)0)->{name})"
            lines.append(f'printf("{struct}.{name} %zx %zx\\n", {measures});')
            ours.append(f"{struct}.{name} {field.offset:x} {field.size:x}")
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n"
    source = tmp_path / "layout.c"
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    build = [compiler, "-Wall", "-Werror", "-o", str(tmp_path / "layout"), str(source)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if ".h: No such file" in built.stderr:
        pytest.skip("the kernel's headers are not here: apt install linux-libc-dev")
    assert 0 == built.returncode, built.stderr
    said = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    assert ours == said.splitlines()
