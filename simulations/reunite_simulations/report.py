"""The report: one HTML page about one seed, which needs nothing beside itself.

What came of the world, its timeline (`timeline`), what became of edits that did not know of each
other (`conflicts`), what was rejected, the faults that struck and the promises that were checked.
Every text from outside is escaped, every list bounded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from reunite_simulations.conflicts import Merged, Overwritten, Side
from reunite_simulations.failure import commit, history, sides
from reunite_simulations.faults import FAULTS
from reunite_simulations.lanes import (
    Scale,
    clock,
    node_names,
    row_name,
    scale_of,
    short,
    value_text,
)
from reunite_simulations.outcome import Happening, Report
from reunite_simulations.seeds import own_schema
from reunite_simulations.timeline import ZOOMS, legend, symbols, timeline
from reunite_simulations.world import EVENTS_MAX
from reunite_transport.console import counted

# What a table shows; the rest is counted.
LINES_MAX: Final = 50
ROWS_OF_REJECTION_MAX: Final = 5
VIOLATIONS_MAX: Final = 20
# A failure's last events; a history that is short is shown at once.
HISTORY_MAX: Final = 200
HISTORY_OPEN_MAX: Final = 30
# A longer word may be broken: after what divides it, else into pieces of this many letters.
WORD_MAX: Final = 16
_PIECES: Final = re.compile(r".{3,11}?[-_/.,:;@]|.{1,12}", re.DOTALL)


def page(report: Report, again: str) -> str:
    """The page's HTML. `again` is the command that runs the world again."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Seed {report.seed}: {escape(_verdict(report))}</title>
<style>
{_part("report.css")}</style>
</head>
<body>
{symbols()}
<main>
{_heading(report)}
<h2 id="timeline">What happened</h2>
<p class="soft">Rest the pointer on anything, or touch it, to see what it was. What a node sent or
wrote stands above its line, what came in hangs below. The shading of a client that is cut off has
one strip for each relay.{_cut_short(report)}</p>
<div class="bar"><ul class="legend">{legend()}</ul>
<div class="zoom" role="group" aria-label="Zoom">{_zooms()}</div></div>
{timeline(report)}
<h2>What became of it</h2>
{_conflicts(report)}
{_rejections(report)}
<div class="columns">
<section><h2>Faults</h2>{_faults(report.faults)}</section>
<section><h2>Promises</h2>{_promises(report)}</section>
</div>
<h2>Run it again</h2>
<code class="again">{escape(again)}</code>
<p class="soft">One seed is one history: the same code makes the trace
<code>{report.trace_hash[:16]}</code> of it every time.</p>
</main>
<script>
{_part("report.js")}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    return files("reunite_simulations").joinpath(name).read_text(encoding="utf-8")


def _verdict(report: Report) -> str:
    return "A promise was broken" if report.violations else "Every promise was kept"


def _heading(report: Report) -> str:
    settings = report.settings
    names = node_names(report.happenings)
    relays = sum(name.startswith("relay") for name in names)
    copies = sum("-copy" in name for name in names)
    who = counted(len(names) - relays - copies, "client")
    if copies:
        who += f", {copies:,} {'copy' if copies == 1 else 'copies'} of their files"
    kind = "broken" if report.violations else "kept"
    sign = "M8 8L16 16M16 8L8 16" if report.violations else "M6.5 12.5L10.5 16.5L17.5 8"
    where = "the simulator's own schema" if settings.schema == own_schema() else "your schema"
    if settings.database is not None:
        where = settings.database.name
    facts = {
        "simulated": _lived(report.simulated_hours),
        "transactions": f"{report.transactions:,}",
        "rows written": f"{report.rows_written:,}",
        "faults": f"{sum(report.faults.values()):,}",
        "checks": f"{sum(report.checks.values()):,}",
        "edits merged": f"{len(report.conflicts.merged):,}",
        "edits overwritten": f"{len(report.conflicts.overwritten):,}",
        "rejections": f"{len(list(_of(report, 'rejected'))):,}",
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f"""<header>
<p class="brand">reunite simulate</p>
<div class="verdict {kind}"><svg viewBox="0 0 24 24" aria-hidden="true">
<circle cx="12" cy="12" r="11" fill="currentColor"/>
<path d="{sign}" fill="none" stroke="var(--paper)" stroke-width="2.4" stroke-linecap="round"
 stroke-linejoin="round"/></svg>
<h1>{escape(_verdict(report))}</h1></div>
{_violations(report)}
<p>Seed <b>{report.seed}</b>: {who} and {counted(relays, "relay")} on {escape(where)},
{settings.minutes:g} virtual {"minute" if settings.minutes == 1 else "minutes"} of writes and
faults, then time to come to rest.{_part_of_it(report)}</p>
{_left_out(report)}{_history(report)}
<dl class="facts">{tiles}</dl>
</header>"""


def _part_of_it(report: Report) -> str:
    if report.settings.only is None:
        return ""
    return (
        " It is a part of the seed's world: of all that would happen there, only what the history"
        f" names does. Run by reunite {escape(commit())}."
    )


def _lived(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 0.1 else f"{hours * 3600:.0f} s"


def _left_out(report: Report) -> str:
    if not report.left_out:
        return ""
    said = "; ".join(f"<b>{escape(n)}</b> {escape(why)}" for n, why in report.left_out.items())
    return f'<p class="soft">Left out of sync: {said}.</p>\n'


def _violations(report: Report) -> str:
    if not report.violations:
        return ""
    lines = [
        f"<li>{_when(each.at, scale_of(report))} <b>{escape(each.promise)}</b>:"
        f" {escape(short(each.message, 1000))}{_sides(each.message)}</li>"
        for each in report.violations[:VIOLATIONS_MAX]
    ]
    if len(report.violations) > VIOLATIONS_MAX:
        lines.append(f"<li>and {len(report.violations) - VIOLATIONS_MAX:,} more</li>")
    return f'<ul class="violations">{"".join(lines)}</ul>'


def _sides(message: str) -> str:
    said = sides(message)
    return f'<br><span class="soft">{escape(said)}</span>' if said else ""


def _history(report: Report) -> str:
    """The transactions and faults of a world that broke a promise; they are few when it was made
    small."""
    if not report.violations:
        return ""
    lines = history(report)
    if not lines:
        return '<p class="soft">No event was needed: it breaks all by itself.</p>'
    shown = "\n".join(lines[-HISTORY_MAX:])
    before = f"{len(lines) - HISTORY_MAX:,} events before\n" if len(lines) > HISTORY_MAX else ""
    summary = f"The history: {counted(len(lines), 'event')}"
    state = " open" if len(lines) <= HISTORY_OPEN_MAX else ""
    return (
        f"<details{state}><summary>{summary}</summary>"
        f'<pre class="again">{escape(before + shown)}</pre></details>'
    )


def _cut_short(report: Report) -> str:
    if len(report.happenings) < EVENTS_MAX:
        return ""
    return f" <b>The page shows the first {EVENTS_MAX:,} events; there were more.</b>"


def _zooms() -> str:
    return "".join(
        f'<button type="button" value="{times}" aria-pressed="{str(times == 1).lower()}">'
        f"{times}\N{MULTIPLICATION SIGN}</button>"
        for times in ZOOMS
    )


def _conflicts(report: Report) -> str:
    scale = scale_of(report)
    overwritten, merged = report.conflicts.overwritten, report.conflicts.merged
    return _table(
        "Overwritten",
        "An edit of one cell that gave way to another, neither of which had seen the other.",
        ("row", "column", "gave way", "to"),
        [_overwritten(each, scale) for each in overwritten[:LINES_MAX]],
        len(overwritten),
    ) + _table(
        "Merged",
        "Two edits of one row, neither of which had seen the other, and both are kept.",
        ("row", "one edit", "the other"),
        [_merged(each, scale) for each in merged[:LINES_MAX]],
        len(merged),
    )


def _overwritten(each: Overwritten, scale: Scale) -> Sequence[str]:
    lost = f"<del>{_breaking(value_text(each.loser.cells[each.column]))}</del>"
    won = "<ins>the row was deleted</ins>"
    if each.winner.cells:
        won = f"<ins>{_breaking(value_text(each.winner.cells[each.column]))}</ins>"
    return (
        _breaking(row_name(each.table, each.key)),
        escape(each.column),
        f"{_by(each.loser, scale)} {lost}",
        f"{_by(each.winner, scale)} {won}",
    )


def _merged(each: Merged, scale: Scale) -> Sequence[str]:
    return (
        _breaking(row_name(each.table, each.key)),
        f"{_by(each.first, scale)} {_cells(each.first)}",
        f"{_by(each.second, scale)} {_cells(each.second)}",
    )


def _cells(side: Side) -> str:
    said = ", ".join(f"{name} = {value_text(value)}" for name, value in side.cells.items())
    return _breaking(short(said))


def _breaking(text: str) -> str:
    """Text whose long words a narrow page may break where it does least harm."""
    return " ".join(
        escape(word) if len(word) <= WORD_MAX else "<wbr>".join(map(escape, _PIECES.findall(word)))
        for word in text.split(" ")
    )


def _by(side: Side, scale: Scale) -> str:
    return f'{_when(side.at, scale)} <span class="who">{escape(side.client)}</span>'


def _when(at: float, scale: Scale) -> str:
    return f'<a href="#timeline" data-at="{scale.share(at):.4f}">{clock(at)}</a>'


def _rejections(report: Report) -> str:
    happened = list(_of(report, "rejected"))
    scale = scale_of(report)
    lines = []
    for happening in happened[:LINES_MAX]:
        client, reason, message, rows = happening.facts
        assert isinstance(rows, tuple)
        named = [f"{table} {value_text(key)}" for table, key in rows[:ROWS_OF_REJECTION_MAX]]
        if len(rows) > ROWS_OF_REJECTION_MAX:
            named.append(f"and {len(rows) - ROWS_OF_REJECTION_MAX:,} more")
        lines.append(
            (
                f'{_when(happening.at, scale)} <span class="who">{escape(str(client))}</span>',
                f"<b>{escape(str(reason))}</b>: {escape(short(str(message), 300))}",
                _breaking("; ".join(named)),
            )
        )
    return _table(
        "Rejected",
        "What the relay could not take: taken back, and kept in <code>reunite_rejected</code>.",
        ("client", "reason", "rows"),
        lines,
        len(happened),
    )


def _faults(counts: Mapping[str, int]) -> str:
    lines = []
    for name, count in sorted(counts.items()):
        said = (FAULTS[name][0].__doc__ or "") if name in FAULTS else ""
        lines.append((escape(name), escape(said.partition("\n")[0]), f"{count:,}"))
    return _lines(("fault", "what it is", "times"), lines, len(lines))


def _promises(report: Report) -> str:
    broken = {violation.promise for violation in report.violations}
    lines = [
        (escape(name), "<b>broken</b>" if name in broken else "kept", f"{count:,}")
        for name, count in sorted(report.checks.items())
    ]
    return _lines(("promise", "it was", "checks"), lines, len(lines))


def _table(
    title: str, said: str, heads: Sequence[str], lines: Iterable[Sequence[str]], count: int
) -> str:
    """A section with cells that are HTML already; `said` too."""
    body = _lines(heads, lines, count) if count else ""
    return f'<section><h3>{title}: {count:,}</h3><p class="soft">{said}</p>{body}</section>\n'


def _lines(heads: Sequence[str], lines: Iterable[Sequence[str]], count: int) -> str:
    made = list(lines)
    if not made:
        return "<p>None.</p>"
    kinds = [' class="number"' if name in ("times", "checks") else "" for name in heads]
    head = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, heads, strict=True))
    body = ""
    for line in made:
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, line, strict=True))
        body += f"<tr>{''.join(cells)}</tr>\n"
    if count > len(made):
        body += (
            f'<tr class="more"><td colspan="{len(heads)}">and {count - len(made):,} more</td></tr>'
        )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _of(report: Report, kind: str) -> Iterator[Happening]:
    return (happening for happening in report.happenings if happening.kind == kind)
