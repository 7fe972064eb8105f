"""Why a direct boot measured something else: memory size, command line, another kernel or initrd.

One cause alone, then two together; each is a whole layout that is hashed again.

Paper: launch-inputs.md §1; sev-crypto.md §9.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from cbit.owner.explain.alternatives import File
from cbit.owner.explain.reported import Reported
from cbit.owner.explain.search import Clock, Explanation
from cbit.owner.measure import DirectLaunch
from cbit.spec import acpi
from cbit.spec.address import GIB, MIB
from cbit.spec.linux_boot import ACPI_BASE, Unbootable, boot_image, command_line

#: What people give a guest: powers of two, and halves between them.
SIZES: Final = tuple(
    size for power in range(26, 32) for size in (1 << power, 3 << (power - 1)) if size <= 3 * GIB
)
_QUOTES: Final = "'\""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a layout is made from."""

    kernel: bytes
    initrd: bytes
    line: str
    memory_size: int
    acpi: bool = True

    def digest(self) -> bytes | None:
        """Hash the layout; None if these do not boot together."""
        tables = acpi.tables(ACPI_BASE) if self.acpi else b""
        try:
            return boot_image(
                self.kernel, self.initrd, cmdline=self.line, memory_size=self.memory_size, acpi=tables
            ).digest()
        except Unbootable:
            return None


@dataclass(frozen=True, slots=True)
class _Cause:
    """One thing that may be otherwise.

    Attributes:
        axis: what.
        words: how.
        changes: what makes it so: fields of ``_Parts``.
    """

    axis: str
    words: str
    changes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.axis}: {self.words}"


def explain_direct(
    launch: DirectLaunch,
    reported: Reported,
    *,
    others: Sequence[File] = (),
    limit_s: float = 30.0,
    clock: Clock = time.monotonic,
) -> Explanation:
    """Search for what makes a reported value come out.

    Args:
        launch: the owner's description.
        reported: the value.
        others: files that may have been used in place of kernel or initrd.
        limit_s: seconds after which the search ends.
        clock: where seconds come from.

    Raises:
        Unmeasurable: the owner's own parts do not boot together.
    """
    end, tried = clock() + limit_s, 1
    digest = launch.expectation().digest
    if reported.exact().fits(digest):
        return Explanation(True, (), (), (), tried, ())
    for claim in (*reported.usual(), *reported.thorough()):
        tried += 1
        if claim.fits(digest):
            return Explanation(False, (f"{claim.axis}: {claim.words}",), (), (), tried, ())
    parts = _Parts(
        launch.kernel.kernel,
        launch.kernel.initrd,
        command_line(launch.kernel.cmdline),
        launch.memory_size,
    )
    causes, fits = list(_causes(launch, others)), reported.exact().fits
    excluded = ["every usual misreading of the report"]
    for together in (1, 2):
        for chosen in combinations(causes, together):
            if clock() > end:
                left = "two causes together" if together == 2 else "one cause alone"
                return Explanation(False, (), tuple(excluded), (left,), tried, ())
            if len({cause.axis for cause in chosen}) < together:
                continue
            tried += 1
            changes = {name: value for cause in chosen for name, value in cause.changes.items()}
            other = replace(parts, **changes).digest()
            if other is not None and fits(other):
                return Explanation(False, tuple(map(str, chosen)), (), (), tried, ())
        what = ", ".join(dict.fromkeys(cause.axis for cause in causes))
        excluded.append(f"{'one' if together == 1 else 'two'} of {what}")
    return Explanation(False, (), tuple(excluded), (), tried, ())


def _causes(launch: DirectLaunch, others: Sequence[File]) -> Iterator[_Cause]:
    yield from _lines(launch.kernel.cmdline)
    for size in SIZES:
        if size != launch.memory_size:
            words = f"the guest has {size // MIB}M, not {launch.memory_size // MIB}M"
            yield _Cause("memory", words, {"memory_size": size})
    if launch.kernel.initrd:
        yield _Cause("initrd", "there is none", {"initrd": b""})
    for other in others:
        yield _Cause("initrd", f"it is {other.name}", {"initrd": other.data})
        yield _Cause("kernel", f"it is {other.name}", {"kernel": other.data})
    yield _Cause("ACPI tables", "there are none", {"acpi": False})


def _lines(append: str) -> Iterator[_Cause]:
    """Give every other command line that is worth a try."""
    seen = {append}
    for words, text in (
        ("nothing was appended", ""),
        ("blanks around it were left out", append.strip()),
        ("a blank stands behind it", append + " "),
        ("quotes around it were left out", append.strip(_QUOTES)),
        ("it was appended in quotes", f'"{append}"'),
        ("its blanks were squeezed", " ".join(append.split())),
    ):
        if text not in seen:
            seen.add(text)
            yield _Cause("command line", words, {"line": command_line(text)})
    yield _Cause("command line", "the machine's own options are not on it", {"line": append})
