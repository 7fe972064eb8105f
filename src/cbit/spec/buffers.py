"""Parameter buffers of the mailbox commands: layouts only, behaviour is in the secure processor's commands.

Paper: sev-api.md §5 (platform), §6 (guest), §7 (launch), §8 and §9 (migration), §10 (debug,
swap).
"""

from __future__ import annotations

from cbit.spec.states import GuestState
from cbit.spec.wire import Dir, Wire, at


class Init(Wire, size=0x14):
    """Parameter buffer of INIT: start the platform, with or without SEV-ES.

    Paper: sev-api.md §5, INIT.
    """

    flags: int = at(0x00, 4, default=0)  # bit 0 ES; the others must be 0
    tmr_paddr: int = at(0x08, 8, default=0)  # ignored if ES=0
    tmr_length: int = at(0x10, 4, default=0)


class InitEx(Wire, size=0x24):
    """Parameter buffer of INIT_EX: INIT, and where the host keeps the non-volatile store.

    Paper: sev-api.md §5, INIT_EX.
    """

    length: int = at(0x00, 4, default=0x24)
    flags: int = at(0x04, 4, default=0)
    tmr_paddr: int = at(0x08, 8, default=0)
    tmr_length: int = at(0x10, 4, default=0)
    nv_paddr: int = at(0x18, 8, default=0)  # 0: the flash, as INIT
    nv_length: int = at(0x20, 4, default=0)


class DownloadFirmware(Wire, size=0x0C):
    """Parameter buffer of DOWNLOAD_FIRMWARE: a signed image that takes the firmware's place until reset.

    Paper: sev-api.md §5, DOWNLOAD_FIRMWARE.
    """

    paddr: int = at(0x00, 8)
    length: int = at(0x08, 4)


class DownloadFirmwareEx(Wire, size=0x18):
    """Parameter buffer of DOWNLOAD_FIRMWARE_EX: the same, and whether there shall be a way back.

    Paper: sev-api.md §5, DOWNLOAD_FIRMWARE.
    """

    length: int = at(0x00, 4, default=0x18)
    paddr: int = at(0x08, 8)
    fw_length: int = at(0x10, 4)
    flags: int = at(0x14, 4, default=0)  # bit 0 COMMIT


class PlatformStatus(Wire, size=0x0C):
    """Answer of PLATFORM_STATUS: version, state and owner of the platform.

    Paper: sev-api.md §5, PLATFORM_STATUS.
    """

    api_major: int = at(0x00, 1, Dir.OUT, default=0)
    api_minor: int = at(0x01, 1, Dir.OUT, default=0)
    state: int = at(0x02, 1, Dir.OUT, default=0)
    owner: int = at(0x03, 1, Dir.OUT, default=0)  # bit 0: externally owned
    config: int = at(0x04, 2, Dir.OUT, default=0)  # bit 0: ES initialised
    build: int = at(0x07, 1, Dir.OUT, default=0)
    guest_count: int = at(0x08, 4, Dir.OUT, default=0)


class PekCsr(Wire, size=0x0C):
    """Parameter buffer of PEK_CSR: ask with length 0 to learn the length.

    Paper: sev-api.md §5, PEK_CSR.
    """

    paddr: int = at(0x00, 8)
    length: int = at(0x08, 4, Dir.IN_OUT)


class PekCertImport(Wire, size=0x1C):
    """Parameter buffer of PEK_CERT_IMPORT: an organisation takes ownership of the platform.

    Paper: sev-api.md §5, PEK_CERT_IMPORT.
    """

    pek_paddr: int = at(0x00, 8)
    pek_len: int = at(0x08, 4)
    oca_paddr: int = at(0x10, 8)
    oca_len: int = at(0x18, 4)


class PdhCertExport(Wire, size=0x1C):
    """Parameter buffer of PDH_CERT_EXPORT.

    Too short a length is refused with INVALID_LENGTH, and both lengths are corrected in place.

    Paper: sev-api.md §5, PDH_CERT_EXPORT.
    """

    pdh_paddr: int = at(0x00, 8)
    pdh_len: int = at(0x08, 4, Dir.IN_OUT)
    certs_paddr: int = at(0x10, 8)
    certs_len: int = at(0x18, 4, Dir.IN_OUT)


class GetId(Wire, size=0x0C):
    """Parameter buffer of GET_ID: 64 bytes per socket.

    Paper: sev-api.md §5, GET_ID.
    """

    paddr: int = at(0x00, 8)
    length: int = at(0x08, 4, Dir.IN_OUT)


class RingBuffer(Wire, size=0x28):
    """Parameter buffer of RING_BUFFER: two queues of commands, and where their statuses go.

    Paper: sev-api.md §5, RING_BUFFER.
    """

    lo_cmd_paddr: int = at(0x00, 8)
    lo_stat_paddr: int = at(0x08, 8)
    hi_cmd_paddr: int = at(0x10, 8, default=0)
    hi_stat_paddr: int = at(0x18, 8, default=0)
    lo_size: int = at(0x20, 1, default=1)  # pages: 1
    hi_size: int = at(0x21, 1, default=0)  # 0: there is no such queue
    lo_threshold: int = at(0x22, 2, default=0)
    hi_threshold: int = at(0x24, 2, default=0)
    int_on_empty: int = at(0x26, 2, default=0)  # bit 0


class GuestHandle(Wire, size=0x04):
    """Parameter buffer of DECOMMISSION, DEACTIVATE and of what ends a launch or a migration: a handle alone.

    Paper: sev-api.md §6 to §9.
    """

    handle: int = at(0x00, 4)


class Activate(Wire, size=0x08):
    """Parameter buffer of ACTIVATE: put the guest's key into the slot of an ASID.

    Paper: sev-api.md §6, ACTIVATE.
    """

    handle: int = at(0x00, 4)
    asid: int = at(0x04, 4)


class ActivateEx(Wire, size=0x18):
    """Parameter buffer of ACTIVATE_EX: ACTIVATE on the core complexes of some cores.

    Paper: sev-api.md §6, ACTIVATE_EX.
    """

    length: int = at(0x00, 4, default=0x18)
    handle: int = at(0x04, 4)
    asid: int = at(0x08, 4)
    numids: int = at(0x0C, 4)
    ids_paddr: int = at(0x10, 8)  # APIC ids, 32 bits each


class GuestStatus(Wire, size=0x0D):
    """Parameter buffer of GUEST_STATUS: an invalid handle is answered with SUCCESS and UNINIT.

    Paper: sev-api.md §6, GUEST_STATUS.
    """

    handle: int = at(0x00, 4)
    policy: int = at(0x04, 4, Dir.OUT, default=0)
    asid: int = at(0x08, 4, Dir.OUT, default=0)
    state: GuestState = at(0x0C, 1, Dir.OUT, default=GuestState.UNINIT)


class Copy(Wire, size=0x18):
    """Parameter buffer of COPY: move encrypted pages of a guest to other addresses.

    Paper: sev-api.md §6, COPY.
    """

    handle: int = at(0x00, 4)
    length: int = at(0x04, 4)
    src: int = at(0x08, 8)
    dst: int = at(0x10, 8)


class LaunchStart(Wire, size=0x24):
    """Parameter buffer of LAUNCH_START: make a guest context and open the owner's session.

    Paper: sev-api.md §7, LAUNCH_START.
    """

    handle: int = at(0x00, 4, Dir.IN_OUT, default=0)  # 0, or the guest whose key is shared
    policy: int = at(0x04, 4)
    dh_cert_paddr: int = at(0x08, 8, default=0)  # 0: no session, the next three are ignored
    dh_cert_len: int = at(0x10, 4, default=0)
    session_paddr: int = at(0x18, 8, default=0)
    session_len: int = at(0x20, 4, default=0)


class LaunchUpdateData(Wire, size=0x14):
    """Parameter buffer of LAUNCH_UPDATE_DATA: measure and encrypt one region in place.

    Paper: sev-api.md §7, LAUNCH_UPDATE_DATA.
    """

    handle: int = at(0x00, 4)
    paddr: int = at(0x08, 8)
    length: int = at(0x10, 4)


class LaunchUpdateVmsa(Wire, size=0x14):
    """Parameter buffer of LAUNCH_UPDATE_VMSA: measure and encrypt the save area of a virtual CPU.

    Paper: sev-api.md §7, LAUNCH_UPDATE_VMSA.
    """

    handle: int = at(0x00, 4)
    paddr: int = at(0x08, 8)
    length: int = at(0x10, 4, default=0x1000)


class LaunchMeasure(Wire, size=0x14):
    """Parameter buffer of LAUNCH_MEASURE.

    A short length is refused with INVALID_LENGTH *and* corrected in place: ask twice.

    Paper: sev-api.md §7, LAUNCH_MEASURE.
    """

    handle: int = at(0x00, 4)
    measure_paddr: int = at(0x08, 8)
    measure_len: int = at(0x10, 4, Dir.IN_OUT)


class LaunchSecret(Wire, size=0x34):
    """Parameter buffer of LAUNCH_SECRET: inject a packet that the owner sealed for this launch.

    Paper: sev-api.md §7, LAUNCH_SECRET.
    """

    handle: int = at(0x00, 4)
    hdr_paddr: int = at(0x08, 8)
    hdr_len: int = at(0x10, 4)
    guest_paddr: int = at(0x18, 8)
    guest_len: int = at(0x20, 4)
    trans_paddr: int = at(0x28, 8)
    trans_len: int = at(0x30, 4)


class Attestation(Wire, size=0x24):
    """Parameter buffer of ATTESTATION: ask with a short length to learn the length.

    Paper: sev-api.md §7, ATTESTATION.
    """

    handle: int = at(0x00, 4)
    paddr: int = at(0x08, 8)
    mnonce: bytes = at(0x10, 16)  # the caller's: the report repeats it
    length: int = at(0x20, 4, Dir.IN_OUT)


class SendStart(Wire, size=0x44):
    """Parameter buffer of SEND_START: who shall receive the guest, and where its session goes.

    Paper: sev-api.md §8, SEND_START.
    """

    handle: int = at(0x00, 4)
    policy: int = at(0x04, 4, Dir.OUT, default=0)
    pdh_cert_paddr: int = at(0x08, 8)  # the receiver's
    pdh_cert_len: int = at(0x10, 4)
    plat_certs_paddr: int = at(0x18, 8, default=0)  # PEK, OCA, CEK: under POLICY.SEV and POLICY.DOMAIN
    plat_certs_len: int = at(0x20, 4, default=0)
    amd_certs_paddr: int = at(0x28, 8, default=0)  # ASK, ARK: under POLICY.SEV
    amd_certs_len: int = at(0x30, 4, default=0)
    session_paddr: int = at(0x38, 8)
    session_len: int = at(0x40, 4, Dir.IN_OUT)


class SendUpdateData(Wire, size=0x34):
    """Parameter buffer of SEND_UPDATE_DATA: seal guest memory for the receiver.

    A short ``hdr_len`` is refused with INVALID_LENGTH *and* corrected in place.

    Paper: sev-api.md §8, SEND_UPDATE_DATA.
    """

    handle: int = at(0x00, 4)
    hdr_paddr: int = at(0x08, 8)
    hdr_len: int = at(0x10, 4, Dir.IN_OUT)
    guest_paddr: int = at(0x18, 8)
    guest_len: int = at(0x20, 4)
    trans_paddr: int = at(0x28, 8)
    trans_len: int = at(0x30, 4)


class ReceiveStart(Wire, size=0x24):
    """Parameter buffer of RECEIVE_START: make a guest context and open the sender's session.

    Paper: sev-api.md §9, RECEIVE_START.
    """

    handle: int = at(0x00, 4, Dir.IN_OUT, default=0)  # 0, or the guest whose key is shared
    policy: int = at(0x04, 4)
    pdh_cert_paddr: int = at(0x08, 8)  # the sender's
    pdh_cert_len: int = at(0x10, 4)
    session_paddr: int = at(0x18, 8)
    session_len: int = at(0x20, 4)


class ReceiveUpdateData(Wire, size=0x34):
    """Parameter buffer of RECEIVE_UPDATE_DATA: open a packet of the sender into guest memory.

    Paper: sev-api.md §9, RECEIVE_UPDATE_DATA.
    """

    handle: int = at(0x00, 4)
    hdr_paddr: int = at(0x08, 8)
    hdr_len: int = at(0x10, 4)
    guest_paddr: int = at(0x18, 8)
    guest_len: int = at(0x20, 4)
    trans_paddr: int = at(0x28, 8)
    trans_len: int = at(0x30, 4)


class Debug(Wire, size=0x1C):
    """Parameter buffer of DBG_DECRYPT and DBG_ENCRYPT.

    Paper: sev-api.md §10, DBG_DECRYPT.
    """

    handle: int = at(0x00, 4)
    src: int = at(0x08, 8)
    dst: int = at(0x10, 8)
    length: int = at(0x18, 4)


class SwapOut(Wire, size=0x28):
    """Parameter buffer of SWAP_OUT: a guest page, sealed, into memory of the host.

    Paper: sev-api.md §10, SWAP_OUT.
    """

    handle: int = at(0x00, 4)
    page: int = at(0x04, 4, default=0)  # bit 0 PAGE_SIZE (1: 2 MiB), bits 2:1 PAGE_TYPE (2: save area)
    src: int = at(0x08, 8)
    dst: int = at(0x10, 8)
    mdata: int = at(0x18, 8)
    software_data: int = at(0x20, 8, default=0)


class SwapIn(Wire, size=0x20):
    """Parameter buffer of SWAP_IN: a sealed page back into guest memory.

    Paper: sev-api.md §10, SWAP_IN.
    """

    handle: int = at(0x00, 4)
    page: int = at(0x04, 4, default=0)  # as in SWAP_OUT, and bit 3 SWAP_IN_PLACE
    src: int = at(0x08, 8)
    dst: int = at(0x10, 8)
    mdata: int = at(0x18, 8)
