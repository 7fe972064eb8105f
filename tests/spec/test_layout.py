"""Offsets, sizes and directions, typed from the dossier's tables and not from the code.

origin = sev-api.md §5–§10 (in ``buffer_layouts``), launch-inputs.md §3, §6–§8, memory-encryption.md §10.2,
sev-crypto.md §2, §2.3, §2.4, §3, §7.1, §9, §10, §12.  A line is: offset and size in hex, name, direction
("in" is left out).
"""

from __future__ import annotations

import pytest

from cbit.spec import (
    amd_certificate,
    attestation_report,
    certificate,
    id_block,
    kernel_hash_table,
    session,
    sev_metadata,
    snp_launch,
    snp_report,
    vmsa,
)
from cbit.spec.certificate import BODY_SIZE, CERT_SIZE, CHAIN_SIZE
from cbit.spec.linux_boot import boot_params
from cbit.spec.wire import Wire
from spec.buffer_layouts import BUFFERS
from spec.wires import WIRES

PAPER: dict[type[Wire], tuple[int, str]] = {
    **BUFFERS,
    # sev-crypto.md §2, §2.3, §2.4
    certificate.SevCert: (
        0x824,
        """
        000 4   version
        004 1   api_major
        005 1   api_minor
        006 2   reserved
        008 4   pubkey_usage
        00C 4   pubkey_algo
        010 404 pubkey
        414 4   sig1_usage
        418 4   sig1_algo
        41C 200 sig1
        61C 4   sig2_usage
        620 4   sig2_algo
        624 200 sig2
        """,
    ),
    certificate.EcPublicKey: (
        0x404,
        """
        00 4  curve
        04 48 qx
        4C 48 qy
        """,
    ),
    certificate.RsaPublicKey: (
        0x404,
        """
        000 4   modulus_size
        004 200 pubexp
        204 200 modulus
        """,
    ),
    certificate.EcdsaSignature: (
        0x200,
        """
        00 48 r
        48 48 s
        """,
    ),
    # sev-crypto.md §3
    amd_certificate.AmdCertHeader: (
        0x40,
        """
        00 4  version
        04 10 key_id
        14 10 certifying_key_id
        24 4  key_usage
        38 4  pubexp_size
        3C 4  modulus_size
        """,
    ),
    # sev-crypto.md §7.1, §9, §10
    session.Session: (
        0x80,
        """
        00 10 nonce
        10 20 wrap_tk
        30 10 wrap_iv
        40 20 wrap_mac
        60 20 policy_mac
        """,
    ),
    session.MeasureBlob: (
        0x30,
        """
        00 20 measure
        20 10 mnonce
        """,
    ),
    session.PacketHeader: (
        0x34,
        """
        00 4  flags
        04 10 iv
        14 20 mac
        """,
    ),
    # sev-crypto.md §12
    attestation_report.AttestationReport: (
        0xD0,
        """
        00 10 mnonce
        10 20 launch_digest
        30 4  policy
        34 4  sig_usage
        38 4  sig_algo
        40 48 r
        88 48 s
        """,
    ),
    # launch-inputs.md §8, §9
    snp_report.SnpReport: (
        0x4A0,
        """
        000 4   version
        004 4   guest_svn
        008 8   policy
        010 10  family_id
        020 10  image_id
        030 4   vmpl
        034 4   signature_algo
        038 8   current_tcb
        040 8   platform_info
        048 4   key_info
        050 40  report_data
        090 30  measurement
        0C0 20  host_data
        0E0 30  id_key_digest
        110 30  author_key_digest
        140 20  report_id
        160 20  report_id_ma
        180 8   reported_tcb
        188 1   cpuid_family
        189 1   cpuid_model
        18A 1   cpuid_stepping
        1A0 40  chip_id
        1E0 8   committed_tcb
        1E8 1   current_build
        1E9 1   current_minor
        1EA 1   current_major
        1EC 1   committed_build
        1ED 1   committed_minor
        1EE 1   committed_major
        1F0 8   launch_tcb
        1F8 8   launch_mit_vector
        200 8   current_mit_vector
        2A0 48  r
        2E8 48  s
        """,
    ),
    snp_report.CertTableEntry: (
        0x18,
        """
        00 10 guid
        10 4  offset
        14 4  length
        """,
    ),
    # launch-inputs.md §3
    kernel_hash_table.KernelHashTable: (
        0xB0,
        """
        00 10 guid
        10 2  length
        12 10 cmdline_guid
        22 2  cmdline_length
        24 20 cmdline_hash
        44 10 initrd_guid
        54 2  initrd_length
        56 20 initrd_hash
        76 10 kernel_guid
        86 2  kernel_length
        88 20 kernel_hash
        """,
    ),
    # launch-inputs.md §6
    vmsa.Segment: (
        0x10,
        """
        0 2 selector
        2 2 attributes
        4 4 limit
        8 8 base
        """,
    ),
    # launch-inputs.md §6.1, memory-encryption.md §10.2
    vmsa.Vmsa: (
        0x1000,
        """
        000 10 es
        010 10 cs
        020 10 ss
        030 10 ds
        040 10 fs
        050 10 gs
        060 10 gdtr
        070 10 ldtr
        080 10 idtr
        090 10 tr
        0CA 1  vmpl
        0CB 1  cpl
        0D0 8  efer
        140 8  xss
        148 8  cr4
        150 8  cr3
        158 8  cr0
        160 8  dr7
        168 8  dr6
        170 8  rflags
        178 8  rip
        180 8  dr0
        188 8  dr1
        190 8  dr2
        198 8  dr3
        1A0 8  dr0_mask
        1A8 8  dr1_mask
        1B0 8  dr2_mask
        1B8 8  dr3_mask
        1D8 8  rsp
        1E0 8  s_cet
        1E8 8  ssp
        1F0 8  isst_addr
        1F8 8  rax
        200 8  star
        208 8  lstar
        210 8  cstar
        218 8  sfmask
        220 8  kernel_gs_base
        228 8  sysenter_cs
        230 8  sysenter_esp
        238 8  sysenter_eip
        240 8  cr2
        268 8  g_pat
        270 8  dbgctl
        278 8  br_from
        280 8  br_to
        288 8  last_excp_from
        290 8  last_excp_to
        2E8 4  pkru
        2EC 4  tsc_aux
        2F0 8  tsc_scale
        2F8 8  tsc_offset
        300 8  reg_prot_nonce
        308 8  rcx
        310 8  rdx
        318 8  rbx
        320 8  secure_avic_control
        328 8  rbp
        330 8  rsi
        338 8  rdi
        340 8  r8
        348 8  r9
        350 8  r10
        358 8  r11
        360 8  r12
        368 8  r13
        370 8  r14
        378 8  r15
        380 8  firmware_zero
        388 8  firmware_checksum_paddr
        390 8  exit_info_1
        398 8  exit_info_2
        3A0 8  exit_int_info
        3A8 8  next_rip
        3B0 8  sev_features
        3B8 8  vintr_ctrl
        3C0 8  exit_code
        3C8 8  virtual_tom
        3D0 8  tlb_id
        3D8 8  pcpu_id
        3E0 8  event_inj
        3E8 8  xcr0
        400 8  x87_dp
        408 4  mxcsr
        40C 2  x87_ftw
        40E 2  x87_fsw
        410 2  x87_fcw
        412 2  x87_fop
        414 2  x87_ds
        416 2  x87_cs
        418 8  x87_rip
        420 50 x87_registers
        470 100 xmm
        570 100 ymm_high
        670 990 unused
        """,
    ),
    # launch-inputs.md §7.1
    snp_launch.PageInfo: (
        0x70,
        """
        00 30 digest_cur
        30 30 contents
        60 2  length
        62 1  page_type
        63 1  imi_page
        65 1  vmpl1_permissions
        66 1  vmpl2_permissions
        67 1  vmpl3_permissions
        68 8  gpa
        """,
    ),
    # launch-inputs.md §7.3
    sev_metadata.MetadataHeader: (
        0x10,
        """
        0 4 magic
        4 4 length
        8 4 version
        C 4 count
        """,
    ),
    sev_metadata.MetadataSection: (
        0xC,
        """
        0 4 base
        4 4 size
        8 4 kind
        """,
    ),
    # Linux, Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header") and zero-page.rst
    boot_params.MemoryRange: (
        0x14,
        """
        00 8 base
        08 8 length
        10 4 kind
        """,
    ),
    boot_params.BootParams: (
        0x1000,
        """
        070 8   acpi_rsdp_addr
        1E8 1   e820_entries
        1F1 1   setup_sects
        1F2 2   root_flags
        1F4 4   syssize
        1F8 2   ram_size
        1FA 2   vid_mode
        1FC 2   root_dev
        1FE 2   boot_flag
        200 2   jump
        202 4   header
        206 2   version
        208 4   realmode_swtch
        20C 2   start_sys_seg
        20E 2   kernel_version
        210 1   type_of_loader
        211 1   loadflags
        212 2   setup_move_size
        214 4   code32_start
        218 4   ramdisk_image
        21C 4   ramdisk_size
        220 4   bootsect_kludge
        224 2   heap_end_ptr
        226 1   ext_loader_ver
        227 1   ext_loader_type
        228 4   cmd_line_ptr
        22C 4   initrd_addr_max
        230 4   kernel_alignment
        234 1   relocatable_kernel
        235 1   min_alignment
        236 2   xloadflags
        238 4   cmdline_size
        23C 4   hardware_subarch
        240 8   hardware_subarch_data
        248 4   payload_offset
        24C 4   payload_length
        250 8   setup_data
        258 8   pref_address
        260 4   init_size
        264 4   handover_offset
        268 4   kernel_info_offset
        2D0 A00 e820_table
        """,
    ),
    # launch-inputs.md §7.5
    id_block.IdBlock: (
        0x60,
        """
        00 30 launch_digest
        30 10 family_id
        40 10 image_id
        50 4  version
        54 4  guest_svn
        58 8  policy
        """,
    ),
    id_block.IdAuth: (
        0x1000,
        """
        000 4   id_key_algo
        004 4   author_key_algo
        040 200 id_block_sig
        240 404 id_key
        680 200 id_key_sig
        880 404 author_key
        """,
    ),
}


def fields_of(table: str) -> dict[str, tuple[int, int, str]]:
    rows = (line.split() for line in table.strip().splitlines())
    return {name: (int(at, 16), int(size, 16), *(rest or ["in"])) for at, size, name, *rest in rows}  # type: ignore[misc]  # a row has three or four words


def test_every_structure_is_pinned_here() -> None:
    assert set(WIRES) == set(PAPER)


@pytest.mark.parametrize("cls", WIRES, ids=lambda cls: cls.__name__)
def test_layout_is_the_papers(cls: type[Wire]) -> None:
    size, table = PAPER[cls]
    found = {f.name: (f.offset, f.size, f.direction.value) for f in cls.FIELDS.values()}
    assert fields_of(table) == found
    assert size == cls.SIZE


def test_certificate_sizes() -> None:
    assert (CERT_SIZE, BODY_SIZE, CHAIN_SIZE) == (0x824, 0x414, 0x186C)
