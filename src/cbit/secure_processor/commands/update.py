"""DOWNLOAD_FIRMWARE: other firmware, past the same check as at power-on, until the next reset.

Paper: sev-api.md §5, DOWNLOAD_FIRMWARE.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.image import ImageFault, ImageKind, ImageRefused, check_image, commands_in
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import KIB, strip_c_bit
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status

ALIGNMENT: Final = 32
IMAGE_MAX: Final = 128 * KIB
#: MODEL CHOICE: the published source does not show what the boot loader answers; these are the statuses that
#: its interface has for such faults.
ANSWERS: Final[Mapping[ImageFault, Status]] = MappingProxyType(
    {
        ImageFault.FORM: Status.INVALID_LENGTH,
        ImageFault.SIGNER: Status.BAD_SIGNATURE,
        ImageFault.SIGNATURE: Status.BAD_SIGNATURE,
        ImageFault.KIND: Status.UNSUPPORTED,
        ImageFault.OLD: Status.BAD_SVN,
    }
)


#: DOWNLOAD_FIRMWARE_EX.FLAGS: no older firmware from now on.
#: MODEL CHOICE: until the next reset, which boots from the flash and knows the fuses' floor only; the dossier
#: has this command's layout and no more, so its checks are those of DOWNLOAD_FIRMWARE after that of LENGTH.
COMMIT: Final = 1 << 0


def download_firmware(call: Call[buffers.DownloadFirmware]) -> None:
    """DOWNLOAD_FIRMWARE: check an image as the boot ROM does, and run it from now on."""
    _take_over(call.firmware, call.given.paddr, call.given.length)


def download_firmware_ex(call: Call[buffers.DownloadFirmwareEx]) -> None:
    """DOWNLOAD_FIRMWARE_EX: the same, and with COMMIT nothing of an older security version after it."""
    given = call.given
    if given.length != buffers.DownloadFirmwareEx.SIZE:
        raise Refused(
            Status.INVALID_LENGTH, f"LENGTH {given.length:#x}, must be {buffers.DownloadFirmwareEx.SIZE:#x}"
        )
    svn = _take_over(call.firmware, given.paddr, given.fw_length)
    if given.flags & COMMIT:
        call.firmware.committed = svn


def _take_over(firmware: Firmware, paddr: int, length: int) -> int:
    """Verify and run an image; return its security version."""
    if strip_c_bit(paddr, firmware.memory.rules.c_bit)[0] % ALIGNMENT:
        raise Refused(Status.INVALID_ADDRESS, f"PADDR {paddr:#x} is not aligned to {ALIGNMENT}")
    if not 0 < length <= IMAGE_MAX:
        raise Refused(Status.INVALID_LENGTH, f"LEN {length:#x}: 1..{IMAGE_MAX:#x}")
    image = firmware.memory.read_host(paddr, length, "PADDR")
    try:
        header, body = check_image(
            image, kind=ImageKind.SEV_FIRMWARE, fuses=firmware.fuses, committed=firmware.committed
        )
    except ImageRefused as error:
        raise Refused(ANSWERS[error.fault], str(error)) from None
    firmware.api = ApiVersion(header.api_major, header.api_minor)
    firmware.build = header.build
    firmware.implements = commands_in(body)
    return header.svn
