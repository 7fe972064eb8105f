"""Commands that are printed for a person can be pasted, whatever their files are called."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from cbit.cli.demo.linux import _written
from cbit.cli.pasted import pasted
from cbit.machine.state_folder import StateError
from cbit.redirect.kds_files import Published
from cbit.redirect.remote import NoMachineThere, _connect


@pytest.mark.parametrize("name", ["plain", "two words", "it's", "$HOME", "-dash", "a;b"])
def test_a_name_stays_one_word_and_no_option(name: str) -> None:
    (word,) = shlex.split(pasted(name))
    assert not word.startswith("-")
    assert Path(name) == Path(word)


def test_the_demo_quotes_the_files_that_it_wrote() -> None:
    names = {name: f"a b/{name}" for name in ("vmlinuz", "initrd.img", "disk.img", "disk.key")}
    words = shlex.split(list(_written(names, "somewhere"))[-1])
    assert [f"a b/{name}" for name in names] == words[5::2]


def test_hints_quote_the_folder_and_the_socket(tmp_path: Path) -> None:
    with pytest.raises(NoMachineThere, match=rf"'cbit serve --socket '{tmp_path}/no where''"):
        _connect(tmp_path / "no where", time.monotonic)
    with pytest.raises(StateError, match=rf"'cbit setup --state '{tmp_path}/no where''"):
        Published.read(tmp_path / "no where")
