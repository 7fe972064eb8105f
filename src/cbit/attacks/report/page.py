"""The report as one self-contained page: the matrix; for each attack its idea, powers, steps and figures.

No script, no font, no picture from elsewhere; it can be mailed, and opened without a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Final

from cbit import __version__
from cbit.attacks.lab.attack import Attack
from cbit.attacks.lab.outcome import Mode
from cbit.attacks.report.style import STYLE
from cbit.attacks.report.svg import draw, field

Told = dict[str, Any]
_CLASSES: Final = {
    "succeeds": "won",
    "partly": "partly",
    "stopped": "held",
    "does not apply": "none",
    "not modelled": "absent",
    "not run": "absent",
    "broken": "absent",
}
_WORDS: Final = {"does not apply": "–"}
_CODE: Final = re.compile("``?([^`]+)``?")
_ABSENT: Final = {True: "", False: "<br><small>not modelled,<br>predicted</small>"}


def page(attacks: Sequence[Attack], told: Sequence[Told]) -> str:
    """Write the page.

    Args:
        attacks: the rows.
        told: results of their cells, as `Result.as_json` gives them.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>cbit: the attack lab</title><style>{STYLE}</style></head><body>",
        *_head(told),
        *_matrix(attacks, told),
        *_figures(told),
        *(line for attack in attacks for line in _attack(attack, _row(attack, told))),
        f"<footer>cbit {escape(__version__)}. Nothing here has left the emulated machine.</footer>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _row(attack: Attack, told: Sequence[Told]) -> list[Told]:
    return [cell for cell in told if cell["attack"] == attack.name]


def _head(told: Sequence[Told]) -> Iterator[str]:
    ran = [cell for cell in told if cell["planted"]]
    surprises = [cell for cell in told if not cell["as_expected"]]
    yield "<header><h1>Attacks on encrypted memory</h1>"
    yield (
        "<p>Each cell is an attempt that was made, against a victim in an emulated machine. It succeeds if "
        "the secrets that were planted in the victim are in the bytes that the adversary brought back, and "
        "in no other way. What is expected of a cell follows from the hardware's rules; the run decides.</p>"
    )
    verdict = (
        "every one came out as the rules say"
        if not surprises
        else f"<strong>{len(surprises)} came out otherwise than predicted</strong>"
    )
    yield f"<p>{len(ran)} attempts were made; {verdict}.</p>"
    for why in dict.fromkeys(cell["note"] for cell in told if cell["verdict"] == "not run"):
        names = dict.fromkeys(cell["attack"] for cell in told if cell["note"] == why)
        yield f"<p><strong>Not run</strong>: {escape(', '.join(names))}: {escape(why)}.</p>"
    for cell in told:
        if cell["verdict"] == "broken":
            yield f"<p><strong>Broken</strong>: {escape(cell['note'])}.</p>"
    yield "</header>"


def _matrix(attacks: Sequence[Attack], told: Sequence[Told]) -> Iterator[str]:
    yield '<section><h2>The matrix</h2><table class="matrix"><thead><tr>'
    yield '<th scope="col">attack</th>'
    yield "".join(f'<th scope="col">{escape(mode.value)}{_ABSENT[mode.modelled]}</th>' for mode in Mode)
    yield '<th scope="col">with a defence</th></tr></thead><tbody>'
    for attack in attacks:
        row = _row(attack, told)
        number = f' <span class="number">{escape(attack.experiment)}</span>' if attack.experiment else ""
        yield f'<tr><th scope="row"><a href="#{attack.name}">{escape(attack.title)}</a>{number}</th>'
        for mode in Mode:
            (cell,) = (cell for cell in row if cell["mode"] == mode.value and not cell["variant"])
            yield _cell(cell, _word(cell["verdict"]))
        defences = [
            f'<a href="#{_place(cell)}">{escape(cell["variant"])}: {escape(cell["verdict"])}</a>'
            for cell in row
            if cell["variant"]
        ]
        shown = "; ".join(defences) or (f"not shown: {escape(attack.unshown)}" if attack.unshown else "")
        yield f'<td class="defence">{shown}</td></tr>'
    yield "</tbody></table></section>"


def _word(verdict: str) -> str:
    return _WORDS.get(verdict, verdict)


def _cell(cell: Told, word: str) -> str:
    surprise = "" if cell["as_expected"] else " surprise"
    why = escape(cell["why"] or cell["note"], quote=True)
    kind = _CLASSES[cell["verdict"]]
    if cell["verdict"] == "not modelled":
        word, why = _word(cell["expected"]), f"not modelled; predicted: {why or 'as before'}"
    link = f'<a href="#{_place(cell)}">{escape(word)}</a>'
    return f'<td class="{kind}{surprise}" title="{why}">{link}</td>'


def _place(cell: Told) -> str:
    """Where the page says why a cell is what it is."""
    return "-".join(filter(None, (cell["attack"], cell["mode"], cell["variant"])))


def _figures(told: Sequence[Told]) -> Iterator[str]:
    yield "<section><h2>Figures beside the published ones</h2>"
    yield "<p>Only numbers that do not depend on the speed of a machine.</p><table><thead><tr>"
    heads = ("attack", "figure", "here", "published", "source", "why they differ")
    yield "".join(f'<th scope="col">{head}</th>' for head in heads)
    yield "</tr></thead><tbody>"
    before = ""
    for name, figure in _best_figures(told):
        ours = f"{figure['ours']:g} {figure['unit']}".strip()
        shown, before = "" if name == before else name, name
        cells = (shown, figure["name"], ours, figure["published"], figure["source"], figure["difference"])
        yield "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></section>"


def _best_figures(told: Sequence[Told]) -> Iterator[tuple[str, Told]]:
    """The figures of each attack's run against the strongest mode that it beat, or was tried on."""
    for name in dict.fromkeys(cell["attack"] for cell in told):
        cells = [cell for cell in told if cell["attack"] == name and not cell["variant"] and cell["figures"]]
        beaten = [cell for cell in cells if cell["verdict"] == "succeeds"] or cells
        if beaten:
            yield from ((name, figure) for figure in beaten[-1]["figures"])


def _attack(attack: Attack, row: Sequence[Told]) -> Iterator[str]:
    yield f'<section class="attack" id="{attack.name}"><h2>{escape(attack.title)}</h2>'
    yield f'<p class="paper">{escape(attack.paper)}</p>'
    yield "".join(f"<p>{_prose(part)}</p>" for part in attack.idea.split("\n\n"))
    yield f"<h3>Victim</h3><p>{_prose(attack.victim)}</p>"
    powers = "".join(f"<li>{escape(power)}</li>" for power in sorted(p.value for p in attack.holds))
    yield f"<h3>Powers</h3><ul>{powers}</ul>"
    won = [cell for cell in row if cell["verdict"] == "succeeds" and not cell["variant"]][-1:]
    shown = won + [cell for cell in row if cell["verdict"] == "stopped"]
    yield "<h3>Step by step</h3>"
    for cell in shown:
        yield from _steps(cell, opened=cell is shown[0])
    yield "<h3>What stops it</h3><ul>"
    for cell in row:
        yield f'<li id="{_place(cell)}"><b>{escape(_where(cell))}</b>: {_told(cell)}</li>'
    if attack.unshown:
        yield f"<li><b>not shown</b>: {escape(attack.unshown)}</li>"
    commands = "\n".join(map(_command, shown)) or f"cbit attack run {attack.name}"
    yield f"</ul><h3>Run it</h3><pre>{escape(commands)}</pre></section>"


def _where(cell: Told) -> str:
    return f"{cell['mode']} with {cell['variant']}" if cell["variant"] else str(cell["mode"])


def _told(cell: Told) -> str:
    """What came out, why it should, and what stood in the way."""
    verdict: str = cell["verdict"]
    parts = [f"predicted: {cell['expected']}" if verdict == "not modelled" else verdict]
    if cell["why"]:
        parts.append(cell["why"])
    if cell["note"] and verdict in ("stopped", "partly", "not run", "broken"):
        parts.append(f"the run notes: {cell['note']}")
    return escape("; ".join(parts))


def _command(cell: Told) -> str:
    chosen = f" --variant {cell['variant']}" if cell["variant"] else ""
    return f"cbit attack run {cell['attack']} --mode {cell['mode']}{chosen}"


def _prose(part: str) -> str:
    lines = part.splitlines()
    numbered = [line for line in lines if line[:1].isdigit() and line[1:2] == "."]
    text = _marked(" ".join(line.strip() for line in lines))
    if len(numbered) > 1:
        for number in range(2, len(numbered) + 1):
            text = text.replace(f" {number}. ", f"<br>{number}. ")
    return text


def _marked(text: str) -> str:
    """Escape a text; what stands between backquotes is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _steps(cell: Told, *, opened: bool) -> Iterator[str]:
    told = f"{escape(_where(cell))}: {escape(cell['verdict'])}"
    yield f"<details{' open' if opened else ''}><summary>{told}</summary><ol>"
    for step in cell["steps"]:
        yield f"<li>{_marked(step['text'])}"
        if step["data"]:
            yield _bytes(bytes.fromhex(step["data"]), step["length"])
        if step["picture"]:
            yield draw(step["picture"])
        yield "</li>"
    yield "</ol>"
    found = f"{cell['found']} of {cell['planted']} planted secrets in {cell['loot_bytes']} bytes of loot."
    note = f" {escape(cell['note'])}." if cell["note"] else ""
    yield f'<p class="found">{found}{note}</p></details>'


def _bytes(data: bytes, length: int) -> str:
    more = f"\n… {length} bytes in all" if length > len(data) else ""
    rows = "\n".join(data[at : at + 16].hex(" ", 4) for at in range(0, len(data), 16))
    return f'<div class="bytes"><pre>{rows}{more}</pre>{field(data, 16)}</div>'
