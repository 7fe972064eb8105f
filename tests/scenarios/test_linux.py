"""The whole story with Debian's kernel: it boots encrypted, opens its disk, and its memory says nothing."""

from __future__ import annotations

import json

import pytest

from cbit.cli import main
from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from engine_here import missing


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.timeout(1800)
def test_linux_boots_and_the_tools_find_what_is_there_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if why := missing():
        pytest.skip(why)
    try:
        fetch_linux()
    except NoPackage as error:
        pytest.skip(str(error))
    code = main(["demo", "--linux", "--memory", "160M", "--seed", "7", "--json"])
    printed = json.loads(capsys.readouterr().out)
    result = printed["result"]
    assert (0, []) == (code, printed["reasons"])
    facts = [item.get("value", "") for act in result["acts"] for item in act["items"]]
    for words in (
        "Memory Encryption Features active: AMD SEV",
        "Memory encryption is active and system is using DMA bounce buffers",
        "/dev/dm-0 is open",
        "The disk is open: this line was encrypted with the key that the owner sent.",
    ):
        assert any(words in fact for fact in facts), words
    altered, honest = [item for item in result["acts"][1]["items"] if "attempt" in item]
    assert not altered["succeeded"]
    assert honest["succeeded"]
    found = {(find["dump"], find["what"]) for find in result["finds"] if find["found"]}
    dumps = {"encrypted guest, opened by the lab", "unencrypted guest"}
    whats = {"password", "kernel banner", "disk key's schedule"}
    assert {(dump, what) for dump in dumps for what in whats} == found
    assert 9 <= len([find for find in result["finds"] if find["found"] is not None])
