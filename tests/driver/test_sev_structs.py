"""The user structures are the kernel's: sizes, offsets, numbers, from the dossier and from its own header."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.driver import sev_structs as structs
from cbit.driver.sev_structs import SEV_ISSUE_CMD, SevCommand
from cbit.spec.errors import WireError
from cbit.spec.wire import Wire
from spec.wires import structures

#: origin = sev-api.md §12: size, then "offset size" of each field, all in hex.
PAPER: dict[type[Wire], tuple[int, str]] = {
    structs.IssueCmd: (0x10, "0 4, 4 8, C 4"),
    structs.UserStatus: (0x0C, "0 1, 1 1, 2 1, 3 4, 7 1, 8 4"),
    structs.UserPekCsr: (0x0C, "0 8, 8 4"),
    structs.UserPdhCertExport: (0x18, "0 8, 8 4, C 8, 14 4"),
    structs.UserPekCertImport: (0x18, "0 8, 8 4, C 8, 14 4"),
    structs.UserGetId: (0x80, "0 40, 40 40"),
    structs.UserGetId2: (0x0C, "0 8, 8 4"),
}

#: Our structure, the kernel's name of it, and of each of its fields in their order.
HEADER: dict[type[Wire], tuple[str, str]] = {
    structs.IssueCmd: ("sev_issue_cmd", "cmd data error"),
    structs.UserStatus: ("sev_user_data_status", "api_major api_minor state flags build guest_count"),
    structs.UserPekCsr: ("sev_user_data_pek_csr", "address length"),
    structs.UserPdhCertExport: (
        "sev_user_data_pdh_cert_export",
        "pdh_cert_address pdh_cert_len cert_chain_address cert_chain_len",
    ),
    structs.UserPekCertImport: (
        "sev_user_data_pek_cert_import",
        "pek_cert_address pek_cert_len oca_cert_address oca_cert_len",
    ),
    structs.UserGetId: ("sev_user_data_get_id", "socket1 socket2"),
    structs.UserGetId2: ("sev_user_data_get_id2", "address length"),
}


def layout(cls: type[Wire]) -> tuple[int, str]:
    return cls.SIZE, ", ".join(f"{field.offset:X} {field.size:X}" for field in cls.FIELDS.values())


def test_every_structure_is_pinned_here() -> None:
    ours = {
        cls
        for cls in vars(structs).values()
        if isinstance(cls, type) and issubclass(cls, Wire) and cls is not Wire
    }
    assert ours == set(PAPER) == set(HEADER)


@pytest.mark.parametrize("cls", PAPER, ids=lambda cls: cls.__name__)
def test_layout_is_the_papers(cls: type[Wire]) -> None:
    assert PAPER[cls] == layout(cls)
    assert [] == cls.gaps(), "user structures have no reserved words"


def test_numbers_are_the_papers() -> None:
    names = (
        "FACTORY_RESET PLATFORM_STATUS PEK_GEN PEK_CSR PDH_GEN PDH_CERT_EXPORT PEK_CERT_IMPORT GET_ID GET_ID2"
    )
    snp = "SNP_PLATFORM_STATUS SNP_COMMIT SNP_SET_CONFIG SNP_VLEK_LOAD"
    assert {name: number for number, name in enumerate(f"{names} {snp}".split())} == dict(
        SevCommand.__members__
    )
    assert (0xC0105300, 0x4000) == (SEV_ISSUE_CMD, structs.BLOB_MAX)


def test_redirect_and_driver_mean_the_same_request() -> None:
    from cbit.redirect import files

    assert files.SEV_ISSUE_CMD == SEV_ISSUE_CMD


def test_the_kernels_header_says_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    lines = ['printf("SEV_ISSUE_CMD %lx\\n", (unsigned long)SEV_ISSUE_CMD);']
    known = [command for command in SevCommand if command <= SevCommand.GET_ID2]  # newer headers have SNP's
    lines += [f'printf("SEV_{c.name} %lx\\n", (unsigned long)SEV_{c.name});' for c in known]
    for struct, fields in HEADER.values():
        lines.append(f'printf("{struct} %lx\\n", sizeof(struct {struct}));')
        for field in fields.split():
            measures = f"offsetof(struct {struct}, {field}), sizeof(((struct {struct} *)0)->{field})"
            lines.append(f'printf("{struct}.{field} %lx %lx\\n", {measures});')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/psp-sev.h>\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    build = [compiler, "-Wall", "-Werror", "-o", str(tmp_path / "layout"), str(source)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "psp-sev.h" in built.stderr and "No such file" in built.stderr:
        pytest.skip("linux/psp-sev.h is not here: apt install linux-libc-dev")
    assert 0 == built.returncode, built.stderr
    out = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout

    ours = [f"SEV_ISSUE_CMD {SEV_ISSUE_CMD:x}", *(f"SEV_{c.name} {c:x}" for c in known)]
    for cls, (struct, fields) in HEADER.items():
        ours.append(f"{struct} {cls.SIZE:x}")
        ours += [
            f"{struct}.{name} {field.offset:x} {field.size:x}"
            for name, field in zip(fields.split(), cls.FIELDS.values(), strict=True)
        ]
    assert ours == out.splitlines()


@pytest.mark.parametrize("cls", PAPER, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_bytes_come_back(cls: type[Wire], data: st.DataObject) -> None:
    value = data.draw(structures(cls))
    assert value == cls.parse(bytes(value))
    raw = data.draw(st.binary(max_size=2 * cls.SIZE))
    if len(raw) == cls.SIZE:
        assert raw == bytes(cls.parse(raw))
    else:
        with pytest.raises(WireError, match="bytes, must be"):
            cls.parse(raw)
