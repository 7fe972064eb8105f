"""Clients, compiled once, and a launcher around them as a process of its own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

HERE = Path(__file__).parent
RUN = HERE / "run.py"
TIMEOUT_S = 100

ON_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"

collect_ignore = (
    [] if ON_LINUX else [path.name for path in HERE.glob("test_*.py") if path.name != "test_bpf.py"]
)


@dataclass(frozen=True)
class Way:
    """A mechanism, and who uses it."""

    mechanism: str
    nobody: bool

    def __str__(self) -> str:
        return f"{self.mechanism}{'-as-nobody' if self.nobody else ''}"

    @property
    def words(self) -> list[str]:
        return ["--mechanism", self.mechanism, *(["--nobody"] if self.nobody else [])]


WAYS = [Way(mechanism, nobody) for mechanism in ("namespace", "opens", "fuse") for nobody in (False, True)]
NAMESPACE, OPENS, FUSE = WAYS[::2]


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str
    report: dict[str, Any]


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="cbit-redirect-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def compiled(folder: Path, name: str, *options: str, source: Path = HERE / "client.c") -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    program = folder / name
    if not program.exists():
        words = [compiler, "-O1", "-Wall", "-pthread", *options, "-o", str(program), str(source)]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            pytest.skip(f"the client does not compile here: {ended.stderr.strip()[-300:]}")
        program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def client(open_folder: Path) -> Path:
    """A dynamic client."""
    return compiled(open_folder, "client")


@pytest.fixture(scope="session")
def static_client(open_folder: Path) -> Path:
    """The same, static: no library stands between it and the kernel."""
    return compiled(open_folder, "static-client", "-static")


@pytest.fixture(scope="session")
def refusals() -> dict[str, str]:
    """What the kernel refuses, as the launcher finds out: to root or to us, and to nobody."""
    return reasons("") | {f"{feature} as nobody": why for feature, why in reasons("become_nobody()").items()}


def reasons(first: str) -> dict[str, str]:
    if first and os.geteuid() != 0:
        return {"any": "only root can become nobody"}
    program = (
        "import json\nfrom redirect.run import become_nobody\n"
        "from cbit.redirect.features import probe, why_no_fuse\n"
        f"{first}\nprint(json.dumps(dict(probe().reasons) | {{'fuse': why_no_fuse()}}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def environment() -> dict[str, str]:
    import cbit

    path = os.pathsep.join([str(Path(cbit.__file__).parents[1]), str(HERE.parent)])
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def insist(way: Way, refusals: dict[str, str]) -> None:
    """Skip, and say why, where this way is not open here."""
    suffix = " as nobody" if way.nobody else ""
    needed = ["any", "listener", "wait_killable", "memory"]
    needed.append("namespace" if way.mechanism == "namespace" else "give")
    if way.mechanism == "fuse":
        needed = ["any", "fuse"]
    if lacking := [why for feature in needed if (why := refusals.get(feature + suffix))]:
        pytest.skip(f"{way} is refused here: {'; '.join(lacking)}")


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest, refusals: dict[str, str]) -> Way:
    """Each mechanism, as whoever runs the tests and as nobody."""
    chosen: Way = request.param
    insist(chosen, refusals)
    return chosen


@pytest.fixture(params=[NAMESPACE, OPENS, FUSE], ids=str)
def mechanism(request: pytest.FixtureRequest, refusals: dict[str, str]) -> Way:
    """Each mechanism, as whoever runs the tests."""
    chosen: Way = request.param
    insist(chosen, refusals)
    return chosen


@pytest.fixture(params=[NAMESPACE, OPENS], ids=str)
def kvm_mechanism(request: pytest.FixtureRequest, refusals: dict[str, str]) -> Way:
    """Each mechanism that gives virtual machines too, as whoever runs the tests."""
    chosen: Way = request.param
    insist(chosen, refusals)
    return chosen


@pytest.fixture
def report_at(open_folder: Path) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(dir=open_folder, suffix=".json") as file:
        yield Path(file.name)


def command(words: list[str], program: list[object], report: Path | None = None) -> list[str]:
    asked = ["--report", str(report)] if report else []
    return [sys.executable, str(RUN), *words, *asked, "--", *map(str, program)]


def run(way: Way, report: Path, *program: object, extra: tuple[str, ...] = ()) -> Ran:
    """Run a program to its end."""
    ended = subprocess.run(
        command([*way.words, *extra], list(program), report),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    text = report.read_text() if report.exists() else ""
    return Ran(ended.returncode, ended.stdout, ended.stderr, json.loads(text) if text else {})


@contextmanager
def begin(way: Way, *program: object) -> Iterator[subprocess.Popen[str]]:
    """Start a program, let it run for the length of the block, and leave nothing behind."""
    running = subprocess.Popen(
        command(way.words, list(program)),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()
