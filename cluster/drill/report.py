"""A verdict for people and for programs: as text, as JSON, and as one HTML file with a picture."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cluster.drill.checker import Finding, Verdict
from cluster.drill.history import Event, History, Kind
from cluster.drill.timeline import FINDINGS, Timeline, clean, clock, count, counts_of, fault_name, span
from cluster.drill.words import MEANINGS, judgement
from cluster.wire.shown import for_terminal

FINDINGS_SHOWN: Final = 50  # of each kind, in the HTML file
FINDINGS_IN_JSON: Final = 1_000  # of each kind
FAULTS_SHOWN: Final = 200
GAPS_SHOWN: Final = 10
NOT_NOTICED: Final = "not noticed"  # a fault: no slot that it struck kept anybody waiting
NOT_CHECKED: Final = "not checked"
_ALLOWED: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ALWAYS_SHOWN: Final = ("acknowledged", "done", "lost")  # as tiles of the page, zero or not


def summary(verdict: Verdict) -> str:
    """All that counts, in one line."""
    twice = len(verdict.duplicated_explained) + len(verdict.duplicated_unexplained)
    counts = [
        f"acknowledged {verdict.acknowledged}",
        f"done {verdict.done}",
        f"lost {len(verdict.lost)}",
        f"unexpected {len(verdict.unexpected)}",
        f"run twice {twice} ({len(verdict.duplicated_unexplained)} unexplained)",
    ]
    counts += [
        f"{label} {len(getattr(verdict, name))}"
        for name, label, _ in FINDINGS
        if name in ("coalescing_broken", "order_broken", "split") and getattr(verdict, name)
    ]
    slowest = max(verdict.longest_gap_seconds.values(), default=0.0)
    counts.append(f"longest wait of a slot {span(slowest)}")
    return f"{judgement(verdict)}: {', '.join(counts)}"


def as_text(verdict: Verdict) -> Group:
    """For a terminal: what was counted, the faults, and every problem; the summary is not in it."""
    parts: list[Table | Text] = [_counts_table(verdict)]
    if verdict.recoveries:
        table = _table("fault", "struck", "last wait there was over after")
        for fault, seconds in verdict.recoveries[:FAULTS_SHOWN]:
            took = NOT_NOTICED if seconds is None else span(seconds)
            table.add_row(Text(fault.text), Text(", ".join(fault.touches)), Text(took, justify="right"))
        parts.append(table)
    parts += [Text(for_terminal(f"problem: {problem}"), style="bold red") for problem in verdict.problems]
    return Group(*parts)


def show(verdict: Verdict, console: Console) -> None:
    """Print it, the summary last."""
    console.print(as_text(verdict))
    style = "bold green" if verdict.valid else "bold red"
    console.print(Text(summary(verdict), style=style), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _counts_table(verdict: Verdict) -> Table:
    table = _table("what", "count")
    table.columns[1].justify = "right"
    for what, number, bad in _figures(verdict):
        table.add_row(what, Text(number, style="bold red" if bad else ""))
    return table


def _figures(verdict: Verdict) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it is bad."""
    slowest = max(verdict.longest_gap_seconds.values(), default=0.0)
    plain = [
        ("acknowledged", verdict.acknowledged),
        ("done", verdict.done),
        ("refused", verdict.refused),
        ("of unknown end", verdict.unknown),
    ]
    broken = [(name, label, len(getattr(verdict, name)), bad) for name, label, bad in FINDINGS]
    unchecked = () if verdict.ordered else ("order_broken",)
    return [
        *((name, count(number), False) for name, number in plain),
        *(
            (label, NOT_CHECKED if name in unchecked else count(number), bad and number > 0)
            for name, label, number, bad in broken
        ),
        ("longest wait of a slot", span(slowest), False),
        ("acknowledged after, p50", span(verdict.ack_seconds_p50), False),
        ("acknowledged after, p99", span(verdict.ack_seconds_p99), False),
        ("acknowledged after, slowest", span(verdict.ack_seconds_max), False),
    ]


# ---- JSON


def as_json(verdict: Verdict) -> str:
    """Everything, with at most FINDINGS_IN_JSON of each kind; `counts` has their true numbers."""
    record: dict[str, Any] = {"valid": verdict.valid, "summary": summary(verdict)}
    record["counts"] = {name: len(getattr(verdict, name)) for name, _, _ in FINDINGS}
    record |= asdict(verdict)
    for name, _, _ in FINDINGS:
        record[name] = [finding._asdict() for finding in getattr(verdict, name)[:FINDINGS_IN_JSON]]
    record["gaps"] = [gap._asdict() for gap in verdict.gaps[:FINDINGS_IN_JSON]]
    record["recoveries"] = [
        {
            "fault": fault.fault,
            "text": fault.text,
            "touches": fault.touches,
            "at": fault.at,
            "seconds": seconds,
        }
        for fault, seconds in verdict.recoveries
    ]
    return json.dumps(record, indent=1, ensure_ascii=False)


# ---- HTML


class Picture(NamedTuple):
    """Something that the jobs made, to be shown in the report."""

    name: str
    jpeg: bytes


def write_html(
    path: Path, history: History, verdict: Verdict, *, title: str, pictures: Sequence[Picture] = ()
) -> None:
    """Write the report, in place of what the file held. Raises OSError."""
    path.write_text(as_html(history, verdict, title=title, pictures=pictures), encoding="utf-8")


def as_html(history: History, verdict: Verdict, *, title: str, pictures: Sequence[Picture] = ()) -> str:
    """One file that needs no other, for light and dark screens: what broke, when, and what was done then."""
    told = "Every job that was acknowledged was done." if verdict.valid else ""
    problems = "".join(f"<li>{clean(problem)}</li>" for problem in verdict.problems)
    sections = [
        f'<header class="{"valid" if verdict.valid else "invalid"}">'
        f'<span class="badge">{judgement(verdict)}</span><div><h1>{clean(title)}</h1>'
        f"<p>{clean(span(verdict.seconds))}, {_number_of_faults(history)}. {told}</p></div></header>",
        f'<ul class="problems">{problems}</ul>' if problems else "",
        _tiles(verdict),
        _looked_for(verdict),
        _gallery(pictures),
        f'<div class="picture">{Timeline(counts_of(history, verdict)).svg(verdict)}</div>',
        _LEGEND,
        _findings_tables(verdict),
        _faults_table(history, verdict),
        _gaps_table(verdict),
        _words(),
    ]
    return _PAGE.format(title=clean(title), allowed=_ALLOWED, style=_STYLE, body="\n".join(sections))


def _number_of_faults(history: History) -> str:
    number = sum(event.kind is Kind.FAULT for event in history.events)
    return {0: "no fault", 1: "1 fault"}.get(number, f"{number} faults")


def _tiles(verdict: Verdict) -> str:
    """One for each figure that says something: zeros are in the line below."""
    tiles = [
        f'<div class="tile{" bad" if bad else ""}" title="{clean(MEANINGS[name])}"><b>{clean(value)}</b>'
        f"<span>{clean(name)}</span></div>"
        for name, value, bad in _figures(verdict)
        if name in ALWAYS_SHOWN or value not in ("0", NOT_CHECKED)
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _looked_for(verdict: Verdict) -> str:
    """What was not found, and what was not looked for."""
    rest = [(name, value) for name, value, _ in _figures(verdict) if name not in ALWAYS_SHOWN]
    parts = []
    for lead, told in (("Looked for, and none found", "0"), (NOT_CHECKED.capitalize(), NOT_CHECKED)):
        if names := [name for name, value in rest if value == told]:
            parts.append(f"{lead}: {'; '.join(names)}")
    return f'<p class="legend">{clean(" ".join(parts))}</p>' if parts else ""


def _gallery(pictures: Sequence[Picture]) -> str:
    shown = "".join(
        f'<figure><img alt="{clean(each.name)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(each.jpeg).decode()}" /><figcaption>{clean(each.name)}</figcaption></figure>'
        for each in pictures
    )
    return f'<h2>Some of what the jobs made</h2><div class="gallery">{shown}</div>' if shown else ""


def _words() -> str:
    listed = "".join(f"<dt>{clean(word)}</dt><dd>{clean(told)}</dd>" for word, told in MEANINGS.items())
    return f"<h2>What the words mean</h2><dl>{listed}</dl>"


def _findings_tables(verdict: Verdict) -> str:
    parts = []
    columns = ("at", "key", "handle", "what")
    for name, label, _ in FINDINGS:
        findings: list[Finding] = getattr(verdict, name)
        if findings:
            rows = [(f"{f.at:.3f} s", f.key, f.handle, f.text) for f in findings[:FINDINGS_SHOWN]]
            more = len(findings) - len(rows)
            note = f"<p>and {more:,} more</p>" if more else ""
            parts.append(_html_table(f"{label}: {len(findings):,}", columns, rows) + note)
    return "".join(parts)


def _faults_table(history: History, verdict: Verdict) -> str:
    healed = {event.fault: event.at for event in history.events if event.kind is Kind.HEALED}
    recovered = {fault.fault: seconds for fault, seconds in verdict.recoveries}
    twice = Counter(finding.fault for finding in verdict.duplicated_explained)
    rows = []
    faults = [event for event in history.events if event.kind is Kind.FAULT]
    for fault in faults[:FAULTS_SHOWN]:
        lasted = span(healed[fault.fault] - fault.at) if fault.fault in healed else "to the end"
        rows.append(
            (
                clock(round(fault.at, 1)),
                lasted,
                fault_name(fault),
                ", ".join(fault.touches),
                fault.text.partition(": ")[2],
                _recovered(fault, recovered),
                str(twice[fault.fault] or ""),
            )
        )
    columns = ("at", "for", "fault", "touches", "more", "last wait was over after", "run twice")
    return _html_table("Faults", columns, rows) if rows else ""


def _recovered(fault: Event, recovered: dict[int, float | None]) -> str:
    if fault.fault not in recovered:
        return ""
    seconds = recovered[fault.fault]
    return NOT_NOTICED if seconds is None else span(seconds)


def _gaps_table(verdict: Verdict) -> str:
    longest = sorted(verdict.gaps, key=lambda gap: -gap.seconds)[:GAPS_SHOWN]
    rows = [
        (clock(round(gap.begun, 1)), span(gap.seconds), str(gap.slot) if gap.slot >= 0 else "not known")
        for gap in longest
    ]
    return _html_table("Longest waits", ("from", "for", "slot"), rows) if rows else ""


def _html_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Without the columns that have nothing to say."""
    told = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    columns = tuple(columns[place] for place in told)
    rows = [tuple(row[place] for place in told) for row in rows]
    head = "".join(f"<th>{clean(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{clean(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<h2>{clean(title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


_LEGEND: Final = (
    '<p class="legend">'
    + "".join(
        f'<span><svg width="14" height="10"><rect width="14" height="10" class="{style}"/></svg>'
        f"{label}</span>"
        for style, label in (
            ("fault on-node", "a node"),
            ("fault on-link", "a link"),
            ("fault on-etcd", "etcd"),
            ("fault on-worker", "a worker or client"),
            ("fault on-all", "all"),
            ("area ack", "acknowledged"),
            ("area end", "ended"),
            ("bad", "refused, timed out, waiting, broken"),
            ("mild", "run twice, explained by a fault"),
        )
    )
    + "</p>"
)

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE: Final = """
:root {
  --page: #f6f7f9; --card: #ffffff; --text: #1b1f24; --dim: #667080; --line: #e3e6ea; --base: #b4bac3;
  --good: #1a7f45; --bad: #d0263b; --mild: #c77700;
  --ack: #2f6fde; --end: #2a9d74; --change: #7b5ad6; --slow: #1b1f24;
  --node: #e8710a; --link: #9a4dca; --etcd: #1784a8; --worker: #6c7a17; --all: #c2185b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --text: #e7eaee; --dim: #98a2b0; --line: #2c323a; --base: #555e6a;
    --good: #4fc67f; --bad: #ff5a6b; --mild: #f0a53a;
    --ack: #6ea2ff; --end: #4fcfa0; --change: #a78bfa; --slow: #e7eaee;
    --node: #ff9a3d; --link: #c583f0; --etcd: #45b8dd; --worker: #b3c44a; --all: #ff5c9a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 20px 60px; }
header { display: flex; align-items: center; gap: 18px; margin-bottom: 16px; }
h1 { font-size: 21px; margin: 0; } header p { margin: 2px 0 0; color: var(--dim); }
h2 { font-size: 16px; margin: 28px 0 8px; }
.badge { font-weight: 700; font-size: 20px; padding: 10px 18px; border-radius: 10px; color: var(--page);
  white-space: nowrap; background: var(--good); }
.invalid .badge { background: var(--bad); }
.problems { margin: 0 0 16px; padding: 12px 16px 12px 34px; border-radius: 10px; background: var(--card);
  border-left: 5px solid var(--bad); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 8px; }
.tile { background: var(--card); border-radius: 10px; padding: 9px 13px; border: 1px solid var(--line); }
.tile b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: 12.5px; }
.tile.bad { border-color: var(--bad); } .tile.bad b { color: var(--bad); }
.picture { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 14px;
  padding: 12px 6px 6px; overflow-x: auto; }
.picture svg { display: block; width: 100%; min-width: 900px; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--dim); font-size: 12.5px; margin: 8px; }
.legend svg { margin-right: 6px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
figure { margin: 0; } figure img { display: block; width: 100%; border-radius: 8px; }
figcaption { color: var(--dim); font-size: 12px; margin-top: 3px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font-size: 13.5px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--dim); }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--dim); font-weight: 600; } td { overflow-wrap: anywhere; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--text); }
svg .label { font-size: 12.5px; font-weight: 600; }
svg .dim, svg .tick { fill: var(--dim); font-size: 11px; }
svg .good { fill: var(--good); font-weight: 600; }
svg .on { fill: #fff; font-weight: 600; font-size: 11px; } svg .beside { font-size: 11px; }
svg .grid { stroke: var(--line); } svg .base { stroke: var(--base); }
svg .ack { fill: var(--ack); } svg .end { fill: var(--end); } svg .area { opacity: .85; }
svg .change { fill: var(--change); } svg .bad { fill: var(--bad); } svg .mild { fill: var(--mild); }
svg .mark { stroke: var(--card); stroke-width: 1; }
svg .slow { fill: none; stroke: var(--slow); stroke-width: 1.6; stroke-linejoin: round; }
svg .plumb { stroke: var(--bad); stroke-dasharray: 3 4; opacity: .75; }
svg .slowest { fill: var(--dim); }
svg .note { fill: var(--dim); stroke: var(--dim); }
svg .on-node { fill: var(--node); } svg .on-link { fill: var(--link); } svg .on-etcd { fill: var(--etcd); }
svg .on-worker { fill: var(--worker); } svg .on-all { fill: var(--all); }
svg .band { opacity: .1; } svg .tip { fill: transparent; }
svg .tip:hover { fill: var(--text); fill-opacity: .12; }
@media (prefers-color-scheme: dark) { svg .on { fill: #14171b; } svg .band { opacity: .13; } }
svg.many .band { opacity: .06; }
@media (max-width: 640px) {
  main { padding: 14px 12px 40px; }
  header { flex-direction: column; align-items: flex-start; gap: 10px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .gallery { grid-template-columns: repeat(2, 1fr); }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 8px; }
  th, td { padding: 5px 8px; } .wide td { overflow-wrap: normal; }
}
@media print { .wide, .picture, .tile { break-inside: avoid; } }
"""
