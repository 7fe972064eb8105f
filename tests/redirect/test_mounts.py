"""The table of mounts is understood as the kernel writes it, and asked without touching a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.redirect import mounts
from cbit.redirect.mounts import Mount

TABLE = """\
21 26 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
42 26 0:39 / /tmp/a\\040folder\\134/sev rw,nosuid,nodev,noexec,relatime - fuse.cbit cbit rw,user_id=0
43 42 0:40 / /tmp/a\\040folder\\134/sev rw shared:1 master:2 - tmpfs some\\011thing rw
44 26 0:39 / /bound rw - fuse.cbit cbit rw
"""
WHERE = "/tmp/a folder\\/sev"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    monkeypatch.setattr(mounts, "_TABLE", path)
    return path


def test_a_line_is_taken_apart_with_its_escapes() -> None:
    found = list(mounts.mounts(TABLE))
    assert Mount(21, "0:20", "/sys", "sysfs", "sysfs") == found[0]
    assert Mount(42, "0:39", WHERE, "fuse.cbit", "cbit") == found[1]
    assert Mount(43, "0:40", WHERE, "tmpfs", "some\tthing") == found[2]
    assert [] == list(mounts.mounts(""))


def test_of_several_at_one_place_the_last_is_seen(table: Path) -> None:
    seen = mounts.seen_at(Path(WHERE))
    assert seen is not None
    assert 43 == seen.id
    assert mounts.seen_at(Path("/tmp")) is None
    table.write_text(TABLE.partition("43 42")[0])
    seen = mounts.seen_at(Path(WHERE))
    assert seen is not None
    assert "0:39" == seen.device


def test_what_a_path_leads_into_is_the_mount_below_it(tmp_path: Path) -> None:
    assert mounts.device_of(tmp_path / "nothing") is None
    proc = mounts.seen_at(Path("/proc"))
    if proc is None:
        pytest.skip("/proc is no mount point here")
    link = tmp_path / "link"
    link.symlink_to("/proc/meminfo")
    assert proc.device == mounts.device_of(Path("/proc/version")) == mounts.device_of(link)
    assert proc.device != mounts.device_of(tmp_path)
