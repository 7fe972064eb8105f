"""``cbit memory``: what an administrator sees: a dump of DRAM, a guest's pages, or both together."""

from __future__ import annotations

import json
import stat
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.parser import Parser
from cbit.spec.address import PAGE
from cbit.spec.errors import WireError

HELP: Final = "show the pages of a dump, of a guest, or of a guest in a dump: as text and as a picture"
EXAMPLE: Final = (
    "examples:\n"
    "  cbit run --mode sev --kernel K --initrd I --dump-dram dram.bin --report run.json --until '/ #'\n"
    "  cbit memory dram.bin\n"
    "  cbit memory dram.bin --report run.json --png guest.png"
)
COLUMNS: Final = 64
ROWS: Final = 48  #: of text, at most
WIDTH: Final = 256  #: pages in a row of the picture: a megabyte
_READ: Final = 1 << 26
_LARGEST_REPORT: Final = 1 << 28


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("dump", nargs="?", type=Path, metavar="DUMP", help="DRAM, as `--dump-dram` writes it")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what `cbit run --report` wrote")
    parser.add_argument("--guest", metavar="NAME", help="which guest, if the report is of several")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the pages as a picture")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"of the text (default: {ROWS})")


def run(args: Namespace) -> Outcome:
    """Read, count, draw."""
    from cbit.cli.memory_map import pixels, table
    from cbit.cli.picture import png
    from cbit.cli.target import Target, insist_apart

    insist_apart(args, "png")
    if args.dump is None and args.report is None:
        raise ValueError("a dump, a --report, or both are wanted")
    if args.guest is not None and args.report is None:
        raise ValueError(f"--guest {args.guest}: guests are named in a --report, and there is none")
    if args.rows < 1:
        raise ValueError(f"--rows {args.rows}: one at least")
    report = _report(args.report, args.guest) if args.report else None
    pages = _pages(args.dump, report)
    if not pages:
        raise ValueError("there is not one page in it")
    counts = table(pages)
    result: dict[str, Any] = {"pages": len(pages), "kinds": counts, "png": args.png and str(args.png)}
    if report is not None:
        result["flushed"] = report.flushed
    if args.png is not None:
        with Target(args.png, option="--png") as picture:
            picture.write(png(pixels(pages, width=min(WIDTH, len(pages))), scale=2))
    return Outcome(ok=True, result=result, lines=lambda: _lines(args, pages, result))


def _lines(args: Namespace, pages: list[Any], result: dict[str, Any]) -> Iterator[str]:
    from cbit.cli.memory_map import LEGEND, drawing

    yield from drawing(pages, columns=COLUMNS, most_rows=args.rows)
    yield ""
    if args.report:
        yield LEGEND
    else:
        yield "· zeros   ░▒▓ structure   █ noise"
    yield ""
    columns = ["pages", *(("cached", "dirty") if args.report else ())]
    columns += ("zeros", "structure", "noise") if args.dump else ()
    yield f"{'':<12}" + "".join(f"{name:>10}" for name in columns)
    for row in result["kinds"]:
        cells = [row[name] for name in columns]
        yield f"{row['kind']:<12}" + "".join(f"{'' if cell is None else cell:>10}" for cell in cells)
    if result.get("flushed"):
        yield f"before the dump, WBINVD wrote {result['flushed']} pages back"
    if args.png is not None:
        yield f"wrote {args.png}"


def _report(path: Path, name: str | None) -> Any:
    from cbit.hypervisor.page_survey import PageSurvey

    _check(path, largest=_LARGEST_REPORT, what="a report")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{path}: not JSON: {error}") from error
    found = _of_one_guest(value, name, path)
    if not isinstance(found, dict) or "pages" not in found:
        raise WireError(f"{path}: a report without pages: `cbit run --report` writes one")
    return PageSurvey.from_json(found["pages"])


def _check(path: Path, *, largest: int, what: str) -> None:
    """Refuse what has no end, or none worth waiting for: a device, a pipe, a file of no machine's size."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: not a regular file")
    if found.st_size > largest:
        raise ValueError(f"{path}: {found.st_size} bytes are too many for {what}")


def _of_one_guest(value: Any, name: str | None, path: Path) -> Any:
    """Pick what a report says of one guest; a report of one has no names."""
    guests = value.get("guests") if isinstance(value, dict) else None
    if not isinstance(guests, list):
        if name is not None:
            raise ValueError(f"--guest {name}: {path} is of one guest, which has no name")
        return value
    named = {str(guest.get("name")): guest for guest in guests if isinstance(guest, dict)}
    if name not in named:
        raise ValueError(f"{path} is of several guests: --guest says which: {', '.join(named)}")
    return named[name]


def _pages(dump: Path | None, report: Any) -> list[Any]:
    from cbit.cli.memory_map import Page

    bits = None if dump is None else _entropies(dump)
    if report is None:
        return [Page(number, None, value) for number, value in enumerate(bits or [])]
    pages = []
    for gpa_page, spa_page, state in report.pages():
        if bits is not None and spa_page >= len(bits):
            raise ValueError(
                f"the dump ends before system page {spa_page:#x}, where guest page {gpa_page:#x} lies: "
                "dump and report are not of one run"
            )
        pages.append(Page(gpa_page, state, None if bits is None else bits[spa_page]))
    return pages


def _entropies(dump: Path) -> list[float]:
    """Compute the entropy of each page; pages of zeros, most of a sparse dump, cost next to nothing."""
    from cbit.cli.page_map import entropies
    from cbit.machine.address_map import MAX_DRAM

    _check(dump, largest=MAX_DRAM, what="a machine's memory")
    if torn := dump.stat().st_size % PAGE:
        raise ValueError(f"{dump}: torn: {torn} bytes behind the last whole page of {PAGE}")
    zeros, found = bytes(PAGE), []
    with dump.open("rb") as file:
        while part := file.read(_READ):
            for at in range(0, len(part) // PAGE * PAGE, PAGE):
                page = part[at : at + PAGE]
                found.append(0.0 if page == zeros else entropies(page)[0])
    return found
