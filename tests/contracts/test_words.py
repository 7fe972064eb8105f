"""The text of the project speaks of the project: of nobody's paths or hosts, and not of how it was typed."""

from __future__ import annotations

import codecs
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Shifted by 13 letters, so that this list does not find itself.
PIECES = (
    *("/jbex/", "/ebbg/", "/bcg/clcv", "/bcg/jurryf", "/gzc/povg", "/gzc/onfu_wbof", "svyr:///"),
    *("clcv.bet", "clgubaubfgrq.bet", "qro.qrovna.bet", "frphevgl.qrovna.bet", "nepuvir.hohagh.pbz"),
    *("ertvfgel.acz", "cebkl.tbynat.bet", "pengrf.vb"),
)
WORDS = (
    *("pynhqr", "naguebcvp", "bcranv", "pungtcg", "tcg-4", "tcg-5", "trzvav", "pbcvybg", "yyz", "yyzf"),
    *("ynathntr zbqry", "nv nffvfgnag", "nv-trarengrq", "trarengrq ol nv", "nv ntrag", "pbqvat ntrag"),
    *("fhontrag", "fhontragf", "fho-ntrag", "fho-ntragf", "flfgrz cebzcg", "pbagrkg jvaqbj"),
)


def any_of(shifted: tuple[str, ...]) -> str:
    return "|".join(re.escape(codecs.decode(word, "rot13")) for word in shifted)


NOT_OURS = re.compile(rf"{any_of(PIECES)}|\b(?:{any_of(WORDS)})\b", re.IGNORECASE)


def files_of_the_project() -> list[Path]:
    listing = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    ended = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        pytest.skip(f"not a git checkout, so there is no list of the project's files: {ended.stderr.strip()}")
    return [path for name in sorted(set(ended.stdout.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def test_no_file_speaks_of_anything_but_the_project() -> None:
    found = []
    for path in files_of_the_project():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a vector, not a text
        lines = enumerate(text.splitlines(), 1)
        name = path.relative_to(ROOT)
        found += [f"{name}:{number}: {hit[0]}" for number, line in lines if (hit := NOT_OURS.search(line))]
    assert [] == found


@pytest.mark.parametrize("word", ["uggcf://clcv.bet/fvzcyr", "/jbex/znva", "na YYZ jebgr vg", "Pynhqr"])
def test_the_search_finds_what_it_looks_for(word: str) -> None:
    assert NOT_OURS.search(codecs.decode(word, "rot13"))


@pytest.mark.parametrize(
    "word", ["a SEV session", "the framework/", "$ prompt", "user agent", "chroot/", "allma"]
)
def test_the_search_leaves_our_words_alone(word: str) -> None:
    assert not NOT_OURS.search(word)
