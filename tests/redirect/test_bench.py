"""The figures of redirection are measured under a real launcher; no test here judges a time."""

from __future__ import annotations

import os
import shutil

import pytest

from cbit.cli.bench import redirect
from cbit.cli.bench.figure import Figure
from cbit.redirect.errors import Unsupported


def test_each_mechanism_is_measured(monkeypatch: pytest.MonkeyPatch, refusals: dict[str, str]) -> None:
    if lacking := [
        refusals[one] for one in ("listener", "wait_killable", "memory", "give") if one in refusals
    ]:
        pytest.skip(f"refused here: {'; '.join(lacking)}")
    if shutil.which("cc") is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    for name in ("COMMANDS", "CROWD", "CALLS"):
        monkeypatch.setattr(redirect, name, 128)
    *figures, last = redirect.figures(1)
    assert "QEMU to measurement" == last.name
    needs = {"namespace": "namespace", "opens": "give", "fuse": "fuse"}
    mechanisms = [one for one, feature in needs.items() if not refusals.get(feature)]
    measured = ("command", "64 clients", "open()", "ioctl()")
    ways = ["own machine", "served machine"]
    if os.geteuid() == 0 and "fuse" in mechanisms:
        ways.append("served device")
    whole = [*(f"PLATFORM_STATUS, {one}" for one in ways), "LAUNCH_START"]
    names = [
        *(
            name
            for one in mechanisms
            for name in (*(f"{what}, {one}" for what in measured), f"ioctl(), {one}, filter")
            if name != "ioctl(), fuse, filter"
        ),
        *whole,
    ]
    assert names == [one.name for one in figures]
    assert all(isinstance(figure, Figure) and figure.ours > 0 and figure.limit > 0 for figure in figures)


def test_without_a_compiler_it_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, refusals: dict[str, str]
) -> None:
    if lacking := [refusals[one] for one in ("listener", "wait_killable", "memory") if one in refusals]:
        pytest.skip(f"refused here: {'; '.join(lacking)}")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unsupported, match="there is no C compiler"):
        redirect.figures(1)
