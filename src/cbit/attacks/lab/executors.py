"""Where cases are run: here, or in worker processes that speak JSON lines.

    parent -> worker   {"attack": …, "mode": …, "variant": …, "seed": …, "parameters": {…}}
    worker -> parent   a result

A worker ends when its standard input does, and hears no Ctrl-C: that is its parent's.
``python -m cbit.attacks.lab.executors LINUX`` is one; LINUX says what Linux victims are made of, or why there
are none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from cbit.attacks.experiments import named
from cbit.attacks.lab.case import Case, Told, broken
from cbit.attacks.lab.run import run
from cbit.attacks.lab.stand import NO_LINUX, Workshop
from cbit.guest.linux.files import LinuxFiles


def tell(case: Case, workshop: Workshop) -> Told:
    """Run one case, and tell what came out as JSON values, whatever it was."""
    try:
        result = run(
            named(case.attack),
            workshop,
            mode=case.mode,
            variant=case.variant,
            seed=case.seed,
            parameters=case.parameters,
        )
    except Exception as error:  # the other cases do not depend on this one
        return broken(case, f"{type(error).__name__}: {error}")
    return result.as_json()


class Here:
    """One case after the other, in this process.

    Args:
        linux: what Linux victims are made of, or why there are none.
    """

    def __init__(self, linux: LinuxFiles | str = NO_LINUX) -> None:
        self._linux = linux

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Told]]:
        """Yield each result."""
        with Workshop(self._linux) as workshop:
            for case in cases:
                yield case, tell(case, workshop)


class Processes:
    """Worker processes, one case each at a time.

    Args:
        count: how many.
        linux: what Linux victims are made of, or why there are none.
    """

    def __init__(self, count: int, linux: LinuxFiles | str = NO_LINUX) -> None:
        if count < 1:
            raise ValueError(f"{count} worker processes: one at least")
        self._count = count
        self._linux = linux if isinstance(linux, str) else json.dumps(_as_json(linux))

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Told]]:
        """Yield each result as it comes; a worker that dies over a case is replaced."""
        # Workers are ended in the middle of what they do: who gave them their folder removes it.
        with tempfile.TemporaryDirectory(prefix="cbit-attack-") as scratch:
            yield from self._run(cases, scratch)

    def _run(self, cases: Sequence[Case], scratch: str) -> Iterator[tuple[Case, Told]]:
        waiting = list(cases)
        workers = [_Worker(self._linux, scratch) for _ in range(min(self._count, len(waiting)))]
        try:
            with selectors.DefaultSelector() as selector:
                for worker in workers:
                    worker.give(waiting.pop(0))
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                for _ in cases:
                    worker = selector.select()[0][0].data
                    yield worker.take()
                    if waiting and worker.alive:
                        worker.give(waiting.pop(0))
                        continue
                    selector.unregister(worker.output)
                    if waiting:
                        workers.append(worker := _Worker(self._linux, scratch))
                        worker.give(waiting.pop(0))
                        selector.register(worker.output, selectors.EVENT_READ, worker)
        finally:
            for worker in workers:
                worker.end()


def _as_json(linux: LinuxFiles) -> dict[str, str]:
    return {field.name: str(getattr(linux, field.name)) for field in dataclasses.fields(linux)}


def linux_from(word: str) -> LinuxFiles | str:
    """Read what a worker is told about Linux victims: JSON, or a sentence that says why there are none."""
    try:
        told = json.loads(word)
    except ValueError:
        return word
    paths = {name: Path(told[name]) for name in ("kernel", "modules", "busybox")}
    return LinuxFiles(**paths, origin=told["origin"])


class _Worker:
    def __init__(self, linux: str, scratch: str) -> None:
        command = [sys.executable, "-m", "cbit.attacks.lab.executors", linux]
        # What is blocked here stays blocked there, from its first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=os.environ | {"TMPDIR": scratch},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.alive = True
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[str] = self._process.stdin
        self.output: IO[str] = self._process.stdout
        self._case: Case | None = None

    def give(self, case: Case) -> None:
        self._case = case
        try:
            self._input.write(json.dumps(case.as_json()) + "\n")
            self._input.flush()
        except BrokenPipeError:
            pass  # `take` says so

    def take(self) -> tuple[Case, Told]:
        case, line = self._case, self.output.readline()
        assert case is not None
        if not line:
            self.alive = False
            return case, broken(case, f"its worker ended with code {self._process.wait()}")
        told: Told = json.loads(line)
        return case, told

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.terminate()
        self.output.close()
        self._process.wait()


def serve(requests: IO[str], answers: IO[str], linux: LinuxFiles | str = NO_LINUX) -> None:
    """Answer cases until there are no more."""
    with Workshop(linux) as workshop:
        for line in requests:
            answers.write(json.dumps(tell(Case.from_json(json.loads(line)), workshop)) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout, linux_from(sys.argv[1]))
