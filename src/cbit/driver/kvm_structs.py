"""What a program hands to KVM's memory-encryption requests: user structures and sub-command numbers.

Unlike those of /dev/sev they are naturally aligned; what stands in the padding is nobody's business.

Paper: sev-api.md §13.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from cbit.spec.wire import Dir, Wire, at


class KvmSevCommand(IntEnum):
    """Sub-commands of KVM_MEMORY_ENCRYPT_OP.

    Paper: sev-api.md §13.
    """

    SEV_INIT = 0
    SEV_ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    CERT_EXPORT = 19
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22  # newer than SEND_CANCEL by three years: older headers end before it


class VmType(IntEnum):
    """Types of KVM_CREATE_VM that may have encrypted memory.

    Paper: sev-api.md §13.
    """

    DEFAULT = 0
    SEV = 2
    SEV_ES = 3


class KvmSevCmd(Wire, size=0x18):
    """Argument of KVM_MEMORY_ENCRYPT_OP, ``struct kvm_sev_cmd``.

    Paper: sev-api.md §13.
    """

    id: int = at(0x00, 4)
    data: int = at(0x08, 8, default=0)  # address of the sub-command's own structure
    error: int = at(0x10, 4, Dir.OUT, default=0)  # status of the last firmware command
    sev_fd: int = at(0x14, 4, default=0)  # /dev/sev, as the caller has it open


#: _IOWR(0xAE, 0xBA, unsigned long)
KVM_MEMORY_ENCRYPT_OP: Final = 3 << 30 | 8 << 16 | 0xAE << 8 | 0xBA


class EncRegion(Wire, size=0x10):
    """Argument of the two region requests, ``struct kvm_enc_region``.

    Paper: sev-api.md §13.
    """

    addr: int = at(0x00, 8)
    size: int = at(0x08, 8)


#: _IOR(0xAE, 0xBB, struct kvm_enc_region), and the same with 0xBC
KVM_MEMORY_ENCRYPT_REG_REGION: Final = 2 << 30 | EncRegion.SIZE << 16 | 0xAE << 8 | 0xBB
KVM_MEMORY_ENCRYPT_UNREG_REGION: Final = 2 << 30 | EncRegion.SIZE << 16 | 0xAE << 8 | 0xBC


class KvmInit2(Wire, size=0x30):
    """Request of INIT2, ``struct kvm_sev_init``.

    Paper: sev-api.md §13.
    """

    vmsa_features: int = at(0x00, 8, default=0)
    flags: int = at(0x08, 4, default=0)
    ghcb_version: int = at(0x0C, 2, default=0)


class KvmLaunchStart(Wire, size=0x28):
    """Request of LAUNCH_START, ``struct kvm_sev_launch_start``.

    Paper: sev-api.md §13.
    """

    handle: int = at(0x00, 4, Dir.IN_OUT, default=0)
    policy: int = at(0x04, 4)
    dh_uaddr: int = at(0x08, 8, default=0)
    dh_len: int = at(0x10, 4, default=0)
    session_uaddr: int = at(0x18, 8, default=0)
    session_len: int = at(0x20, 4, default=0)


class KvmLaunchUpdateData(Wire, size=0x10):
    """Request of LAUNCH_UPDATE_DATA, ``struct kvm_sev_launch_update_data``.

    Paper: sev-api.md §13.
    """

    uaddr: int = at(0x00, 8)
    len: int = at(0x08, 4)


class KvmPacket(Wire, size=0x30):
    """Request of LAUNCH_SECRET, SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA: header, guest memory, ciphertext.

    Paper: sev-api.md §13.
    """

    hdr_uaddr: int = at(0x00, 8)
    hdr_len: int = at(0x08, 4, Dir.IN_OUT)
    guest_uaddr: int = at(0x10, 8)
    guest_len: int = at(0x18, 4)
    trans_uaddr: int = at(0x20, 8)
    trans_len: int = at(0x28, 4, Dir.IN_OUT)


class KvmLaunchMeasure(Wire, size=0x10):
    """Request of LAUNCH_MEASURE, ``struct kvm_sev_launch_measure``: length 0 asks for the length.

    Paper: sev-api.md §13.
    """

    uaddr: int = at(0x00, 8)
    len: int = at(0x08, 4, Dir.IN_OUT)


class KvmGuestStatus(Wire, size=0x0C):
    """Answer of GUEST_STATUS, ``struct kvm_sev_guest_status``.

    Paper: sev-api.md §13.
    """

    handle: int = at(0x00, 4, Dir.OUT, default=0)
    policy: int = at(0x04, 4, Dir.OUT, default=0)
    state: int = at(0x08, 4, Dir.OUT, default=0)


class KvmDebug(Wire, size=0x18):
    """Request of DBG_DECRYPT and DBG_ENCRYPT, ``struct kvm_sev_dbg``.

    Paper: sev-api.md §13.
    """

    src_uaddr: int = at(0x00, 8)
    dst_uaddr: int = at(0x08, 8)
    len: int = at(0x10, 4)


class KvmAttestationReport(Wire, size=0x20):
    """Request of GET_ATTESTATION_REPORT, ``struct kvm_sev_attestation_report``: length 0 asks for the length.

    Paper: sev-api.md §13.
    """

    mnonce: bytes = at(0x00, 16)
    uaddr: int = at(0x10, 8)
    len: int = at(0x18, 4, Dir.IN_OUT)


class KvmSendStart(Wire, size=0x48):
    """Request of SEND_START, ``struct kvm_sev_send_start``: session length 0 asks for the length.

    Paper: sev-api.md §13.
    """

    policy: int = at(0x00, 4, Dir.OUT, default=0)
    pdh_cert_uaddr: int = at(0x08, 8)
    pdh_cert_len: int = at(0x10, 4)
    plat_certs_uaddr: int = at(0x18, 8)
    plat_certs_len: int = at(0x20, 4)
    amd_certs_uaddr: int = at(0x28, 8)
    amd_certs_len: int = at(0x30, 4)
    session_uaddr: int = at(0x38, 8)
    session_len: int = at(0x40, 4, Dir.IN_OUT)


class KvmReceiveStart(Wire, size=0x28):
    """Request of RECEIVE_START, ``struct kvm_sev_receive_start``.

    Paper: sev-api.md §13.
    """

    handle: int = at(0x00, 4, Dir.IN_OUT, default=0)
    policy: int = at(0x04, 4)
    pdh_uaddr: int = at(0x08, 8)
    pdh_len: int = at(0x10, 4)
    session_uaddr: int = at(0x18, 8)
    session_len: int = at(0x20, 4)
