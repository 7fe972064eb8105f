"""DOWNLOAD_FIRMWARE: other firmware, past the same check as at power-on, until the next reset.

Paper: sev-api.md §5, DOWNLOAD_FIRMWARE.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cbit.secure_processor.call import Call
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


def download_firmware(call: Call[buffers.DownloadFirmware]) -> None:
    """DOWNLOAD_FIRMWARE: check an image as the boot ROM does, and run it from now on."""
    firmware, given = call.firmware, call.given
    if strip_c_bit(given.paddr, firmware.memory.rules.c_bit)[0] % ALIGNMENT:
        raise Refused(Status.INVALID_ADDRESS, f"PADDR {given.paddr:#x} is not aligned to {ALIGNMENT}")
    if not 0 < given.length <= IMAGE_MAX:
        raise Refused(Status.INVALID_LENGTH, f"LEN {given.length:#x}: 1..{IMAGE_MAX:#x}")
    image = firmware.memory.read_host(given.paddr, given.length, "PADDR")
    try:
        header, body = check_image(image, kind=ImageKind.SEV_FIRMWARE, fuses=firmware.fuses)
    except ImageRefused as error:
        raise Refused(ANSWERS[error.fault], str(error)) from None
    firmware.api = ApiVersion(header.api_major, header.api_minor)
    firmware.build = header.build
    firmware.implements = commands_in(body)
