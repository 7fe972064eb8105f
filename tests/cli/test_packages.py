"""Packages are fetched as an ordinary user and kept; whatever goes wrong is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage, cache_folder, depends_on, fetch

APT_GET = """#!/bin/sh
echo "$@" >> {log}
for package; do :; done
version=$(cat {lists}/$package 2>/dev/null) || {{ echo "E: Unable to locate $package" >&2; exit 100; }}
case "$*" in
*--print-uris*) echo "'http://mirror/$package.deb' ${{package}}_${{version}}_amd64.deb 1 SHA256:0" ;;
*) [ -e {lists}/offline ] && {{ echo "E: Failed to fetch" >&2; exit 100; }}
   echo $package > ${{package}}_${{version}}_amd64.deb ;;
esac
"""
DPKG_DEB = """#!/bin/sh
[ -e {lists}/broken ] && {{ echo "E: not a deb" >&2; exit 2; }}
package=$(cat "$2")
mkdir -p "$3/boot" "$3/bin"
echo "$package" > "$3/boot/vmlinuz-6.1"
case "$package" in
*ubuntu) ;;
*) mkdir -p "$3/lib/modules/6.1"; touch "$3/lib/modules/6.1/modules.builtin" ;;
esac
echo busybox > "$3/bin/busybox"
"""
APT_CACHE = """#!/bin/sh
for package; do :; done
echo "$package"
echo "  Depends: linux-base"
[ "$package" = linux-image-virtual ] && [ -e {lists}/linux-image-6.8-ubuntu ] && {{
    echo "  Depends: linux-image-6.8-ubuntu"
    exit 0
}}
[ "$package" = linux-image-virtual ] && exit 0
[ -e {lists}/linux-image-6.1 ] && echo "  Depends: linux-image-6.1"
exit 0
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution's tools; the folder says which packages there are."""
    lists, tools = tmp_path / "lists", tmp_path / "tools"
    lists.mkdir()
    tools.mkdir()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB), ("apt-cache", APT_CACHE)):
        tool = tools / name
        tool.write_text(script.format(lists=lists, log=tmp_path / "log"))
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (lists / "linux-image-6.1").write_text("6.1-1")
    (lists / "busybox-static").write_text("1.35")
    return lists


@pytest.mark.parametrize("name", ["README.md", "Makefile", "CONTRIBUTING.md"])
def test_where_packages_are_kept_is_said_where_people_ask_what_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    kept = "~" / cache_folder().relative_to(Path.home()).parent
    text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    assert str(kept) in text
    assert "$TMPDIR" in text


def test_a_package_is_downloaded_once_and_kept_by_version(distribution: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = fetch("busybox-static", cache=cache)
    assert "busybox-static_1.35_amd64" == first.name
    assert first == fetch("busybox-static", cache=cache)
    downloads = [line for line in (tmp_path / "log").read_text().splitlines() if "--print-uris" not in line]
    assert 1 == len(downloads)
    (distribution / "busybox-static").write_text("1.36")
    assert "busybox-static_1.36_amd64" == fetch("busybox-static", cache=cache).name
    assert {first.name, "busybox-static_1.36_amd64"} == {path.name for path in cache.iterdir()}


def test_without_lists_what_was_fetched_before_does(distribution: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = fetch("busybox-static", cache=cache)
    (distribution / "busybox-static").unlink()
    assert kept == fetch("busybox-static", cache=cache)


@pytest.mark.parametrize(
    ("mark", "words"),
    [("offline", "cannot be downloaded .Failed to fetch."), ("broken", "cannot be unpacked")],
)
def test_a_failure_leaves_nothing_behind(distribution: Path, tmp_path: Path, mark: str, words: str) -> None:
    cache = tmp_path / "cache"
    (distribution / mark).touch()
    with pytest.raises(NoPackage, match=words):
        fetch("busybox-static", cache=cache)
    assert [] == list(cache.iterdir())
    (distribution / mark).unlink()
    assert fetch("busybox-static", cache=cache).is_dir()


@pytest.mark.usefixtures("distribution")
def test_an_unknown_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoPackage, match=r"no package nonsense .Unable to locate.*apt-get update"):
        fetch("nonsense", cache=tmp_path)


def test_elsewhere_the_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoPackage, match="Debian's or Ubuntu's tools, and apt-get is not here"):
        fetch("busybox-static", cache=tmp_path)
    with pytest.raises(NoPackage, match=r"--kernel VMLINUZ --modules .* --busybox FILE"):
        fetch_linux(cache=tmp_path)


def test_a_meta_package_leads_to_the_kernel(distribution: Path) -> None:
    assert "linux-image-6.1" == depends_on("linux-image-cloud-amd64", "linux-image-")
    (distribution / "linux-image-6.1").unlink()
    with pytest.raises(NoPackage, match="no package linux-image-… behind linux-image-cloud-amd64"):
        depends_on("linux-image-cloud-amd64", "linux-image-")


def test_ubuntus_modules_are_in_a_package_of_their_own(distribution: Path, tmp_path: Path) -> None:
    (distribution / "linux-image-6.1").unlink()
    with pytest.raises(NoPackage, match="behind linux-image-cloud-amd64"):
        fetch_linux(cache=tmp_path / "cache")
    (distribution / "linux-image-6.8-ubuntu").write_text("6.8-1")
    (distribution / "linux-modules-6.8-ubuntu").write_text("6.8-1")
    modules = distribution.parent / "tools" / "dpkg-deb"
    modules.write_text(modules.read_text().replace("*ubuntu)", "linux-image-*ubuntu)"))
    files = fetch_linux(cache=tmp_path / "cache")
    assert "linux-image-6.8-ubuntu_6.8-1_amd64" == files.kernel.parents[1].name
    assert "linux-modules-6.8-ubuntu_6.8-1_amd64" == files.modules.parents[2].name


def test_debians_kernel_comes_in_four_packages_since_14(distribution: Path, tmp_path: Path) -> None:
    for package in ("image", "modules", "binary", "base"):
        (distribution / f"linux-{package}-6.1").write_text("7.2-1")
    contents = """#!/bin/sh
package=$(cat "$2")
folder=$3/usr/lib/modules/7.2
mkdir -p "$folder" "$3/usr/bin"
case "$package" in
linux-modules-*) mkdir "$folder/kernel"; touch "$folder/kernel/loop.ko.xz" ;;
linux-binary-*) echo kernel > "$folder/vmlinuz" ;;
linux-base-*) echo kernel/fs/ext4.ko > "$folder/modules.builtin" ;;
busybox-*) echo busybox > "$3/usr/bin/busybox" ;;
esac
"""
    (distribution.parent / "tools" / "dpkg-deb").write_text(contents)
    files = fetch_linux(cache=tmp_path / "cache")
    assert "kernel\n" == files.kernel.read_text()
    assert {"kernel", "modules.builtin"} == {path.name for path in files.modules.iterdir()}
    assert "kernel/fs/ext4.ko\n" == (files.modules / "modules.builtin").read_text()
    assert "linux-modules-6.1_7.2-1_amd64" == files.modules.parents[3].name
    assert files == fetch_linux(cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("absent", "words"),
    [("binary", "has no boot/vmlinuz"), ("base", "has no lib/modules/.*/modules.builtin")],
)
def test_a_part_that_is_missing_is_named(distribution: Path, tmp_path: Path, absent: str, words: str) -> None:
    for package in {"image", "modules", "binary", "base"} - {absent}:
        (distribution / f"linux-{package}-6.1").write_text("7.2-1")
    contents = """#!/bin/sh
mkdir -p "$3/usr/lib/modules/7.2" "$3/bin"; touch "$3/bin/busybox"
case "$(cat "$2")" in
linux-binary-*) touch "$3/usr/lib/modules/7.2/vmlinuz" ;;
linux-base-*) touch "$3/usr/lib/modules/7.2/modules.builtin" ;;
esac
"""
    (distribution.parent / "tools" / "dpkg-deb").write_text(contents)
    with pytest.raises(NoPackage, match=f"linux-image-6.1_7.2-1_amd64 {words}.*--kernel VMLINUZ"):
        fetch_linux(cache=tmp_path / "cache")


@pytest.mark.usefixtures("distribution")
def test_a_linux_is_kernel_modules_and_busybox(tmp_path: Path) -> None:
    files = fetch_linux(cache=tmp_path / "cache")
    assert ("vmlinuz-6.1", "6.1", "busybox") == (files.kernel.name, files.modules.name, files.busybox.name)
    assert "linux-image-6.1_6.1-1_amd64 and busybox-static_1.35_amd64" in files.origin
