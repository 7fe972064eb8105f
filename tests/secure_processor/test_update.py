"""Other firmware while the machine is on: what runs then, until when, and the way back."""

from __future__ import annotations

import pytest

from cbit.machine.manufacture import SVN
from cbit.secure_processor.dispatch import COMMANDS
from cbit.secure_processor.image import sev_firmware
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status
from secure_processor.worlds import World, vendor_key


def image(world: World, *, svn: int = SVN, missing: Command | None = None) -> bytes:
    listed = [command for command in COMMANDS if command is not missing]
    return sev_firmware(vendor_key(world.folder), api=ApiVersion(1, 2), build=3, svn=svn, commands=listed)


def download(world: World, data: bytes) -> int:
    asked = buffers.DownloadFirmware(paddr=world.desk.put(data), length=len(data))
    return world.desk.status_of(Command.DOWNLOAD_FIRMWARE, asked)


def download_ex(world: World, data: bytes, *, flags: int) -> int:
    asked = buffers.DownloadFirmwareEx(paddr=world.desk.put(data), fw_length=len(data), flags=flags)
    return world.desk.status_of(Command.DOWNLOAD_FIRMWARE_EX, asked)


def version(world: World) -> tuple[int, int, int]:
    status = world.desk.platform()
    return status.api_major, status.api_minor, status.build


@pytest.mark.parametrize("ex", [False, True])
def test_other_firmware_runs_until_reset(world: World, ex: bool) -> None:
    before = world.init().export()
    world.desk.do(Command.SHUTDOWN)
    data = image(world, missing=Command.PEK_CSR)
    assert Status.SUCCESS == (download_ex(world, data, flags=0) if ex else download(world, data))
    assert (1, 2, 3) == version(world)
    assert before[0] == world.init().export()[0]  # the identity is the chip's, not the firmware's
    asked = buffers.PekCsr(paddr=0, length=0)
    assert Status.INVALID_COMMAND == world.desk.status_of(Command.PEK_CSR, asked)
    world.machine.reset()
    assert (0, 17, 48) == version(world)
    assert Status.INVALID_LENGTH == world.init().desk.status_of(Command.PEK_CSR, asked)


@pytest.mark.parametrize(("flags", "way_back"), [(0, True), (1, False), (0xFFFFFFFE, True)])
def test_commit_closes_the_way_back_until_reset(world: World, flags: int, way_back: bool) -> None:
    newer, older = image(world, svn=SVN + 1), image(world)
    assert Status.SUCCESS == download_ex(world, newer, flags=flags)
    expected = Status.SUCCESS if way_back else Status.BAD_SVN
    assert expected == download(world, older)
    assert expected == download_ex(world, older, flags=0)
    assert Status.SUCCESS == download(world, newer)
    world.machine.reset()
    assert Status.SUCCESS == download(world, older)


def test_an_image_that_is_refused_is_not_committed(world: World) -> None:
    newer = bytearray(image(world, svn=SVN + 1))
    newer[0x60] ^= 1  # the build number
    assert Status.BAD_SIGNATURE == download_ex(world, bytes(newer), flags=1)
    assert (0, 17, 48) == version(world)
    assert Status.SUCCESS == download(world, image(world))
