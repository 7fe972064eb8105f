"""The style sheet of the lab's report: light and dark, for screens and for paper."""

from typing import Final

STYLE: Final = """
:root { --ink: #1d2530; --paper: #fbfaf7; --line: #d9d5cc; --won: #b3372f; --held: #2d6a4f; --shade: #34568b;
  --faint: #6b7280; --partly: #a76a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e3dc; --paper: #171a1f; --line: #363b44;
  --won: #ef7d72; --held: #74c69d; --shade: #8fb3e8; --faint: #9aa1ad; --partly: #e0a94a; } }
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, sans-serif; max-width: 72rem;
  margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 2rem; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { margin: 2.6rem 0 .6rem; font-size: 1.35rem; }
h3 { margin: 1.4rem 0 .3rem; font-size: 1rem; color: var(--faint); }
header p, .attack > p { max-width: 48rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .2em; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .6rem; border-bottom: 1px solid var(--line); }
thead th { color: var(--faint); font-weight: 600; }
.matrix tbody th { font-weight: 500; min-width: 9rem; position: sticky; left: 0; background: var(--paper); }
.matrix td a { text-decoration: none; }
.number { color: var(--faint); font-size: .8rem; }
.matrix thead th { vertical-align: bottom; } .matrix small { font-weight: 400; white-space: nowrap; }
.matrix td { border-left: 3px solid var(--paper); } .matrix td.defence { font-size: .84rem; min-width: 9rem; }
summary { cursor: pointer; margin: .5rem 0 .2rem; font-weight: 500; }
li:target { outline: 2px solid var(--line); }
td.won { color: var(--won); font-weight: 650; background: color-mix(in srgb, var(--won) 10%, transparent); }
td.held { color: var(--held); background: color-mix(in srgb, var(--held) 9%, transparent); }
td.partly { color: var(--partly); font-weight: 650; } td.none, td.absent, .defence { color: var(--faint); }
td.absent { font-style: italic; } code { font: .92em ui-monospace, monospace; }
td.surprise { outline: 2px solid var(--partly); outline-offset: -2px; }
.paper, .found { color: var(--faint); margin-top: 0; }
section { overflow-x: auto; } .attack { border-top: 1px solid var(--line); }
ol > li { margin: .5rem 0; } ul { margin: .2rem 0; }
pre { font: .84rem/1.45 ui-monospace, monospace; margin: .3rem 0; overflow-x: auto; }
.bytes { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: center; }
svg { display: block; margin: .4rem 0; max-width: 100%; }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
.curve .axis { fill: none; stroke: var(--line); } .curve circle { fill: var(--shade); }
.curve polyline { fill: none; stroke: var(--shade); stroke-width: 2; } .field rect { fill: var(--shade); }
footer { margin: 3rem 0 1rem; color: var(--faint); font-size: .85rem; }
@media (max-width: 40rem) { body { margin: 1.2rem auto; padding: 0 .8rem; }
  .matrix { font-size: .76rem; } .matrix tbody th { min-width: 5.6rem; max-width: 6.6rem; }
  .matrix th, .matrix td { padding: .3rem .25rem; } }
@media print { body { margin: 0; max-width: none; } .attack { break-inside: avoid-page; } }
"""
