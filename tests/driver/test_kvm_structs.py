"""The structures of KVM's memory-encryption requests are the kernel's: dossier and header agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.driver import kvm_structs as structs
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
    KvmSevCommand,
    VmType,
)
from cbit.spec.errors import WireError
from cbit.spec.wire import Wire
from spec.wires import structures

#: origin = sev-api.md §13: size, then "offset size" of each field, all in hex.
PAPER: dict[type[Wire], tuple[int, str]] = {
    structs.KvmSevCmd: (0x18, "0 4, 8 8, 10 4, 14 4"),
    structs.EncRegion: (0x10, "0 8, 8 8"),
    structs.KvmInit2: (0x30, "0 8, 8 4, C 2"),
    structs.KvmLaunchStart: (0x28, "0 4, 4 4, 8 8, 10 4, 18 8, 20 4"),
    structs.KvmLaunchUpdateData: (0x10, "0 8, 8 4"),
    structs.KvmPacket: (0x30, "0 8, 8 4, 10 8, 18 4, 20 8, 28 4"),
    structs.KvmLaunchMeasure: (0x10, "0 8, 8 4"),
    structs.KvmGuestStatus: (0x0C, "0 4, 4 4, 8 4"),
    structs.KvmDebug: (0x18, "0 8, 8 8, 10 4"),
    structs.KvmAttestationReport: (0x20, "0 10, 10 8, 18 4"),
    structs.KvmSendStart: (0x48, "0 4, 8 8, 10 4, 18 8, 20 4, 28 8, 30 4, 38 8, 40 4"),
    structs.KvmReceiveStart: (0x28, "0 4, 4 4, 8 8, 10 4, 18 8, 20 4"),
}

_PACKET = "hdr_uaddr hdr_len guest_uaddr guest_len trans_uaddr trans_len"
#: The kernel's names; INIT2's structure is newer than many installed headers: the dossier alone pins it.
HEADER: list[tuple[type[Wire], str, str]] = [
    (structs.KvmSevCmd, "kvm_sev_cmd", "id data error sev_fd"),
    (structs.EncRegion, "kvm_enc_region", "addr size"),
    (
        structs.KvmLaunchStart,
        "kvm_sev_launch_start",
        "handle policy dh_uaddr dh_len session_uaddr session_len",
    ),
    (structs.KvmLaunchUpdateData, "kvm_sev_launch_update_data", "uaddr len"),
    (structs.KvmPacket, "kvm_sev_launch_secret", _PACKET),
    (structs.KvmPacket, "kvm_sev_send_update_data", _PACKET),
    (structs.KvmPacket, "kvm_sev_receive_update_data", _PACKET),
    (structs.KvmLaunchMeasure, "kvm_sev_launch_measure", "uaddr len"),
    (structs.KvmGuestStatus, "kvm_sev_guest_status", "handle policy state"),
    (structs.KvmDebug, "kvm_sev_dbg", "src_uaddr dst_uaddr len"),
    (structs.KvmAttestationReport, "kvm_sev_attestation_report", "mnonce uaddr len"),
    (
        structs.KvmSendStart,
        "kvm_sev_send_start",
        "policy pdh_cert_uaddr pdh_cert_len plat_certs_uaddr plat_certs_len "
        "amd_certs_uaddr amd_certs_len session_uaddr session_len",
    ),
    (
        structs.KvmReceiveStart,
        "kvm_sev_receive_start",
        "handle policy pdh_uaddr pdh_len session_uaddr session_len",
    ),
]


def test_every_structure_is_pinned_here() -> None:
    ours = {
        cls
        for cls in vars(structs).values()
        if isinstance(cls, type) and issubclass(cls, Wire) and cls is not Wire
    }
    assert ours == set(PAPER)
    assert ours - {structs.KvmInit2} == {cls for cls, _, _ in HEADER}


@pytest.mark.parametrize("cls", PAPER, ids=lambda cls: cls.__name__)
def test_layout_is_the_papers(cls: type[Wire]) -> None:
    fields = ", ".join(f"{field.offset:X} {field.size:X}" for field in cls.FIELDS.values())
    assert PAPER[cls] == (cls.SIZE, fields)


def test_numbers_are_the_papers() -> None:
    assert (0xC008AEBA, 0x8010AEBB, 0x8010AEBC) == (
        KVM_MEMORY_ENCRYPT_OP,
        KVM_MEMORY_ENCRYPT_REG_REGION,
        KVM_MEMORY_ENCRYPT_UNREG_REGION,
    )
    assert list(range(23)) == [int(command) for command in KvmSevCommand]
    assert (0, 2, 3) == (VmType.DEFAULT, VmType.SEV, VmType.SEV_ES)


def test_redirect_and_driver_mean_the_same_requests() -> None:
    from cbit.redirect.kvm_requests import ENCRYPTION_REQUESTS

    ours = (KVM_MEMORY_ENCRYPT_OP, KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION)
    assert ours == ENCRYPTION_REQUESTS


@pytest.mark.parametrize("cls", PAPER, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_stands_in_the_padding_does_not_count(cls: type[Wire], data: st.DataObject) -> None:
    value = data.draw(structures(cls))
    raw = bytearray(bytes(value))
    for start, end in cls.gaps():
        raw[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
    assert value == cls.parse(bytes(raw), canonical=False)
    with pytest.raises(WireError, match="bytes, must be"):
        cls.parse(bytes(raw) + b"\0", canonical=False)


def test_the_kernels_header_says_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/kvm.h>\n"
    seen = subprocess.run([compiler, "-E", "-"], input=head, capture_output=True, text=True, check=False)
    if "kvm_sev_launch_start" not in seen.stdout:
        pytest.skip("linux/kvm.h is not here, or has no SEV: apt install linux-libc-dev")
    renamed = {"SEV_INIT": "INIT", "SEV_ES_INIT": "ES_INIT"}
    lines, ours = [], []
    for command in KvmSevCommand:
        name = f"KVM_SEV_{renamed.get(command.name, command.name)}"
        if re.search(rf"\b{name}\b", seen.stdout):
            lines.append(f'printf("{name} %d\\n", {name});')
            ours.append(f"{name} {command}")
    for cls, struct, names in HEADER:
        lines.append(f'printf("{struct} %zx\\n", sizeof(struct {struct}));')
        ours.append(f"{struct} {cls.SIZE:x}")
        for name, field in zip(names.split(), cls.FIELDS.values(), strict=True):
            measures = f"offsetof(struct {struct}, {name}), sizeof(((struct {struct} *)0)->{name})"
            lines.append(f'printf("{struct}.{name} %zx %zx\\n", {measures});')
            ours.append(f"{struct}.{name} {field.offset:x} {field.size:x}")
    for request in ("OP", "REG_REGION", "UNREG_REGION"):
        name = f"KVM_MEMORY_ENCRYPT_{request}"
        lines.append(f'printf("{name} %x\\n", (unsigned)({name}));')
        ours.append(f"{name} {globals()[name]:x}")
    source = tmp_path / "layout.c"
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    build = [compiler, "-Wall", "-Werror", "-o", str(tmp_path / "layout"), str(source)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert 0 == built.returncode, built.stderr
    said = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    assert len(KvmSevCommand) - 1 <= sum(line.startswith("KVM_SEV_") for line in ours)
    assert ours == said.splitlines()
